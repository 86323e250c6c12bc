"""What is to be told of an environment, from one look at its objects. Pure."""

from greylag.cluster.kubernetes import causes
from greylag.cluster.kubernetes.pods import (
    Object,
    container,
    is_current,
    is_ready,
    is_removed,
    last,
    lives,
)
from greylag.cluster.kubernetes.sight import Sight, is_idle
from greylag.cluster.kubernetes.stuck import why
from greylag.domain.errors import ErrorInfo
from greylag.domain.lifecycle import Observation, Observed, Step

NAMESPACE_READY = Step("namespace_ready", "The user's namespace and its rules are ready.")
QUOTA_CHECKED = Step("quota_checked", "The user's quota has room.")
PULLING = Step("pulling_image", "The image is being pulled.")
STARTED = Step("process_started", "The environment's container has started.")
READY = Step("agent_ready", "The agent is ready.")


def observed(sight: Sight) -> Observation:
    """Return what the domain is to know."""
    if not sight.wanted:
        return _resting(sight)
    pod = sight.pod
    if pod is None and any(is_removed(pod) or lives(pod) for pod in sight.pods):
        return Observation(Observed.STOPPING, error=_removal_of(sight))
    steps = _steps(sight, pod)
    if pod is not None and is_ready(pod) and is_current(sight.deployment):
        return _ready(sight.endpoint, steps)
    cause = why(sight)
    if cause is None:
        return Observation(Observed.STARTING, steps=steps)
    if cause.final:
        return Observation(Observed.FAILED, error=cause.error, terminal=True, steps=steps)
    return Observation(Observed.STARTING, error=cause.error, steps=steps)


def _ready(endpoint: str | None, steps: tuple[Step, ...]) -> Observation:
    if endpoint is None:
        return Observation(Observed.STARTING, error=_NO_ADDRESS, steps=steps)
    address = Step("address_assigned", f"The environment has its address {endpoint}.")
    return Observation(Observed.READY, endpoint=endpoint, steps=(*steps, address))


def _resting(sight: Sight) -> Observation:
    if sight.deployment is not None and not is_idle(sight):
        return Observation(Observed.STOPPING, error=_removal_of(sight))
    if sight.deployment is None and (not is_idle(sight) or is_removed(sight.claim)):
        return Observation(Observed.STOPPING, error=_removal_of(sight))
    parts = (sight.deployment, sight.claim, sight.service)
    nothing = all(part is None for part in parts)
    return Observation(Observed.ABSENT if nothing else Observed.STOPPED)


def _removal_of(sight: Sight) -> ErrorInfo | None:
    """Return what holds up the removal of a pod or the volume, told if it comes too late."""
    going = [("pod", pod) for pod in sight.pods if is_removed(pod)]
    if sight.claim is not None and is_removed(sight.claim):
        going.append(("volume claim", sight.claim))
    if not going:
        return None
    kind, first = going[0]
    meta = first["metadata"]
    return causes.stuck_removal(kind, meta["name"], list(meta.get("finalizers") or [])).error


def _steps(sight: Sight, pod: Object | None) -> tuple[Step, ...]:
    steps = [NAMESPACE_READY]
    if pod is None:
        return tuple(steps)
    steps.append(QUOTA_CHECKED)
    if node := pod["spec"].get("nodeName"):
        steps.append(Step("scheduled", f"The environment is placed on the node {node}."))
    started = container(pod).get("started") or "running" in container(pod).get("state", {})
    if last(sight.events, {"Pulling"}) is not None and not started:
        steps.append(PULLING)
    if started:
        steps.append(STARTED)
    if is_ready(pod):
        steps.append(READY)
    return tuple(steps)


_NO_ADDRESS = ErrorInfo(
    "no_address",
    "The environment is ready, but the cluster has given it no address.",
    "Check that something in the cluster serves LoadBalancer Services or the ingress class.",
)
