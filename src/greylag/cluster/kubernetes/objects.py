"""The objects of one environment, and why it does not get on. Pure.

Objects are the JSON of the API server as plain dictionaries, or what the informers keep of it.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from greylag.cluster.kubernetes.failures import (
    Cause,
    cause,
    crash_loop,
    no_image,
    quoted,
    refusal,
    unschedulable,
)
from greylag.cluster.kubernetes.identity import START_ANNOTATION, Object, annotation_of
from greylag.cluster.kubernetes.manifests import AGENTD

PULL_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
CRASHES_THAT_TELL = 3

_CREATE_REASONS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_USUAL_WAITS = frozenset({"", "ContainerCreating", "PodInitializing"})
_MOUNT_REASONS = frozenset({"FailedMount", "FailedAttachVolume"})


@dataclass(frozen=True, slots=True)
class EnvironmentObjects:
    """What of an environment is there, ``None`` or empty where it is not.

    Attributes:
        deployment: carries the newest claim.
        pods: all that there are, those of earlier starts too.
        claim: of its volume.
        service: where the agent is found in the cluster.
        endpoint: where users are told that it is, once known.
        events: Kubernetes' Events of its pods and claim, oldest first.
        last_words: the end of a crashed container's log.
    """

    deployment: Object | None = None
    pods: Sequence[Object] = ()
    claim: Object | None = None
    service: Object | None = None
    endpoint: str | None = None
    events: Sequence[Object] = ()
    last_words: str = ""

    @property
    def wanted(self) -> bool:
        """Whether it is to run."""
        return self.deployment is not None and wants_pod(self.deployment)

    @property
    def pod(self) -> Object | None:
        """The newest pod of the present start that is neither ended nor being removed."""
        present = annotation_of(self.deployment, START_ANNOTATION)
        alive = [
            pod
            for pod in self.pods
            if lives(pod) and annotation_of(pod, START_ANNOTATION) == present
        ]
        return max(
            alive, key=lambda pod: pod["metadata"].get("creationTimestamp") or "", default=None
        )

    @property
    def failed_itself(self) -> bool:
        """Whether only another pod can help: it has none that is ready."""
        pod = self.pod
        return pod is None or not is_ready(pod)

    @property
    def needs_events(self) -> bool:
        """Whether Events may say more than the objects do: it waits for something."""
        return self.wanted and self.pod is not None and self.failed_itself

    @property
    def crashed(self) -> tuple[str, str] | None:
        """The names of the pod and of its container that ends again and again, if one does."""
        pod = self.pod
        if pod is None or not _crashes(pod):
            return None
        return pod["metadata"]["name"], container(pod).get("name", AGENTD)

    @property
    def waits(self) -> bool:
        """Whether the container waits for what Events or its log explain."""
        pod = self.pod
        return pod is not None and (_waiting(pod)[0] in PULL_REASONS or _crashes(pod))

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs of an environment that is not to run, and nothing will."""
        if any(lives(pod) or is_removed(pod) for pod in self.pods):
            return False
        deployment = self.deployment
        return deployment is None or (
            is_current(deployment) and not (deployment.get("status") or {}).get("replicas")
        )

    def why(self) -> Cause | None:
        """Return why an environment that is to run does not get on, ``None`` while it does."""
        pod = self.pod
        if pod is None:
            return _why_no_pod(self.deployment)
        return (
            _why_not_scheduled(pod, self.events)
            or _why_not_running(pod, self.events, self.last_words)
            or _why_not_ready(pod, self.events)
        )


def wants_pod(deployment: Object) -> bool:
    """Tell whether a Deployment is to run."""
    return bool(deployment["spec"].get("replicas", 1))


def container(pod: Object) -> Object:
    """Return the status of the container that a pod waits for, else of agentd's; maybe empty."""
    held = [one for one in _containers(pod) if _waits_for(one) not in _USUAL_WAITS]
    return held[0] if held else agentd_container(pod)


def agentd_container(pod: Object) -> Object:
    """Return the status of a pod's container with agentd, empty before it has one."""
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    return next((one for one in statuses if one.get("name") == AGENTD), statuses[0])


def _containers(pod: Object) -> list[Object]:
    status = pod.get("status", {})
    kinds = ("initContainerStatuses", "containerStatuses")
    return [one for kind in kinds for one in status.get(kind) or ()]


def _waits_for(status: Object) -> str:
    return str((status.get("state", {}).get("waiting") or {}).get("reason", ""))


def lives(pod: Object) -> bool:
    """Tell whether a pod has neither ended nor is being removed."""
    ended = pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
    return not ended and not is_removed(pod)


def is_removed(thing: Object | None) -> bool:
    """Tell whether an object is being removed."""
    return thing is not None and thing["metadata"].get("deletionTimestamp") is not None


def is_ready(pod: Object) -> bool:
    """Tell whether a pod has the condition ``Ready``."""
    ready = _condition(pod, "Ready")
    return ready is not None and ready["status"] == "True"


def is_current(deployment: Object | None) -> bool:
    """Tell whether the controller has seen the newest template, so that the pod is made from it."""
    if deployment is None:
        return False
    seen = (deployment.get("status") or {}).get("observedGeneration", 0)
    return bool(seen >= deployment["metadata"].get("generation", 0))


def last(events: Sequence[Object], reasons: Container[str]) -> Object | None:
    """Return the newest Event with one of these reasons."""
    return next((one for one in reversed(events) if one.get("reason", "") in reasons), None)


def _conditions(thing: Object | None) -> Iterable[Object]:
    return () if thing is None else thing.get("status", {}).get("conditions") or ()


def _condition(thing: Object, kind: str) -> Object | None:
    return next((one for one in _conditions(thing) if one["type"] == kind), None)


def _waiting(pod: Object) -> tuple[str, str]:
    """Return what the container waits for, in one word and in Kubernetes' own words."""
    waiting = container(pod).get("state", {}).get("waiting") or {}
    return waiting.get("reason", ""), waiting.get("message", "")


def _crashes(pod: Object) -> bool:
    """Tell whether a pod's container ends again and again."""
    often = container(pod).get("restartCount", 0) >= CRASHES_THAT_TELL
    return often and _waiting(pod)[0] == "CrashLoopBackOff"


def _why_no_pod(deployment: Object | None) -> Cause | None:
    failure = _condition(deployment, "ReplicaFailure") if deployment is not None else None
    if failure is None or failure["status"] != "True" or not is_current(deployment):
        return None
    words = failure.get("message", "")
    return refusal(words) or cause(
        "container_not_created", reason=failure.get("reason", ""), words=quoted(words)
    )


def _why_not_scheduled(pod: Object, events: Sequence[Object]) -> Cause | None:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled is None or scheduled["status"] == "True":
        return None
    refused = last(events, {"ProvisioningFailed"})
    if refused is not None:
        return cause("volume_not_bound", words=_message(refused))
    return unschedulable(scheduled.get("message", ""))


def _why_not_running(pod: Object, events: Sequence[Object], last_words: str) -> Cause | None:
    reason, words = _waiting(pod)
    if reason in PULL_REASONS:
        return _why_no_image(pod, events, reason, words)
    if _crashes(pod):
        return crash_loop(_ended(container(pod)).get("exitCode"), last_words)
    if reason in _CREATE_REASONS:
        return cause("container_not_created", reason=reason, words=quoted(words))
    if reason == "ContainerCreating" and (event := last(events, _MOUNT_REASONS)):
        return cause("volume_not_mounted", words=_message(event))
    return None


def _why_no_image(pod: Object, events: Sequence[Object], reason: str, words: str) -> Cause:
    missing = None
    if last(events, {"FailedToRetrieveImagePullSecret"}) is not None:
        named = [one["name"] for one in pod["spec"].get("imagePullSecrets") or []]
        missing = ", ".join(named) or "named for pulling"
    pulled = last(events, {"Failed"})
    # The back-off's own words only say that it backs off; the Event before it says why.
    said = f"{words} {pulled.get('message', '') if pulled else ''}"
    name = container(pod).get("image") or pod["spec"]["containers"][0]["image"]
    return no_image(name, reason, said, secret_missing=missing)


def _why_not_ready(pod: Object, events: Sequence[Object]) -> Cause | None:
    if any(_ended(one).get("reason") == "OOMKilled" for one in _containers(pod)):
        return cause("out_of_memory")
    unhealthy = last(events, {"Unhealthy"})
    return None if unhealthy is None else cause("probe_failing", words=_message(unhealthy))


def _message(event: Object) -> str:
    """Return what an Event says, as it may be quoted."""
    return quoted(event.get("message", ""))


def _ended(status: Object) -> Object:
    """Return how a container ended last, empty when it never did."""
    ended: Object = status.get("lastState", {}).get("terminated") or {}
    return ended
