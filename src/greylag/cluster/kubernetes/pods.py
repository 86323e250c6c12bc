"""Reading the JSON of pods, Deployments and Events: plain questions to one object. Pure."""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

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
