"""The objects of one environment, and why it does not get on. Pure.

Objects are the JSON of the API server as plain dictionaries, or what the informers keep of it.
"""

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

from greylag.cluster.kubernetes.failures import (
    Cause,
    added_container,
    cause,
    crash_loop,
    disruption,
    no_image,
    quoted,
    refusal,
    unmountable,
    unschedulable,
)
from greylag.cluster.kubernetes.identity import START_ANNOTATION, Object, annotation_of

PULL_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
CRASHES_THAT_TELL = 3

_CREATE_REASONS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_MOUNT_REASONS = frozenset({"FailedMount", "FailedAttachVolume"})
_UNBOUND_REASONS = frozenset({"ProvisioningFailed", "FailedBinding"})
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, slots=True)
class EnvironmentObjects:
    """What of an environment is there, ``None`` or empty where it is not.

    Attributes:
        deployment: carries the newest claim.
        pods: all that there are, those of earlier starts too.
        claim: of its volume.
        service: where the agent is found in the cluster.
        endpoint: where users are told that it is, once known.
        events: Kubernetes' Events of what is ``telling``, oldest first.
        last_words: the end of a crashed container's log.
        ended: why its last pod ended, though nobody here asked for that, until the next is ready.
    """

    deployment: Object | None = None
    pods: Sequence[Object] = ()
    claim: Object | None = None
    service: Object | None = None
    endpoint: str | None = None
    events: Sequence[Object] = ()
    last_words: str = ""
    ended: Cause | None = None

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
    def never_ran(self) -> bool:
        """Whether no agent can have been ready in its pod: of a container there was never a run."""
        pod = self.pod
        known = [] if pod is None else pod.get("status", {}).get("containerStatuses") or []
        return not known or any(map(_never_ran, known))

    @property
    def needs_events(self) -> bool:
        """Whether Events may say more than the objects do: it waits for something."""
        pod = self.pod
        return self.wanted and pod is not None and (not is_ready(pod) or self.endpoint is None)

    @property
    def telling(self) -> Object | None:
        """What of it has the Events that may say what it waits for, ``None`` where none does: its
        pod until that is ready, or the claim without a volume of one that no node takes; then its
        Service.
        """
        pod = self.pod
        if pod is None or is_ready(pod):
            return self.service
        if not _is_unscheduled(pod):
            return pod
        bound = self.claim is None or self.claim.get("spec", {}).get("volumeName")
        return None if bound else self.claim

    @property
    def crashed(self) -> tuple[str, str] | None:
        """The pod and the container of it that ends again and again, ``None`` when none does."""
        pod = self.pod
        found = None if pod is None else next(filter(_crashes, containers(pod)), None)
        return None if found is None or pod is None else (pod["metadata"]["name"], found["name"])

    @property
    def waits(self) -> bool:
        """Whether a container waits for what Events or its log explain."""
        pod = self.pod
        return pod is not None and any(
            _waiting(one)[0] in PULL_REASONS or _crashes(one) for one in containers(pod)
        )

    @property
    def is_ownerless(self) -> bool:
        """Whether a pod runs that no Deployment of ours has."""
        return self.deployment is None and any(lives(pod) for pod in self.pods)

    @property
    def is_empty(self) -> bool:
        """Whether it is not to run, and has no pod now."""
        return not self.wanted and not any(lives(pod) or is_removed(pod) for pod in self.pods)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs of an environment that is not to run, and nothing will."""
        deployment = self.deployment
        return self.is_empty and (
            deployment is None
            or (is_current(deployment) and not (deployment.get("status") or {}).get("replicas"))
        )

    def why(self) -> Cause | None:
        """Return why an environment that is to run does not get on, ``None`` while it does."""
        pod = self.pod
        if pod is None:
            return _why_no_pod(self.deployment) or self.ended
        return (
            _why_not_scheduled(pod, self.events, self.claim)
            or self._why_not_running(pod)
            or why_not_alive(pod)
            or _why_not_ready(pod, self.events)
            or self.ended
        )

    def _why_not_running(self, pod: Object) -> Cause | None:
        """Return what the first container in trouble is in trouble with."""
        for one in containers(pod):
            reason, words = _waiting(one)
            if self._is_added(one["name"]):
                found = _why_added_fails(one)
            elif reason in PULL_REASONS:
                found = _why_no_image(pod, one, self.events)
            elif _crashes(one) and _last_end(one).get("reason") == "OOMKilled":
                found = replace(cause("out_of_memory"), final=True)
            elif _crashes(one):
                found = crash_loop(_last_end(one).get("exitCode"), self.last_words)
            elif reason in _CREATE_REASONS:
                found = _why_not_created(reason, words)
            elif reason in _STARTING and (event := last(self.events, _MOUNT_REASONS)):
                found = unmountable(_message(event))
            else:
                continue
            if found is not None:
                return found
        return None

    def _is_added(self, name: str) -> bool:
        """Tell whether a container is one that we did not ask for."""
        deployment = self.deployment or {}
        ours = _images(deployment.get("spec", {}).get("template", {}).get("spec", {}))
        return bool(ours) and name not in ours


def wants_pod(deployment: Object) -> bool:
    """Tell whether a Deployment is to run."""
    return bool(deployment["spec"].get("replicas", 1))


def containers(pod: Object) -> list[Object]:
    """Return the statuses of all of a pod's containers, those before the others first."""
    status = pod.get("status", {})
    kinds = ("initContainerStatuses", "containerStatuses")
    return [one for kind in kinds for one in status.get(kind) or ()]


def container(pod: Object, name: str) -> Object:
    """Return the status of a container, empty before it has one."""
    return next((one for one in containers(pod) if one["name"] == name), {})


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


def why_lost(pod: Object) -> Cause:
    """Return why a pod that ran has ended or is being removed, though nobody here asked for it."""
    status = pod.get("status", {})
    disrupted = _condition(pod, "DisruptionTarget") or {}
    if disrupted.get("status") != "True":
        disrupted = {}
    words = status.get("message") or disrupted.get("message", "")
    found = disruption(
        disrupted.get("reason") or status.get("reason", ""),
        quoted(words),
        node=pod["spec"].get("nodeName", ""),
    )
    return found or why_not_alive(pod) or cause("pod_deleted")


def why_not_alive(pod: Object) -> Cause | None:
    """Return how a container ended that does not run, or has not got ready since."""
    for one in containers(pod):
        ended = one.get("state", {}).get("terminated") or _last_end(one)
        if ended.get("reason") == "OOMKilled":
            return cause("out_of_memory")
        if "exitCode" in ended and not one.get("ready"):
            return cause("container_ended", name=one["name"], exit_code=str(ended["exitCode"]))
    return None


def _waiting(status: Object) -> tuple[str, str]:
    """Return what a container waits for, in one word and in Kubernetes' own words."""
    waiting = status.get("state", {}).get("waiting") or {}
    return waiting.get("reason", ""), waiting.get("message", "")


def _crashes(status: Object) -> bool:
    """Tell whether a container ends again and again."""
    often = status.get("restartCount", 0) >= CRASHES_THAT_TELL
    return often and _waiting(status)[0] == "CrashLoopBackOff"


def _never_ran(status: Object) -> bool:
    """Tell whether a container waits for its first start."""
    has_run = status.get("restartCount", 0) > 0 or bool(_last_end(status))
    return not has_run and not status.get("state", {}).keys() & {"running", "terminated"}


def _why_no_pod(deployment: Object | None) -> Cause | None:
    failure = _condition(deployment, "ReplicaFailure") if deployment is not None else None
    if failure is None or failure["status"] != "True" or not is_current(deployment):
        return None
    words = failure.get("message", "")
    return refusal(words) or cause(
        "container_not_created", reason=failure.get("reason", ""), words=quoted(words)
    )


def _is_unscheduled(pod: Object) -> bool:
    """Tell whether no node takes a pod."""
    scheduled = _condition(pod, "PodScheduled")
    return scheduled is not None and scheduled["status"] != "True"


def _why_not_scheduled(pod: Object, events: Sequence[Object], claim: Object | None) -> Cause | None:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled is None or not _is_unscheduled(pod):
        return None
    if is_removed(claim):
        return cause("volume_being_deleted")
    if claim is None and "not found" in scheduled.get("message", ""):
        return cause("volume_deleted")
    refused = last(events, _UNBOUND_REASONS)
    if refused is not None:
        return cause("volume_not_bound", words=_message(refused))
    return unschedulable(scheduled.get("message", ""))


def _why_added_fails(status: Object) -> Cause | None:
    """Return what is wrong with a container that is not ours."""
    reason, words = _waiting(status)
    if reason in PULL_REASONS | _CREATE_REASONS:
        return added_container(status["name"], f"does not start ({reason}): {quoted(words)}")
    if reason == "CrashLoopBackOff":
        code = _last_end(status).get("exitCode")
        how = "" if code is None else f" (exit code {code})"
        what = f"ends again and again{how}."
        return added_container(status["name"], what, final=_crashes(status))
    return None


def _why_not_created(reason: str, words: str) -> Cause:
    """Return why a container cannot be made; what of ours was deleted comes back by itself."""
    lost = re.fullmatch(r'(secret|configmap) "([^"]+)" not found', words)
    if lost is not None:
        return cause("part_deleted", kind=lost[1], name=lost[2])
    return cause("container_not_created", reason=reason, words=quoted(words))


def _why_no_image(pod: Object, status: Object, events: Sequence[Object]) -> Cause:
    reason, words = _waiting(status)
    missing = None
    if last(events, {"FailedToRetrieveImagePullSecret"}) is not None:
        named = [one["name"] for one in pod["spec"].get("imagePullSecrets") or []]
        missing = ", ".join(named) or "named for pulling"
    pulled = last(events, {"Failed"})
    # The back-off's own words only say that it backs off; the Event before it says why.
    said = f"{words} {pulled.get('message', '') if pulled else ''}"
    name = _images(pod["spec"]).get(status["name"]) or status.get("image", "")
    return no_image(name, reason, said, secret_missing=missing)


def _images(spec: Object) -> dict[str, str]:
    """Return the images of a pod's containers by name, those before the others first."""
    kinds = ("initContainers", "containers")
    return {one["name"]: one["image"] for kind in kinds for one in spec.get(kind) or ()}


def _why_not_ready(pod: Object, events: Sequence[Object]) -> Cause | None:
    if last(events, {"NodeNotReady"}) is not None:
        return cause("node_not_ready", node=pod["spec"].get("nodeName", ""))
    unhealthy = last(events, {"Unhealthy"})
    return None if unhealthy is None else cause("probe_failing", words=_message(unhealthy))


def _message(event: Object) -> str:
    """Return what an Event says, as it may be quoted."""
    return quoted(event.get("message", ""))


def _last_end(status: Object) -> Object:
    """Return how a container ended last, empty when it never did."""
    ended: Object = status.get("lastState", {}).get("terminated") or {}
    return ended
