"""One look at the objects of an environment, and what is to be told of them. Pure.

Objects are the JSON of the API server as plain dictionaries (or of the watches' caches).
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from greylag.cluster.kubernetes import causes
from greylag.cluster.kubernetes.causes import Cause
from greylag.domain.errors import ErrorInfo
from greylag.domain.lifecycle import Observation, Observed, Step

Object = Mapping[str, Any]

NAMESPACE_READY = Step("namespace_ready", "The user's namespace and its rules are ready.")
QUOTA_CHECKED = Step("quota_checked", "The user's quota has room.")
PULLING = Step("pulling_image", "The image is being pulled.")
STARTED = Step("process_started", "The environment's container has started.")
READY = Step("agent_ready", "The agent is ready.")
CRASHES_THAT_TELL = 3

_PULL_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
_CREATE_REASONS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_MOUNT_REASONS = frozenset({"FailedMount", "FailedAttachVolume"})


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
        """The newest pod that is neither ended nor being removed."""
        alive = [pod for pod in self.pods if _lives(pod)]
        return max(
            alive, key=lambda pod: pod["metadata"].get("creationTimestamp") or "", default=None
        )


def observed(sight: Sight) -> Observation:
    """Return what the domain is to know."""
    if not sight.wanted:
        return _resting(sight)
    pod = sight.pod
    if pod is None and any(_is_removed(pod) for pod in sight.pods):
        return Observation(Observed.STOPPING, error=_removal_of(sight))
    steps = _steps(sight, pod)
    if pod is not None and _is_ready(pod) and _is_current(sight.deployment):
        return _ready(sight.endpoint, steps)
    cause = why(sight)
    if cause is None:
        return Observation(Observed.STARTING, steps=steps)
    if cause.final:
        return Observation(Observed.FAILED, error=cause.error, terminal=True, steps=steps)
    return Observation(Observed.STARTING, error=cause.error, steps=steps)


def why(sight: Sight) -> Cause | None:
    """Return why an environment that is to run does not get on, ``None`` while it does."""
    pod = sight.pod
    if pod is None:
        return _why_no_pod(sight)
    return (
        _why_not_scheduled(sight, pod) or _why_not_running(sight, pod) or _why_not_ready(sight, pod)
    )


def needs_events(sight: Sight) -> bool:
    """Tell whether Events may say more than the objects do: it waits for something."""
    pod = sight.pod
    return sight.wanted and pod is not None and not _is_ready(pod)


def crashed(sight: Sight) -> str | None:
    """Return the name of the pod whose container ends again and again, ``None`` when none does."""
    pod = sight.pod
    return pod["metadata"]["name"] if pod is not None and _crashes(pod) else None


def _ready(endpoint: str | None, steps: tuple[Step, ...]) -> Observation:
    if endpoint is None:
        return Observation(Observed.STARTING, error=_NO_ADDRESS, steps=steps)
    address = Step("address_assigned", f"The environment has its address {endpoint}.")
    return Observation(Observed.READY, endpoint=endpoint, steps=(*steps, address))


def _resting(sight: Sight) -> Observation:
    if any(_lives(pod) or _is_removed(pod) for pod in sight.pods):
        return Observation(Observed.STOPPING, error=_removal_of(sight))
    if sight.deployment is None and _is_removed(sight.claim):
        return Observation(Observed.STOPPING, error=_removal_of(sight))
    parts = (sight.deployment, sight.claim, sight.service)
    nothing = all(part is None for part in parts)
    return Observation(Observed.ABSENT if nothing else Observed.STOPPED)


def _removal_of(sight: Sight) -> ErrorInfo | None:
    """Return what holds up the removal of a pod or the volume, told if it comes too late."""
    going = [("pod", pod) for pod in sight.pods if _is_removed(pod)]
    if sight.claim is not None and _is_removed(sight.claim):
        going.append(("volume claim", sight.claim))
    if not going:
        return None
    kind, first = going[0]
    meta = first["metadata"]
    return causes.stuck_removal(kind, meta["name"], list(meta.get("finalizers") or [])).error


def _why_no_pod(sight: Sight) -> Cause | None:
    for condition in _conditions(sight.deployment):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            words = condition.get("message", "")
            return causes.refusal(words) or causes.not_created(condition.get("reason", ""), words)
    return None


def _why_not_scheduled(sight: Sight, pod: Object) -> Cause | None:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled is None or scheduled["status"] == "True":
        return None
    refused = _last(sight.events, {"ProvisioningFailed"})
    if refused is not None:
        return causes.volume_not_bound(refused.get("message", ""))
    return causes.unschedulable(scheduled.get("message", ""))


def _why_not_running(sight: Sight, pod: Object) -> Cause | None:
    container = _container(pod)
    waiting = container.get("state", {}).get("waiting") or {}
    reason, words = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULL_REASONS:
        return _why_no_image(sight, pod, reason, words)
    if _crashes(pod):
        ended = container.get("lastState", {}).get("terminated") or {}
        return causes.crash_loop(ended.get("exitCode"), sight.last_words)
    if reason in _CREATE_REASONS:
        return causes.not_created(reason, words)
    if reason == "ContainerCreating" and (event := _last(sight.events, _MOUNT_REASONS)):
        return causes.volume_not_mounted(event.get("message", ""))
    return None


def _why_no_image(sight: Sight, pod: Object, reason: str, words: str) -> Cause:
    missing = None
    if _last(sight.events, {"FailedToRetrieveImagePullSecret"}) is not None:
        named = [one["name"] for one in pod["spec"].get("imagePullSecrets") or []]
        missing = ", ".join(named) or "named for pulling"
    pulled = _last(sight.events, {"Failed"})
    # The back-off's own words only say that it backs off; the Event before it says why.
    said = f"{words} {pulled.get('message', '') if pulled else ''}"
    name = pod["spec"]["containers"][0]["image"]
    return causes.image(name, reason, said, secret_missing=missing)


def _why_not_ready(sight: Sight, pod: Object) -> Cause | None:
    ended = _container(pod).get("lastState", {}).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        return causes.out_of_memory()
    unhealthy = _last(sight.events, {"Unhealthy"})
    return None if unhealthy is None else causes.probe_failing(unhealthy.get("message", ""))


def _steps(sight: Sight, pod: Object | None) -> tuple[Step, ...]:
    steps = [NAMESPACE_READY]
    if pod is None:
        return tuple(steps)
    steps.append(QUOTA_CHECKED)
    if node := pod["spec"].get("nodeName"):
        steps.append(Step("scheduled", f"The environment is placed on the node {node}."))
    started = _container(pod).get("started") or "running" in _container(pod).get("state", {})
    if _last(sight.events, {"Pulling"}) is not None and not started:
        steps.append(PULLING)
    if started:
        steps.append(STARTED)
    if _is_ready(pod):
        steps.append(READY)
    return tuple(steps)


def _crashes(pod: Object) -> bool:
    container = _container(pod)
    waiting = container.get("state", {}).get("waiting") or {}
    often = container.get("restartCount", 0) >= CRASHES_THAT_TELL
    return often and waiting.get("reason") == "CrashLoopBackOff"


def _container(pod: Object) -> Object:
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    first: Object = statuses[0]
    return first


def _lives(pod: Object) -> bool:
    ended = pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
    return not ended and not _is_removed(pod)


def _is_removed(thing: Object | None) -> bool:
    return thing is not None and thing["metadata"].get("deletionTimestamp") is not None


def _is_ready(pod: Object) -> bool:
    condition = _condition(pod, "Ready")
    return condition is not None and condition["status"] == "True"


def _is_current(deployment: Object | None) -> bool:
    """Tell whether the controller has seen the newest template, so that the pod is made from it."""
    if deployment is None:
        return False
    seen = deployment.get("status", {}).get("observedGeneration", 0)
    return bool(seen >= deployment["metadata"].get("generation", 0))


def _conditions(thing: Object | None) -> Iterable[Object]:
    return () if thing is None else thing.get("status", {}).get("conditions") or ()


def _condition(thing: Object, kind: str) -> Object | None:
    return next((one for one in _conditions(thing) if one["type"] == kind), None)


def _last(events: Sequence[Object], reasons: Container[Any]) -> Object | None:
    return next((one for one in reversed(events) if one.get("reason") in reasons), None)


_NO_ADDRESS = ErrorInfo(
    "no_address",
    "The environment is ready, but the cluster has given it no address.",
    "Check that something in the cluster serves LoadBalancer Services or the ingress class.",
)
