"""Why an environment does not get on: Kubernetes' words, turned into one sentence and what to do.

The table for operators is docs/kubernetes-errors.md. ``final`` causes end an activation at once;
the others are told when its time is over, as they may pass by themselves.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from greylag.domain.errors import ErrorInfo

LONGEST_QUOTE = 400


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an environment does not get on."""

    error: ErrorInfo
    final: bool = False


def quoted(words: str) -> str:
    """Return Kubernetes' own words on one line, cut where they run on."""
    line = " ".join(words.split())
    return line if len(line) <= LONGEST_QUOTE else f"{line[: LONGEST_QUOTE - 3]}..."


def refusal(words: str) -> Cause | None:
    """Return the cause of an admission's refusal, ``None`` when the words are not of that kind.

    They come from the API server as the answer to a call, and from a controller as a condition.
    """
    low = words.lower()
    for mark, make in _REFUSALS:
        if mark in low:
            return make(quoted(words))
    return None


def image(name: str, reason: str, words: str, *, secret_missing: str | None) -> Cause:
    """Return why the image ``name`` is not there. ``reason`` is the container's waiting reason."""
    low = words.lower()
    if secret_missing is not None and reason not in _NEVER:
        error = ErrorInfo(
            "pull_secret_missing",
            f"The secret {secret_missing}, with which the image {name} is to be pulled, "
            "is missing.",
            "Create it in the user's namespace, or correct GREYLAG_KUBE_IMAGE_PULL_SECRET.",
        )
        return Cause(error, final=True)
    if any(mark in low for mark in _NOT_ALLOWED):
        error = ErrorInfo(
            "image_not_allowed",
            f"The registry does not let the image {name} be pulled.",
            "Check the pull secret, and that its account may read this image.",
        )
        return Cause(error, final=True)
    if reason in _NEVER or any(mark in low for mark in _NOT_FOUND):
        error = ErrorInfo(
            "image_not_found",
            f"The image {name} was not found.",
            "Check ACR_IMAGE: registry, name and tag.",
        )
        return Cause(error, final=True)
    error = ErrorInfo(
        "image_pull_failed",
        f"The image {name} could not be pulled: {quoted(words) or reason}",
        "Kubernetes goes on trying; check that the nodes reach the registry.",
    )
    return Cause(error)


def unschedulable(words: str) -> Cause:
    """Return why no node takes the pod, from the condition ``PodScheduled``."""
    if "persistentvolumeclaim" in words.lower():
        return volume_not_bound(words)
    lacking = sorted(set(re.findall(r"Insufficient ([\w./-]*\w)", words)))
    if lacking:
        sentence = f"No node has enough free {' and '.join(lacking)} for the environment."
        hint = "Free some, add a node, or ask for less in the project's template."
    else:
        sentence = f"No node takes the environment: {quoted(words)}"
        hint = "Check the node selector, the tolerations and the nodes' taints."
    return Cause(ErrorInfo("unschedulable", sentence, hint))


def volume_not_bound(words: str) -> Cause:
    """Return why the workspace's volume is not there."""
    error = ErrorInfo(
        "volume_not_bound",
        f"The workspace's volume is not there yet: {quoted(words)}",
        "Check GREYLAG_KUBE_STORAGE_CLASS and that its provisioner runs.",
    )
    return Cause(error)


def volume_not_mounted(words: str) -> Cause:
    """Return why the volume or a secret cannot be mounted."""
    error = ErrorInfo(
        "volume_not_mounted",
        f"The environment's volume cannot be mounted: {quoted(words)}",
        "It may still be held by another node; Kubernetes goes on trying.",
    )
    return Cause(error)


def crash_loop(exit_code: int | None, last_words: str) -> Cause:
    """Return that the container ends again and again. ``last_words``: the end of its log."""
    how = "" if exit_code is None else f" (exit code {exit_code})"
    said = f" Its last words: {quoted(last_words)}" if last_words else ""
    error = ErrorInfo(
        "crash_loop",
        f"The environment ends again and again just after its start{how}.{said}",
        "`greylag logs` shows what it says; activate the project to start it anew.",
    )
    return Cause(error, final=True)


def out_of_memory() -> Cause:
    """Return that the container was killed as it took more memory than its limit."""
    error = ErrorInfo(
        "out_of_memory",
        "The environment took more memory than its limit and was ended.",
        "Choose a template with more memory for the project.",
    )
    return Cause(error)


def not_created(reason: str, words: str) -> Cause:
    """Return why the container could not be made at all."""
    error = ErrorInfo(
        "container_not_created",
        f"The environment's container could not be made ({reason}): {quoted(words)}",
        "`greylag manifests` shows what was asked for; activating again applies it anew.",
    )
    return Cause(error)


def probe_failing(words: str) -> Cause:
    """Return that the container runs and its agent does not get ready."""
    error = ErrorInfo(
        "probe_failing",
        f"The environment runs, but its agent does not get ready: {quoted(words)}",
        "`greylag logs` shows what it says.",
    )
    return Cause(error)


def stuck_removal(kind: str, name: str, finalizers: list[str]) -> Cause:
    """Return what holds up a removal."""
    held = f" It waits for: {', '.join(finalizers)}." if finalizers else ""
    error = ErrorInfo(
        "removal_stuck",
        f"The {kind} {name} is being removed and is not gone yet.{held}",
        "It goes by itself when what it waits for is done; see `kubectl describe`.",
    )
    return Cause(error)


def _quota(words: str) -> Cause:
    resources = re.search(r"requested: ([^,]+(?:,[a-z][\w./]*=[^,]+)*)", words)
    wanted = f" ({resources.group(1).strip()} more was asked for)" if resources else ""
    error = ErrorInfo(
        "quota_exceeded",
        f"The user's quota has no room for this environment{wanted}.",
        "Deactivate or delete another of the user's projects, or raise the quota.",
    )
    return Cause(error, final=True)


def _pod_security(words: str) -> Cause:
    error = ErrorInfo(
        "pod_security_refused",
        f"The cluster's Pod Security refused the environment: {words}",
        "Check the template and what in the cluster changes pods.",
    )
    return Cause(error, final=True)


def _webhook_refused(words: str) -> Cause:
    name = re.search(r"""(admission webhook|AdmissionPolicy) ["']([^"']+)""", words)
    whose = f" {name.group(2)}" if name else ""
    error = ErrorInfo(
        "webhook_refused",
        f"The cluster's admission control{whose} refused the environment: {words}",
        "Ask whoever runs that webhook or policy what it demands.",
    )
    return Cause(error, final=True)


def _webhook_unavailable(words: str) -> Cause:
    error = ErrorInfo(
        "webhook_unavailable",
        f"An admission webhook of the cluster does not answer: {words}",
        "Greylag tries again by itself; tell whoever runs that webhook.",
    )
    return Cause(error)


def _terminating(_words: str) -> Cause:
    error = ErrorInfo(
        "namespace_terminating",
        "The user's namespace is being removed; it is made anew when it is gone.",
        "Greylag tries again by itself.",
    )
    return Cause(error)


def _no_access(words: str) -> Cause:
    error = ErrorInfo(
        "cluster_forbidden",
        f"The cluster does not let Greylag do this: {words}",
        "Give Greylag's account the verbs that docs/kubernetes.md lists.",
    )
    return Cause(error, final=True)


# The first mark that is found decides, so the special ones stand before "is forbidden".
_REFUSALS: tuple[tuple[str, Callable[[str], Cause]], ...] = (
    ("being terminated", _terminating),
    ("exceeded quota", _quota),
    ("violates podsecurity", _pod_security),
    ("failed calling webhook", _webhook_unavailable),
    ("denied the request", _webhook_refused),
    ("denied request", _webhook_refused),
    ("is forbidden", _no_access),
)
_NEVER = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_NOT_ALLOWED = (
    "unauthorized",
    "authorization failed",
    "access denied",
    "no basic auth",
    "403 forbidden",
)
_NOT_FOUND = ("not found", "manifest unknown", "name unknown", "does not exist")
