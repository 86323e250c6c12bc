"""Reading the JSON of pods, Deployments and Events: plain questions to one object. Pure."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from greylag.cluster.kubernetes import failures
from greylag.cluster.kubernetes.failures import Cause
from greylag.cluster.kubernetes.identity import START_ANNOTATION

Object = Mapping[str, Any]

CRASHES_THAT_TELL = 3


def mark(thing: Object | None) -> str | None:
    """Return the mark of the start that a Deployment is of, or a pod."""
    annotations = {} if thing is None else thing["metadata"].get("annotations") or {}
    found: str | None = annotations.get(START_ANNOTATION)
    return found


def container(pod: Object) -> Object:
    """Return the status of a pod's container, empty before it has one."""
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    first: Object = statuses[0]
    return first


def lives(pod: Object) -> bool:
    """Tell whether a pod has neither ended nor is being removed."""
    ended = pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
    return not ended and not is_removed(pod)


def is_removed(thing: Object | None) -> bool:
    """Tell whether an object is being removed."""
    return thing is not None and thing["metadata"].get("deletionTimestamp") is not None


def is_ready(pod: Object) -> bool:
    """Tell whether a pod has the condition ``Ready``."""
    ready = condition(pod, "Ready")
    return ready is not None and ready["status"] == "True"


def is_current(deployment: Object | None) -> bool:
    """Tell whether the controller has seen the newest template, so that the pod is made from it."""
    if deployment is None:
        return False
    seen = (deployment.get("status") or {}).get("observedGeneration", 0)
    return bool(seen >= deployment["metadata"].get("generation", 0))


def conditions(thing: Object | None) -> Iterable[Object]:
    """Return an object's conditions."""
    return () if thing is None else thing.get("status", {}).get("conditions") or ()


def condition(thing: Object, kind: str) -> Object | None:
    """Return an object's condition of this type."""
    return next((one for one in conditions(thing) if one["type"] == kind), None)


def last(events: Sequence[Object], reasons: Container[Any]) -> Object | None:
    """Return the newest Event with one of these reasons."""
    return next((one for one in reversed(events) if one.get("reason") in reasons), None)


def crashes(pod: Object) -> bool:
    """Tell whether a pod's container ends again and again."""
    status = container(pod)
    waiting = status.get("state", {}).get("waiting") or {}
    often = status.get("restartCount", 0) >= CRASHES_THAT_TELL
    return often and waiting.get("reason") == "CrashLoopBackOff"


# One look at the objects of an environment. Pure.
#
# Objects are the JSON of the API server as plain dictionaries (or of the watches' caches).

PULL_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)


@dataclass(frozen=True, slots=True)
class Sight:
    """What of an environment is there, ``None`` or empty where it is not.

    ``endpoint`` is where it is told to be reached, once known; ``events`` are Kubernetes' Events of
    its pods and claim, oldest first; ``last_words`` the end of a crashed container's log.
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
        return self.deployment is not None and bool(self.deployment["spec"].get("replicas", 1))

    @property
    def pod(self) -> Object | None:
        """The newest pod of the present start that is neither ended nor being removed."""
        present = mark(self.deployment)
        alive = [pod for pod in self.pods if lives(pod) and mark(pod) == present]
        return max(
            alive, key=lambda pod: pod["metadata"].get("creationTimestamp") or "", default=None
        )

    @property
    def failed_itself(self) -> bool:
        """Whether only another pod can help: it has none that is ready."""
        pod = self.pod
        return pod is None or not is_ready(pod)


def needs_events(sight: Sight) -> bool:
    """Tell whether Events may say more than the objects do: it waits for something."""
    pod = sight.pod
    return sight.wanted and pod is not None and not is_ready(pod)


def crashed(sight: Sight) -> str | None:
    """Return the name of the pod whose container ends again and again, ``None`` when none does."""
    pod = sight.pod
    return pod["metadata"]["name"] if pod is not None and crashes(pod) else None


def waits(sight: Sight) -> bool:
    """Tell whether the container waits for what Events or its log explain."""
    pod = sight.pod
    if pod is None:
        return False
    waiting = container(pod).get("state", {}).get("waiting") or {}
    return waiting.get("reason") in PULL_REASONS or crashes(pod)


def is_idle(sight: Sight) -> bool:
    """Tell whether nothing runs of an environment that is not to run, and nothing will."""
    if any(lives(pod) or is_removed(pod) for pod in sight.pods):
        return False
    deployment = sight.deployment
    return deployment is None or (
        is_current(deployment) and not (deployment.get("status") or {}).get("replicas")
    )


# Why an environment that is to run does not get on. Pure.

_CREATE_REASONS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_MOUNT_REASONS = frozenset({"FailedMount", "FailedAttachVolume"})


def why(sight: Sight) -> Cause | None:
    """Return why an environment that is to run does not get on, ``None`` while it does."""
    pod = sight.pod
    if pod is None:
        return _why_no_pod(sight)
    return (
        _why_not_scheduled(sight, pod) or _why_not_running(sight, pod) or _why_not_ready(sight, pod)
    )


def _why_no_pod(sight: Sight) -> Cause | None:
    if not is_current(sight.deployment):
        return None
    for one in conditions(sight.deployment):
        if one["type"] == "ReplicaFailure" and one["status"] == "True":
            words = one.get("message", "")
            return failures.refusal(words) or failures.not_created(one.get("reason", ""), words)
    return None


def _why_not_scheduled(sight: Sight, pod: Object) -> Cause | None:
    scheduled = condition(pod, "PodScheduled")
    if scheduled is None or scheduled["status"] == "True":
        return None
    refused = last(sight.events, {"ProvisioningFailed"})
    if refused is not None:
        return failures.volume_not_bound(refused.get("message", ""))
    return failures.unschedulable(scheduled.get("message", ""))


def _why_not_running(sight: Sight, pod: Object) -> Cause | None:
    status = container(pod)
    waiting = status.get("state", {}).get("waiting") or {}
    reason, words = waiting.get("reason", ""), waiting.get("message", "")
    if reason in PULL_REASONS:
        return _why_no_image(sight, pod, reason, words)
    if crashes(pod):
        ended = status.get("lastState", {}).get("terminated") or {}
        return failures.crash_loop(ended.get("exitCode"), sight.last_words)
    if reason in _CREATE_REASONS:
        return failures.not_created(reason, words)
    if reason == "ContainerCreating" and (event := last(sight.events, _MOUNT_REASONS)):
        return failures.volume_not_mounted(event.get("message", ""))
    return None


def _why_no_image(sight: Sight, pod: Object, reason: str, words: str) -> Cause:
    missing = None
    if last(sight.events, {"FailedToRetrieveImagePullSecret"}) is not None:
        named = [one["name"] for one in pod["spec"].get("imagePullSecrets") or []]
        missing = ", ".join(named) or "named for pulling"
    pulled = last(sight.events, {"Failed"})
    # The back-off's own words only say that it backs off; the Event before it says why.
    said = f"{words} {pulled.get('message', '') if pulled else ''}"
    name = pod["spec"]["containers"][0]["image"]
    return failures.image(name, reason, said, secret_missing=missing)


def _why_not_ready(sight: Sight, pod: Object) -> Cause | None:
    ended = container(pod).get("lastState", {}).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        return failures.out_of_memory()
    unhealthy = last(sight.events, {"Unhealthy"})
    return None if unhealthy is None else failures.probe_failing(unhealthy.get("message", ""))
