"""How an environment stands: what its objects tell, and Events and logs where they say more."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.cache import ProjectCache, ProjectKey, key_of
from greylag.cluster.kubernetes.diagnosis import (
    EnvironmentObjects,
    is_current,
    is_ready,
    is_removed,
    last,
    lives,
)
from greylag.cluster.kubernetes.failures import (
    ApiError,
    Cause,
    cause,
    quoted,
    stuck_removal,
    terminating,
    translated,
)
from greylag.cluster.kubernetes.identity import (
    AGENT_POLICY,
    CHANGED_BY,
    DENY_POLICY,
    GENERATION_ANNOTATION,
    PROJECT_LABEL,
    SELECTOR,
    START_ANNOTATION,
    Object,
    annotation_of,
    is_edited,
    volume_claim_name,
)
from greylag.cluster.kubernetes.informer import Informers
from greylag.cluster.kubernetes.locator import AddressProbe, AgentLocator, Probed, endpoint_of
from greylag.cluster.kubernetes.options import Options, networks, quantity
from greylag.cluster.kubernetes.tokens import AgentKeys
from greylag.cluster.shared import end_of_log, plain
from greylag.domain.errors import ClusterError, ClusterUnavailableError, ErrorInfo
from greylag.domain.lifecycle import Observation, Observed
from greylag.domain.project import Environment, NewEvent

NAMESPACE_READY = NewEvent("namespace_ready", "The user's namespace and its rules are ready.")
QUOTA_CHECKED = NewEvent("quota_checked", "The user's quota has room.")
PULLING = NewEvent("pulling_image", "The image is being pulled.")
READY = NewEvent("agent_ready", "The agent is ready.")

SYNC_SECONDS = 5.0
ALIVE_SECONDS = 1.0
BEHIND_SECONDS = 3.0
"""How long a watch is waited for that has not told of something that is there."""

QUIET_SECONDS = 1.5
"""An environment on which nothing happens for so long may be stuck: then Events are read."""

OWNERLESS_SECONDS = 10.0
"""A pod that goes with its Deployment has begun to go by then."""

EXPLAINING_SECONDS = 5.0
"""How long after its beginning a look waits for Events and logs at most: what has not come by then
is not told, and that is all."""

REFRESH_SECONDS = 300.0
"""How often the Secret, the ConfigMap and so on of a running environment are seen to."""

CONTEST_SECONDS = 600.0
EDITS_SET_RIGHT = 3
"""How often an object is set right in that time; more is a contest, which nobody wins."""


_LAST_LINES = 5
_LONGEST_WORDS = 600
_MOST_LOG = 64 * 1024  # a record with its stacks is to be whole


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was observed last.

    Attributes:
        observation: what was told of it.
        environment: of whom.
        version: of the project's objects then.
        again: after how many seconds another look may show more though no object has changed.
    """

    observation: Observation
    environment: Environment
    version: int
    again: float | None


@dataclass(slots=True)
class _Refresh:
    """One time that what no watch tells of was seen to.

    Attributes:
        pod: the uid of the pod that was ready.
        at: when.
        refused: what kept it from being set right.
    """

    pod: str
    at: float
    refused: ErrorInfo | None = None


@dataclass(slots=True)
class _Known:
    """What is remembered of a project while it has objects.

    Whoever looks has it in hand: what is noted once the last object has gone is of the past, and
    counts for nothing that comes under the same names.

    Attributes:
        seen: the last look.
        refresh: the last time that what no watch tells of was seen to.
        edits: by kind and name: the edited version of it seen last, and when there were any.
        probed: how its address has answered.
    """

    seen: _Seen | None = None
    refresh: _Refresh | None = None
    edits: dict[tuple[str, str], tuple[str, tuple[float, ...]]] = field(default_factory=dict)
    probed: Probed = field(default_factory=Probed)


class EnvironmentObserver:
    """Observes what the caches know; raises ``ClusterError`` if that is old."""

    def __init__(  # noqa: PLR0913 - each is a part of its own
        self,
        api: Api,
        informers: Informers,
        cache: ProjectCache,
        options: Options,
        *,
        locator: AgentLocator,
        probe: AddressProbe,
        refreshed: Callable[[Environment, Object], Awaitable[bool]],
        lease: float,
    ) -> None:
        # A quarter of a lease is half of a worker's step (``Pace``): a look that took all of that
        # would tell nothing, and leave no time for what is done after it.
        self._explaining = min(EXPLAINING_SECONDS, lease / 4)
        self._api = api
        self._locator = locator
        self._probe = probe
        self._informers = informers
        self._cache = cache
        self._options = options
        self._refreshed = refreshed
        self._known: dict[ProjectKey, _Known] = {}
        cache.gone = lambda key: self._known.pop(key, None)

    async def fresh(self) -> None:
        """Return when the caches are current; ``ClusterError`` when they are not."""
        await self._informers.synced(SYNC_SECONDS)
        if not await self._informers.alive(ALIVE_SECONDS):
            raise self._informers.trouble

    async def observe(self, environment: Environment) -> Observation:
        """Return how the environment stands."""
        until = asyncio.get_running_loop().time() + self._explaining
        await self.fresh()
        key = key_of(environment)
        version = self._cache.version(key)
        known = self._known.setdefault(key, _Known()) if version else _Known()
        found = self.objects(environment)
        deep = found.needs_events and (self._cache.quiet_for(key) >= QUIET_SECONDS or found.waits)
        if deep:
            found = await self._deepened(environment, found, until)
        observation = self._judged(environment, found, known)
        again = QUIET_SECONDS if observation.state is Observed.STARTING and not deep else None
        if observation.state is Observed.READY and not await self._answers(
            environment, found, known.probed
        ):
            observation = _unanswered(observation, self._untaken(environment))
            again = known.probed.pause
        if observation.state is Observed.READY:
            observation = await self._seen_to(environment, found, known, observation)
        observation = self._with_namespace(environment, observation)
        known.seen = _Seen(observation, environment, version, again)
        return observation

    async def confirmed(self, environment: Environment, absent: Observation) -> Observation:
        """Return ``absent``, what was observed, if the API server itself has nothing either.

        Records are forgotten by that, and a watch may be behind though it is open. What is there
        all the same is observed anew, once the caches know of it.
        """
        names = environment.names
        by_name = {
            "Deployment": names.deployment,
            "PersistentVolumeClaim": volume_claim_name(environment),
        }
        asked = (
            self._api.list(kind, names.namespace, selector=SELECTOR, fields=f"metadata.name={name}")
            for kind, name in by_name.items()
        )
        with translated():
            pages = await asyncio.gather(*asked)
        there = [
            (kind, one) for kind, page in zip(by_name, pages, strict=True) for one in page.items
        ]
        for kind, one in there:
            await self._informers[kind].reached(one["metadata"]["resourceVersion"], BEHIND_SECONDS)
        seen = await self.observe(environment) if there else absent
        if there and seen.state is Observed.ABSENT:
            raise ClusterUnavailableError("The cluster has more than its watches have told of yet.")
        return seen

    async def latest(self, environment: Environment) -> Observation:
        """Return what was observed last if no object has changed since, else observe anew."""
        await self.fresh()
        key = key_of(environment)
        seen = self._last_look(key)
        if seen is None or (seen.environment, seen.version) != (
            environment,
            self._cache.version(key),
        ):
            return await self.observe(environment)
        return seen.observation

    async def changed(self, environment: Environment, within: float) -> None:
        """Return once what was observed last may be old, or after ``within`` seconds."""
        key = key_of(environment)
        seen = self._last_look(key)
        if seen is None:
            found = self.objects(environment)
            if found.deployment or found.claim or found.service:
                # Somebody took their labels away, so the cache does not count them for it.
                await self._cache.changed(key, 0, within)
            return  # all that it saw is gone since, or there was nothing to see
        again = within if seen.again is None else seen.again
        await self._cache.changed(key, seen.version, min(within, again))

    def _last_look(self, key: ProjectKey) -> _Seen | None:
        known = self._known.get(key)
        return None if known is None else known.seen

    def objects(self, environment: Environment) -> EnvironmentObjects:
        """Return what the caches hold of the environment."""
        names, find = environment.names, self._cache.find
        service = find("Service", names.namespace, names.service)
        return EnvironmentObjects(
            deployment=find("Deployment", names.namespace, names.deployment),
            pods=self._cache.pods(key_of(environment)),
            claim=find("PersistentVolumeClaim", names.namespace, volume_claim_name(environment)),
            service=service,
            endpoint=endpoint_of(environment, self._options, service),
            ended=self._cache.ended(key_of(environment)),
        )

    async def _answers(
        self, environment: Environment, found: EnvironmentObjects, probed: Probed
    ) -> bool:
        if not self._options.probe or found.pod is None:
            return True
        url = await self._locator.url(environment, found.service)
        uid = str(found.pod["metadata"]["uid"])
        return url is not None and await self._probe.answers(probed, uid, url)

    def _untaken(self, environment: Environment) -> str:
        """Say that no controller has told where it serves the Ingress, "" if one has."""
        names = environment.names
        ingress = self._cache.find("Ingress", names.namespace, names.ingress)
        if ingress is None or (ingress.get("status", {}).get("loadBalancer") or {}).get("ingress"):
            return ""
        of_class = ingress["spec"].get("ingressClassName") or "the cluster's default"
        return f" No controller of its class ({of_class}) says that it serves {names.ingress}."

    async def _seen_to(
        self,
        environment: Environment,
        found: EnvironmentObjects,
        known: _Known,
        ready: Observation,
    ) -> Observation:
        """Now and then see to what no watch tells of; return what that makes of an observation."""
        if found.deployment is None or found.pod is None:
            return ready
        uid, now = str(found.pod["metadata"]["uid"]), asyncio.get_running_loop().time()
        note, before = _Refresh(uid, now), known.refresh
        if before is not None and before.pod == uid and now < before.at + REFRESH_SECONDS:
            note = before
        elif before is not None and before.pod == uid:
            # Noted before it is done: if it takes so long that the look is given up, the next one
            # must get on without.
            known.refresh = note
            if not await self._refresh(environment, found.deployment, note):
                known.refresh = before
                lost = _drifted(
                    "The environment's Secret was deleted or changed, and its token with it."
                )
                return replace(ready, state=Observed.FAILED, endpoint=None, error=lost.error)
        # For a pod that is seen for the first time the time begins: its start has seen to all.
        known.refresh = note
        return replace(ready, error=ready.error or note.refused)

    async def _refresh(self, environment: Environment, deployment: Object, note: _Refresh) -> bool:
        """Set right what no watch tells of; tell if that was possible, as far as is known.

        What refuses it is noted, and no more: the environment runs, and may have to be stopped.
        """
        try:
            with translated():
                return await self._refreshed(environment, deployment)
        except ClusterUnavailableError:
            return True
        except ClusterError as error:
            note.refused = error.info
            return True

    def _judged(
        self, environment: Environment, found: EnvironmentObjects, known: _Known
    ) -> Observation:
        seen = observed(found)
        if not found.wanted:
            return self._judged_resting(environment, found, seen)
        if said := self._kept_of_volume(environment, found.claim):
            kept = NewEvent("volume_kept", said)
            seen = replace(seen, steps=(*seen.steps[:1], kept, *seen.steps[1:]))
        # What an environment failed of is told first, unless somebody's change may have caused it.
        edited = found.deployment is not None and is_edited(found.deployment)
        asked = edited or not found.failed_itself
        if asked and (lost := self._lost(environment, known)) is not None:
            if lost.error.code == "environment_contested" and not lost.final:
                return seen if seen.error else replace(seen, error=lost.error)
            return replace(
                seen, state=Observed.FAILED, endpoint=None, error=lost.error, terminal=lost.final
            )
        if seen.state is Observed.READY and seen.error is None and self._is_shut_in(found.pod):
            return replace(seen, error=cause("egress_closed").error)
        applied = annotation_of(found.deployment, GENERATION_ANNOTATION)
        # Why the pod before was lost keeps nothing from its start.
        why = replace(found, ended=None).why()
        held = seen.state is Observed.STARTING and found.never_ran and why is not None
        if (seen.terminal or held) and applied != str(environment.generation):
            # It failed, or was kept from its start, as it was asked for before: the new wish is a
            # new try, with the settings of now.
            return replace(seen, state=Observed.FAILED, terminal=False)
        return seen

    def _judged_resting(
        self, environment: Environment, found: EnvironmentObjects, seen: Observation
    ) -> Observation:
        quiet = self._cache.quiet_for(key_of(environment))
        if quiet < QUIET_SECONDS:
            # Of one that has just been made not all may be known yet, and what goes is not stuck.
            return replace(seen, error=None)
        if not found.is_ownerless or quiet < OWNERLESS_SECONDS:
            return seen
        name = environment.names.deployment
        lost = _drifted(
            f"The environment's Deployment {name} was deleted, or its labels were, and its pod "
            "runs on without it."
        )
        return Observation(Observed.FAILED, error=lost.error)

    def _with_namespace(self, environment: Environment, seen: Observation) -> Observation:
        """Return what was observed with the removal of its namespace as the cause, if there is one:
        all else that goes, or does not come, is of that.
        """
        namespace = self._cache.find("Namespace", "", environment.names.namespace)
        if namespace is None or not is_removed(namespace):
            return seen
        if seen.state is Observed.ABSENT or seen.terminal:
            return seen
        return replace(seen, error=terminating(namespace).error)

    def _is_shut_in(self, pod: Object | None) -> bool:
        """Tell whether a pod has IPv6 addresses alone, and may connect to none."""
        given = [] if pod is None else pod.get("status", {}).get("podIPs") or []
        allowed = {net.version for net in networks(self._options.egress_cidrs)}
        return bool(given) and all(":" in one["ip"] for one in given) and allowed == {4}

    def _kept_of_volume(self, environment: Environment, claim: Object | None) -> str:
        """Say what of the volume cannot be as the settings have it, "" where nothing is."""
        if claim is None:
            return ""
        try:
            template = self._options.template_of(environment)
        except ClusterError:
            return ""  # applying it tells that
        size = template.volume_size or self._options.volume_size
        storage_class = self._options.storage_class
        has = claim["spec"]["resources"]["requests"]["storage"]
        its_class = claim["spec"].get("storageClassName")
        said = []
        if quantity(has) != quantity(size):
            why = "cannot shrink" if quantity(size) < quantity(has) else "is not grown by its class"
            said.append(f"its size {has}, as a volume {why} to {size}")
        if storage_class is not None and its_class not in {None, storage_class}:
            said.append(f"its class {its_class}, as it cannot move to {storage_class}")
        return f"The volume keeps {' and '.join(said)}." if said else ""

    def _lost(self, environment: Environment, known: _Known) -> Cause | None:
        """Return what is missing or changed that only applying all anew sets right."""
        names, find = environment.names, self._cache.find
        needed = [("NetworkPolicy", name) for name in (DENY_POLICY, AGENT_POLICY)]
        needed += [("Service", names.service), ("Deployment", names.deployment)]
        if self._options.ingress_base_domain:
            needed.append(("Ingress", names.ingress))
        deployment = find("Deployment", names.namespace, names.deployment)
        if self._options.agent_key and not AgentKeys.named(
            annotation_of(deployment, START_ANNOTATION)
        ):
            return _drifted("The environment's token is of before there was a GREYLAG_AGENT_KEY.")
        for kind, name in needed:
            thing = find(kind, names.namespace, name)
            if thing is None:
                return _drifted(
                    f"The environment runs without its {kind} {name}, which is missing."
                )
            if is_edited(thing):
                return _edited(kind, thing, known)
        return None

    async def _deepened(
        self, environment: Environment, found: EnvironmentObjects, until: float
    ) -> EnvironmentObjects:
        """Return what was found with what Events and logs add, as far as it comes in time."""
        asked = self._events(environment, found, until)
        if found.crashed is None:
            return replace(found, events=await asked)
        # At once: one that hangs leaves the other its time.
        said = self._last_words(environment.names.namespace, *found.crashed, until)
        events, words = await asyncio.gather(asked, said)
        return replace(found, events=events, last_words=words)

    async def _events(
        self, environment: Environment, of: EnvironmentObjects, until: float
    ) -> list[dict[str, Any]]:
        """Return the Events of the one object whose may say more, oldest first: as many wait at
        once, as in a cluster that is full, each costs the API server a look each few seconds.
        """
        if of.telling is None:
            return []
        fields = f"involvedObject.uid={of.telling['metadata']['uid']}"
        with suppress(ApiError, ClusterUnavailableError, TimeoutError):
            async with asyncio.timeout_at(until):
                page = await self._api.list("Event", environment.names.namespace, fields=fields)
                return sorted(page.items, key=_when)
        return []

    async def _last_words(self, namespace: str, pod: str, container: str, until: float) -> str:
        said = b""
        opened = self._api.stream_log(
            namespace, pod, container=container, tail=4 * _LAST_LINES, previous=True
        )
        # Where no log is left of that run, the rest is worth telling without it.
        with suppress(ApiError, ClusterUnavailableError, TimeoutError):
            async with asyncio.timeout_at(until), opened as chunks:
                async for chunk in chunks:
                    said = (said + chunk)[-_MOST_LOG:]
        return end_of_log(said, _LAST_LINES, _LONGEST_WORDS)


def observed(found: EnvironmentObjects) -> Observation:
    """Return what the domain is to know."""
    if not found.wanted:
        return _resting(found)
    pod = found.pod
    if pod is None and any(is_removed(pod) or lives(pod) for pod in found.pods):
        ended = found.ended.error if found.ended else _removal_of(found)
        return Observation(Observed.STOPPING, error=ended)
    steps = _steps(found, pod)
    if pod is not None and is_ready(pod) and is_current(found.deployment):
        return _ready(found, steps)
    why = found.why()
    if why is None:
        return Observation(Observed.STARTING, steps=steps)
    if why.final or why.lost:
        return Observation(Observed.FAILED, error=why.error, terminal=why.final, steps=steps)
    return Observation(Observed.STARTING, error=why.error, steps=steps)


def _ready(found: EnvironmentObjects, steps: tuple[NewEvent, ...]) -> Observation:
    if found.endpoint is None:
        return Observation(Observed.STARTING, error=_no_address(found), steps=steps)
    address = NewEvent("address_assigned", f"The environment has its address {found.endpoint}.")
    # A volume claim that is being removed stays as long as the pod does.
    error = cause("volume_being_deleted").error if is_removed(found.claim) else None
    return Observation(
        Observed.READY, endpoint=found.endpoint, error=error, steps=(*steps, address)
    )


def _resting(found: EnvironmentObjects) -> Observation:
    if not found.is_idle or (found.deployment is None and is_removed(found.claim)):
        return Observation(Observed.STOPPING, error=_removal_of(found) or _running_on(found))
    parts = (found.deployment, found.claim, found.service)
    if all(part is None for part in parts):
        return Observation(Observed.ABSENT)
    # Whoever starts it gets an empty workspace, and is to know why.
    lost = found.deployment is not None and (found.claim is None or is_removed(found.claim))
    return Observation(Observed.STOPPED, error=cause("volume_deleted").error if lost else None)


def _removal_of(found: EnvironmentObjects) -> ErrorInfo | None:
    """Return what holds up the removal of a pod or the volume, told if it comes too late."""
    going = [("pod", pod) for pod in found.pods if is_removed(pod)]
    if found.claim is not None and is_removed(found.claim):
        going.append(("volume claim", found.claim))
    if not going:
        return None
    return stuck_removal(*going[0]).error


def _running_on(found: EnvironmentObjects) -> ErrorInfo | None:
    """Return that a pod lives which nobody ends, such as a copy of ours with its labels."""
    pod = next(filter(lives, found.pods), None)
    if pod is None:
        return None
    return ErrorInfo(
        "environment_stopping",
        f"The pod {pod['metadata']['name']} runs on, though the environment is not to run.",
        f"If somebody else made it, delete it or take its label {PROJECT_LABEL} off.",
    )


def _steps(found: EnvironmentObjects, pod: Object | None) -> tuple[NewEvent, ...]:
    steps = [NAMESPACE_READY]
    if pod is None:
        return tuple(steps)
    steps.append(QUOTA_CHECKED)
    if node := pod["spec"].get("nodeName"):
        steps.append(NewEvent("scheduled", f"The environment is placed on the node {node}."))
    containers = pod.get("status", {}).get("containerStatuses") or ()
    started = bool(containers) and all(
        one.get("started") or "running" in one.get("state", {}) for one in containers
    )
    if last(found.events, {"Pulling"}) is not None and not started:
        steps.append(PULLING)
    if started:
        images = dict.fromkeys(one.get("image", "") for one in pod["spec"]["containers"])
        of_what = f"The environment's containers have started, of {' and '.join(images)}."
        steps.append(NewEvent("process_started", plain(of_what)))
    if is_ready(pod):
        steps.append(READY)
    return tuple(steps)


def _no_address(found: EnvironmentObjects) -> ErrorInfo:
    failed = last(found.events, {"SyncLoadBalancerFailed", "AllocationFailed"})
    why = f": {quoted(failed.get('message', ''))}" if failed else "."
    return ErrorInfo(
        "no_address",
        f"The environment is ready, but the cluster has given it no address{why}",
        "Check that something in the cluster serves LoadBalancer Services or the ingress class.",
    )


def _unanswered(ready: Observation, why: str) -> Observation:
    error = ErrorInfo(
        "endpoint_unreachable",
        f"The agent is ready, but does not answer at {ready.endpoint} yet.{why}",
        "Check GREYLAG_KUBE_REACH, and that a network leads from Greylag to that address, which no "
        "policy of the cluster's own denies.",
    )
    return replace(ready, state=Observed.STARTING, endpoint=None, error=error, unheard=True)


def _drifted(message: str) -> Cause:
    return Cause(ErrorInfo("environment_drifted", message, "Greylag sets it right by itself."))


def _edited(kind: str, thing: Object, known: _Known) -> Cause:
    """Return that somebody changed an object, or changes it back again and again."""
    meta, who = thing["metadata"], thing.get(CHANGED_BY) or "somebody"
    now = asyncio.get_running_loop().time()
    version, times = known.edits.get((kind, meta["name"]), ("", ()))
    if version != meta["resourceVersion"]:
        times = (*(one for one in times if now - one < CONTEST_SECONDS), now)
        known.edits[kind, meta["name"]] = (meta["resourceVersion"], times)
    if len(times) <= EDITS_SET_RIGHT:
        return _drifted(f"The environment's {kind} {meta['name']} was changed by {who}.")
    # Without the policies that are meant for it no environment may run.
    found = cause("environment_contested", kind=kind, name=meta["name"], who=who)
    return replace(found, final=kind == "NetworkPolicy")


def _when(event: Object) -> str:
    series = event.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event["metadata"].get("creationTimestamp"),
    )
    return next((str(time) for time in times if time), "")
