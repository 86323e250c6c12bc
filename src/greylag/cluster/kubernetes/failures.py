"""What goes wrong on Kubernetes: the API server's refusals, and why an environment does not get on.

An ``ApiError`` stays inside this package. A ``Cause`` is one sentence of ours and what to do, made
from Kubernetes' own words; the table for operators is docs/kubernetes-errors.md. ``translated`` and
``cluster_error`` turn refusals into errors that everyone can read.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

from greylag.cluster.kubernetes.identity import Object
from greylag.common.net import retry_after
from greylag.common.typed import parse_json
from greylag.domain.errors import ClusterError, ErrorInfo

LONGEST_QUOTE = 400

_FAILED = 500
_UNAUTHORIZED = 401
_INVALID = frozenset({400, 422})


class ApiError(Exception):
    """The API server answered, and did not do it.

    ``status`` is HTTP's; ``reason`` one word of Kubernetes (``NotFound``, ``Forbidden``, ...);
    ``retry_after`` seconds, if it asked for that.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}" if message else f"{status} {reason}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def is_gone(self) -> bool:
        """Whether a resourceVersion or a list's continuation is too old to go on from."""
        return self.status == 410 or self.reason in {"Expired", "Gone"}  # noqa: PLR2004 - HTTP's Gone

    @property
    def is_conflict(self) -> bool:
        """Whether the object has changed since it was read, or is there already."""
        return self.status == 409  # noqa: PLR2004 - HTTP's Conflict

    @property
    def is_refusal(self) -> bool:
        """Whether the account that asked is not known, or lacks the right to do this."""
        return self.status in {401, 403}

    @property
    def is_unavailable(self) -> bool:
        """Whether the API server could not work on it now, which says nothing of what was asked.

        An admission webhook that does not answer, or is slow, is told as 500 or 504 too, but is a
        cause of its own.
        """
        busy = self.status == 429 or self.status >= 500  # noqa: PLR2004 - HTTP's numbers
        return busy and not any(mark in self.message for mark in _WEBHOOKS)

    @classmethod
    def of_status(cls, status: Mapping[str, Any], *, code: int, words: str = "") -> Self:
        """Read a ``Status`` object; ``words`` stand in for its reason.

        ``code`` is HTTP's; 0 (it came in a stream): the one that it tells itself.
        """
        details = status.get("details")
        asked = details.get("retryAfterSeconds") if isinstance(details, dict) else None
        own = status.get("code")
        return cls(
            code or (own if isinstance(own, int) else _FAILED),
            str(status.get("reason") or words or "Unknown"),
            str(status.get("message") or ""),
            retry_after=retry_after(str(asked or "")),
        )

    @classmethod
    def of_answer(
        cls, code: int, words: str, body: bytes, asked: str | None, date: str | None = None
    ) -> Self:
        """Read an answer that is no success. What is not a ``Status`` (a proxy's page) is left.

        ``asked`` is its ``Retry-After``; ``date`` is its own, since the server's clock may be
        another than ours.
        """
        try:
            status = parse_json(body)
        except ValueError:
            status = {}
        error = cls.of_status(status if isinstance(status, dict) else {}, code=code, words=words)
        seconds = retry_after(asked or "", date or "")
        error.retry_after = error.retry_after if seconds is None else seconds
        return error


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an environment does not get on.

    A ``final`` cause ends an activation at once; the others are told when its time is over, as they
    may pass by themselves. What is ``lost`` does not: all objects must be applied anew.
    """

    error: ErrorInfo
    final: bool = False
    lost: bool = False


def cause(code: str, **words: str) -> Cause:
    """Return the cause of this code; ``words`` fill its sentence, Kubernetes' own quoted."""
    sentence, hint = CAUSES[code]
    return Cause(ErrorInfo(code, sentence.format(**words), hint), code in _FINAL, code in _LOST)


def quoted(words: str) -> str:
    """Return Kubernetes' own words on one line, cut where they run on."""
    line = " ".join(words.split())
    return line if len(line) <= LONGEST_QUOTE else f"{line[: LONGEST_QUOTE - 3]}..."


def refusal(words: str) -> Cause | None:
    """Return the cause of an admission's refusal, ``None`` when the words are not of that kind.

    They come from the API server as the answer to a call, and from a controller as a condition.
    """
    low = words.lower()
    code = next((code for mark, code in _REFUSALS.items() if mark in low), None)
    if code is None:
        return None
    if code == "admission_refused" and _NO_RIGHT.search(words):
        code = "cluster_forbidden"
    line = quoted(words)
    name = re.search(r"""(admission webhook|AdmissionPolicy) ["']([^"']+)""", line)
    account = re.search(r'serviceaccount "([^"]+)"', line)
    quota = re.search(r"exceeded quota: ([^,\s]+)", line)
    lack = re.search(r"requested: ([^,]+(?:,[a-z][\w./]*=[^,]+)*)", line)
    return cause(
        code,
        words=line,
        held="",
        quota=f" {quota.group(1)}" if quota else "",
        kind="ServiceAccount",
        name=account.group(1) if account else "",
        whose=f" {name.group(2)}" if name else "",
        wanted=f" ({lack.group(1).strip()} more was asked for)" if lack else "",
    )


def no_image(name: str, reason: str, words: str, *, secret_missing: str | None) -> Cause:
    """Return why the image ``name`` is not there. ``reason`` is the container's waiting reason."""
    low = words.lower()
    if secret_missing is not None and reason not in _NEVER:
        return cause("pull_secret_missing", secret=secret_missing, image=name)
    if any(mark in low for mark in _NOT_ALLOWED):
        return cause("image_not_allowed", image=name)
    if reason in _NEVER or any(mark in low for mark in _NOT_FOUND):
        return cause("image_not_found", image=name)
    return cause("image_pull_failed", image=name, words=quoted(words) or reason)


def unschedulable(words: str) -> Cause:
    """Return why no node takes the pod, from the condition ``PodScheduled``."""
    words = _ASIDE.split(words)[0]
    low = words.lower()
    if "persistentvolumeclaim" in low:
        return cause("volume_not_bound", words=quoted(words))
    if any(mark in low for mark in _ELSEWHERE):
        return cause("volume_elsewhere", words=quoted(words))
    lacking = sorted(set(re.findall(r"Insufficient ([\w./-]*\w)", words)))
    if not lacking:
        return cause("unschedulable", words=quoted(words))
    sentence = f"No node has enough free {' and '.join(lacking)} for the environment."
    hint = "Free some, add a node, or ask for less in the project's template."
    return Cause(ErrorInfo("unschedulable", sentence, hint))


def unmountable(words: str) -> Cause:
    """Return why a volume cannot be mounted, from the Event that says it."""
    held = "multi-attach" in words.lower()
    return cause("volume_held" if held else "volume_not_mounted", words=quoted(words))


def disruption(reason: str, words: str, *, node: str) -> Cause | None:
    """Return who ended a pod, from its condition ``DisruptionTarget`` or its status.

    https://kubernetes.io/docs/concepts/workloads/pods/disruptions/
    """
    low = words.lower()
    if "ephemeral" in low or "emptydir" in low:
        return cause("disk_limit_exceeded", words=words)
    code = _DISRUPTIONS.get(reason)
    if code is None:
        return cause("pod_failed", words=words or reason) if reason else None
    return cause(code, node=node, words=words or reason)


def added_container(name: str, what: str, *, final: bool = False) -> Cause:
    """Return that a container which the cluster added keeps the environment from its start."""
    return replace(cause("added_container_failing", name=name, what=what), final=final)


def crash_loop(exit_code: int | None, last_words: str) -> Cause:
    """Return that the container ends again and again. ``last_words``: the end of its log."""
    how = "" if exit_code is None else f" (exit code {exit_code})"
    said = f" Its last words: {quoted(last_words)}" if last_words else ""
    return cause("crash_loop", how=how, said=said)


def stuck_removal(kind: str, thing: Object) -> Cause:
    """Return what holds up the removal of an object."""
    meta = thing["metadata"]
    finalizers = meta.get("finalizers")
    held = f" It waits for: {', '.join(finalizers)}." if finalizers else ""
    return cause("removal_stuck", kind=kind, name=meta["name"], held=held)


def terminating(namespace: Object) -> Cause:
    """Return that a namespace is being removed, and what holds that up."""
    holding = [
        quoted(one.get("message", ""))
        for one in namespace.get("status", {}).get("conditions") or ()
        if one["type"] in _HOLDS_NAMESPACE and one["status"] == "True"
    ]
    held = f" It is held: {' '.join(holding)}" if holding else ""
    return cause("namespace_terminating", held=held)


@contextmanager
def translated() -> Iterator[None]:
    """Raise ``ClusterError`` for what the API server refuses inside, the cause chained."""
    try:
        yield
    except ApiError as error:
        raise cluster_error(error) from error


def cluster_error(error: ApiError) -> ClusterError:
    """Return what ``error`` means to users; ``terminal`` where trying again cannot help."""
    cause = refusal(error.message)
    if cause is not None:
        return of_cause(cause)
    words = quoted(error.message) or error.reason
    if error.status == _UNAUTHORIZED:
        return ClusterError(
            "The cluster does not know Greylag's credentials any more.",
            code="cluster_unauthorized",
            hint="Renew KUBE_TOKEN or the kubeconfig, and start Greylag again.",
        )
    if error.is_conflict:
        return ClusterError(
            f"Somebody else changes the environment at the same time: {words}",
            code="cluster_conflict",
            hint="Greylag tries again by itself.",
        )
    if error.status in _INVALID:
        return ClusterError(
            f"The cluster does not take what Greylag asks for: {words}",
            code="cluster_refused",
            hint="Check settings and template; `greylag manifests` shows what is asked for.",
            terminal=True,
        )
    return ClusterError(f"The cluster refused a step: {words}")


def of_cause(cause: Cause) -> ClusterError:
    """Return ``cause`` as an error to raise."""
    info = cause.error
    return ClusterError(info.message, code=info.code, hint=info.hint, terminal=cause.final)


CAUSES: Mapping[str, tuple[str, str]] = {
    "pull_secret_missing": (
        "The secret {secret}, with which the image {image} is to be pulled, is missing.",
        "Create it in the user's namespace, or correct GREYLAG_KUBE_IMAGE_PULL_SECRET.",
    ),
    "image_not_allowed": (
        "The registry does not let the image {image} be pulled.",
        "Check the pull secret, and that its account may read this image.",
    ),
    "image_not_found": (
        "The image {image} was not found.",
        "Check ACR_IMAGE: registry, name and tag.",
    ),
    "image_pull_failed": (
        "The image {image} could not be pulled: {words}",
        "Kubernetes goes on trying; check that the nodes reach the registry.",
    ),
    "unschedulable": (
        "No node takes the environment: {words}",
        "Check the node selector, the tolerations and the nodes' taints.",
    ),
    "volume_not_bound": (
        "The workspace's volume is not there yet: {words}",
        "Check GREYLAG_KUBE_STORAGE_CLASS and that its provisioner runs.",
    ),
    "volume_deleted": (
        "Somebody deleted the environment's volume, and its files with it; it gets a new one.",
        "Nothing else is lost; restore the files from a backup of your own if there is one.",
    ),
    "volume_being_deleted": (
        "Somebody deletes the environment's volume: its files go when the environment stops.",
        "Copy what you need out of the workspace while it runs.",
    ),
    "volume_elsewhere": (
        "The workspace's volume is on a node that is gone or takes no pods: {words}",
        "Bring that node back; the volume can be used nowhere else.",
    ),
    "volume_held": (
        "The workspace's volume is still attached to another node: {words}",
        "Kubernetes lets it go about six minutes after that node is lost; it goes on by itself.",
    ),
    "volume_not_mounted": (
        "The environment's volume cannot be mounted: {words}",
        "It may still be held by another node; Kubernetes goes on trying.",
    ),
    "crash_loop": (
        "The environment ends again and again just after its start{how}.{said}",
        "`greylag logs` shows what it says; activate the project to start it anew.",
    ),
    "out_of_memory": (
        "The environment took more memory than its limit and was ended.",
        "Choose a template with more memory for the project.",
    ),
    "disk_limit_exceeded": (
        "The environment wrote more outside of its workspace than it may and was ended: {words}",
        "It is started again by itself; large files belong into the workspace.",
    ),
    "evicted": (
        "The node {node} ran short and ended the environment: {words}",
        "It is started again by itself, on a node that has room.",
    ),
    "preempted": (
        "The environment had to make room for pods of a higher priority.",
        "It is started again by itself once a node has room; see GREYLAG_KUBE_PRIORITY_CLASS.",
    ),
    "drained": (
        "The environment was evicted from the node {node}, as when a node is drained.",
        "It is started again by itself, where a node takes it.",
    ),
    "node_lost": (
        "The node {node} is gone, does not answer, or lets the environment run there no more.",
        "It is started again by itself, on another node.",
    ),
    "node_not_ready": (
        "The node {node} that the environment runs on does not answer.",
        "Kubernetes moves it to another node after some minutes, if its volume can move.",
    ),
    "pod_failed": (
        "The cluster ended the environment: {words}",
        "It is started again by itself.",
    ),
    "pod_deleted": (
        "Somebody in the cluster deleted the environment's pod.",
        "It is started again by itself.",
    ),
    "container_ended": (
        "The environment's container {name} ended (exit code {exit_code}).",
        "It is started again by itself; `greylag logs` shows what it says.",
    ),
    "egress_closed": (
        "The environment has IPv6 addresses only, and is allowed to connect to none but DNS.",
        "Add ::/0 to GREYLAG_KUBE_EGRESS_CIDRS, and the cluster's own to GREYLAG_KUBE_POD_CIDRS.",
    ),
    "part_deleted": (
        "Somebody deleted the environment's {kind} {name}.",
        "It is made anew by itself.",
    ),
    "environment_contested": (
        "The environment's {kind} {name} is changed by {who} each time Greylag sets it right.",
        "Exempt objects with the label app.kubernetes.io/managed-by=greylag from what does that.",
    ),
    "added_container_failing": (
        "The container {name}, which the cluster added to the environment, {what}",
        "Ask whoever runs what adds it (an admission webhook), or exempt the users' namespaces.",
    ),
    "pod_cpu_exceeded": (
        "What the cluster adds to the environment asks for more CPU than its pod has: {words}",
        "Set GREYLAG_KUBE_SHARED_CPU=false: each container then has a limit of its own.",
    ),
    "container_not_created": (
        "The environment's container could not be made ({reason}): {words}",
        "`greylag manifests` shows what was asked for; activating again applies it anew.",
    ),
    "probe_failing": (
        "The environment runs, but its agent does not get ready: {words}",
        "`greylag logs` shows what it says.",
    ),
    "removal_stuck": (
        "The {kind} {name} is being removed and is not gone yet.{held}",
        "It goes by itself when what it waits for is done; see `kubectl describe`.",
    ),
    "quota_exceeded": (
        "The user's quota{quota} has no room for this environment{wanted}.",
        "Deactivate or delete another of the user's projects, or raise the quota.",
    ),
    "pod_security_refused": (
        "The cluster's Pod Security refused the environment: {words}",
        "Check the template and what in the cluster changes pods.",
    ),
    "webhook_refused": (
        "The cluster's admission control{whose} refused the environment: {words}",
        "Ask whoever runs that webhook or policy what it demands.",
    ),
    "webhook_unavailable": (
        "An admission webhook of the cluster does not answer: {words}",
        "Greylag tries again by itself; tell whoever runs that webhook.",
    ),
    "webhook_slow": (
        "The API server did not end a step in time; an admission webhook of the cluster is slow.",
        "Greylag tries again by itself; tell whoever runs the cluster's webhooks.",
    ),
    "namespace_terminating": (
        "The user's namespace is being removed, and is made anew when it is gone.{held}",
        "Greylag tries again by itself; whoever set a finalizer that is named must take it off.",
    ),
    "admission_refused": (
        "The cluster's own rules do not allow the environment: {words}",
        "Change what it names in template or settings, or the rule: LimitRange, quota, class.",
    ),
    "cluster_forbidden": (
        "The cluster does not let Greylag do this: {words}",
        "Give Greylag's account the verbs that docs/kubernetes.md lists.",
    ),
}
_FINAL = frozenset(
    {
        *("pull_secret_missing", "image_not_allowed", "image_not_found", "crash_loop"),
        *("quota_exceeded", "pod_security_refused", "webhook_refused", "cluster_forbidden"),
        "admission_refused",
    }
)
_LOST = frozenset({"part_deleted", "volume_deleted"})
# The first mark that is found decides, so the special ones stand before "is forbidden".
_REFUSALS = {
    "being terminated": "namespace_terminating",
    "aggregate container requests": "pod_cpu_exceeded",
    "exceeded quota": "quota_exceeded",
    "violates podsecurity": "pod_security_refused",
    "failed calling webhook": "webhook_unavailable",
    "within the allotted timeout": "webhook_slow",
    "denied the request": "webhook_refused",
    "denied request": "webhook_refused",
    "looking up service account": "part_deleted",
    "is forbidden": "admission_refused",
}
_HOLDS_NAMESPACE = frozenset({"NamespaceContentRemaining", "NamespaceFinalizersRemaining"})
_WEBHOOKS = ("failed calling webhook", "within the allotted timeout")
# What RBAC says, and no admission plugin: the user, and the verb that it lacks.
_NO_RIGHT = re.compile(r'[Uu]ser "?[^ ]+"? cannot ')
_DISRUPTIONS = {
    "PreemptionByScheduler": "preempted",
    "EvictionByEvictionAPI": "drained",
    "DeletionByTaintManager": "node_lost",
    "DeletionByPodGC": "node_lost",
    "NodeLost": "node_lost",
    "TerminationByKubelet": "evicted",
    "Evicted": "evicted",
    "Preempting": "preempted",
}
# What the scheduler adds to its reasons for each pod.
_ASIDE = re.compile(r"(?<=\.) (?=no new claims to deallocate|preemption:|not found$)")
_ELSEWHERE = ("volume node affinity", "didn't match persistentvolume")
_NEVER = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_NOT_ALLOWED = (
    "unauthorized",
    "authorization failed",
    "access denied",
    "no basic auth",
    "403 forbidden",
)
_NOT_FOUND = ("not found", "manifest unknown", "name unknown", "does not exist")
