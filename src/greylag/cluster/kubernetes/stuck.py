"""Why an environment that is to run does not get on. Pure."""

from greylag.cluster.kubernetes import causes
from greylag.cluster.kubernetes.causes import Cause
from greylag.cluster.kubernetes.pods import (
    Object,
    condition,
    conditions,
    container,
    crashes,
    is_current,
    last,
)
from greylag.cluster.kubernetes.sight import PULL_REASONS, Sight

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
            return causes.refusal(words) or causes.not_created(one.get("reason", ""), words)
    return None


def _why_not_scheduled(sight: Sight, pod: Object) -> Cause | None:
    scheduled = condition(pod, "PodScheduled")
    if scheduled is None or scheduled["status"] == "True":
        return None
    refused = last(sight.events, {"ProvisioningFailed"})
    if refused is not None:
        return causes.volume_not_bound(refused.get("message", ""))
    return causes.unschedulable(scheduled.get("message", ""))


def _why_not_running(sight: Sight, pod: Object) -> Cause | None:
    status = container(pod)
    waiting = status.get("state", {}).get("waiting") or {}
    reason, words = waiting.get("reason", ""), waiting.get("message", "")
    if reason in PULL_REASONS:
        return _why_no_image(sight, pod, reason, words)
    if crashes(pod):
        ended = status.get("lastState", {}).get("terminated") or {}
        return causes.crash_loop(ended.get("exitCode"), sight.last_words)
    if reason in _CREATE_REASONS:
        return causes.not_created(reason, words)
    if reason == "ContainerCreating" and (event := last(sight.events, _MOUNT_REASONS)):
        return causes.volume_not_mounted(event.get("message", ""))
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
    return causes.image(name, reason, said, secret_missing=missing)


def _why_not_ready(sight: Sight, pod: Object) -> Cause | None:
    ended = container(pod).get("lastState", {}).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        return causes.out_of_memory()
    unhealthy = last(sight.events, {"Unhealthy"})
    return None if unhealthy is None else causes.probe_failing(unhealthy.get("message", ""))
