"""What is to be told of an environment, from one look at its objects. Pure."""

from dataclasses import dataclass, replace
from typing import Any

from greylag.cluster.kubernetes import failures, objects
from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.cache import Board, Object, Slot
from greylag.cluster.kubernetes.failures import ApiError, told
from greylag.cluster.kubernetes.identity import (
    GENERATION_ANNOTATION,
    is_edited,
    project_slug,
    volume_claim_name,
)
from greylag.cluster.kubernetes.informer import Watches
from greylag.cluster.kubernetes.locator import Doorbell, Reacher, endpoint_of
from greylag.cluster.kubernetes.namespace import POLICY_NAMES
from greylag.cluster.kubernetes.objects import (
    Sight,
    container,
    is_current,
    is_idle,
    is_ready,
    is_removed,
    last,
    lives,
    why,
)
from greylag.cluster.kubernetes.options import Options
from greylag.cluster.shared import plain
from greylag.domain.errors import ErrorInfo
from greylag.domain.lifecycle import Observation, Observed, Step
from greylag.domain.project import Environment

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
    return failures.stuck_removal(kind, meta["name"], list(meta.get("finalizers") or [])).error


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


# Looking at one environment: its objects from the watches, and Events and logs where they help.

SYNC_SECONDS = 5.0
ALIVE_SECONDS = 1.0
QUIET_SECONDS = 1.5
"""An environment on which nothing happens for so long may be stuck: then Events are read."""

UNANSWERED_SECONDS = 0.02

_LAST_LINES = 5
_LONGEST_WORDS = 600


@dataclass(slots=True)
class _Seen:
    observation: Observation
    version: int
    again: float | None
    """After how many seconds another look may show more though no object has changed."""


class Looker:
    """Observes what ``board`` knows; raises ``ClusterError`` if that is old."""

    def __init__(  # noqa: PLR0913 - each is a part of its own
        self,
        api: Api,
        watches: Watches,
        board: Board,
        options: Options,
        *,
        reacher: Reacher,
        doorbell: Doorbell,
    ) -> None:
        self._api = api
        self._reacher = reacher
        self._doorbell = doorbell
        self._watches = watches
        self._board = board
        self._options = options
        self._seen: dict[Slot, _Seen] = {}

    async def fresh(self) -> None:
        """Return when the caches are current; ``ClusterError`` when they are not."""
        await self._watches.synced(SYNC_SECONDS)
        if not await self._watches.alive(ALIVE_SECONDS):
            raise self._watches.trouble

    async def observe(self, environment: Environment) -> Observation:
        """Return how the environment stands."""
        await self.fresh()
        slot = slot_of(environment)
        version = self._board.version(slot)
        shallow = self.sight(environment)
        deep = objects.needs_events(shallow) and (
            self._board.quiet_for(slot) >= QUIET_SECONDS or objects.waits(shallow)
        )
        with told():
            whole = await self._deepened(environment, shallow) if deep else shallow
        observation = self._judged(environment, whole)
        again = QUIET_SECONDS if observation.state is Observed.STARTING and not deep else None
        if observation.state is Observed.READY and not await self._answers(environment, whole):
            observation, again = _unanswered(observation), UNANSWERED_SECONDS
        self._seen[slot] = _Seen(observation, version, again)
        return observation

    async def changed(self, environment: Environment, within: float) -> None:
        """Return once what was observed last may be old, or after ``within`` seconds."""
        slot = slot_of(environment)
        last = self._seen.get(slot)
        if last is None:
            return
        if last.again is not None:
            within = min(within, last.again)
        await self._board.changed(slot, last.version, within)

    def forget(self, environment: Environment) -> None:
        """Drop what is remembered of an environment that is gone."""
        self._seen.pop(slot_of(environment), None)
        self._board.forget(slot_of(environment))
        self._doorbell.forget(slot_of(environment))

    def sight(self, environment: Environment) -> Sight:
        """Return what the caches hold of the environment."""
        names, find = environment.names, self._board.find
        service = find("Service", names.namespace, names.service)
        return Sight(
            deployment=find("Deployment", names.namespace, names.deployment),
            pods=self._board.pods(slot_of(environment)),
            claim=find("PersistentVolumeClaim", names.namespace, volume_claim_name(environment)),
            service=service,
            endpoint=endpoint_of(environment, self._options, service),
        )

    async def _answers(self, environment: Environment, whole: Sight) -> bool:
        if not self._options.probe or whole.pod is None:
            return True
        url = await self._reacher.url(environment, whole.service)
        uid = str(whole.pod["metadata"]["uid"])
        return url is not None and await self._doorbell.answers(slot_of(environment), uid, url)

    def _judged(self, environment: Environment, whole: Sight) -> Observation:
        seen = observed(whole)
        # What an environment failed of is told first, unless somebody's change may have caused it.
        edited = whole.deployment is not None and is_edited(whole.deployment)
        asked = whole.wanted and (edited or not whole.failed_itself)
        if asked and (lost := self._lost(environment)) is not None:
            return replace(seen, state=Observed.FAILED, endpoint=None, error=lost, terminal=False)
        applied = _annotation(whole.deployment, GENERATION_ANNOTATION)
        if seen.terminal and applied != str(environment.generation):
            # It failed as it was asked for before: the new wish is a new try.
            return replace(seen, terminal=False)
        return seen

    def _lost(self, environment: Environment) -> ErrorInfo | None:
        """Return what is missing or changed that only applying all anew sets right."""
        names, find = environment.names, self._board.find
        needed = [("NetworkPolicy", name) for name in POLICY_NAMES]
        needed += [("Service", names.service), ("Deployment", names.deployment)]
        if self._options.ingress_base_domain:
            needed.append(("Ingress", names.ingress))
        for kind, name in needed:
            thing = find(kind, names.namespace, name)
            if thing is None:
                return _drifted(
                    f"The environment runs without its {kind} {name}, which somebody deleted."
                )
            if is_edited(thing):
                return _drifted(f"Somebody changed the environment's {kind} {name}.")
        return None

    async def _deepened(self, environment: Environment, shallow: Sight) -> Sight:
        whole = replace(shallow, events=await self._events(environment, shallow))
        if (pod := objects.crashed(whole)) is not None:
            words = await self._last_words(environment.names.namespace, pod)
            whole = replace(whole, last_words=words)
        return whole

    async def _events(self, environment: Environment, shallow: Sight) -> list[dict[str, Any]]:
        """Return the Events of the pod and the claim, oldest first."""
        uids = {thing["metadata"]["uid"] for thing in (shallow.pod, shallow.claim) if thing}
        found: list[dict[str, Any]] = []
        for uid in sorted(uids):
            page = await self._api.list(
                "Event", environment.names.namespace, fields=f"involvedObject.uid={uid}"
            )
            found += page.items
        return sorted(found, key=_when)

    async def _last_words(self, namespace: str, pod: str) -> str:
        said = b""
        try:
            async with self._api.stream_log(
                namespace, pod, tail=_LAST_LINES, previous=True
            ) as chunks:
                async for chunk in chunks:
                    said = (said + chunk)[-4 * _LONGEST_WORDS :]
        except ApiError:
            return ""  # no log is left of that run, and the rest is worth telling without it
        lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines()]
        return plain(" | ".join(line for line in lines if line))[-_LONGEST_WORDS:]


def slot_of(environment: Environment) -> Slot:
    """Return what the board knows a project by."""
    return environment.names.namespace, project_slug(environment)


def _unanswered(ready: Observation) -> Observation:
    error = ErrorInfo(
        "endpoint_unreachable",
        f"The agent is ready, but does not answer at {ready.endpoint} yet.",
        "Check GREYLAG_KUBE_REACH, and that a network leads from Greylag to that address.",
    )
    return replace(ready, state=Observed.STARTING, endpoint=None, error=error)


def _drifted(message: str) -> ErrorInfo:
    return ErrorInfo("environment_drifted", message, "Greylag sets it right by itself.")


def _annotation(thing: Object | None, name: str) -> str | None:
    return None if thing is None else (thing["metadata"].get("annotations") or {}).get(name)


def _when(event: Object) -> str:
    series = event.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event["metadata"].get("creationTimestamp"),
    )
    return next((str(time) for time in times if time), "")
