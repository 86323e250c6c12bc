"""How an environment stands: what its objects tell, and Events and logs where they say more."""

from dataclasses import dataclass, replace
from typing import Any

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.cache import ProjectCache, ProjectKey, key_of
from greylag.cluster.kubernetes.failures import ApiError, stuck_removal, translated
from greylag.cluster.kubernetes.identity import (
    GENERATION_ANNOTATION,
    START_ANNOTATION,
    Object,
    annotation_of,
    is_edited,
    volume_claim_name,
)
from greylag.cluster.kubernetes.informer import Informers
from greylag.cluster.kubernetes.locator import AddressProbe, AgentLocator, endpoint_of
from greylag.cluster.kubernetes.namespace import POLICY_NAMES
from greylag.cluster.kubernetes.objects import (
    EnvironmentObjects,
    container,
    is_current,
    is_ready,
    is_removed,
    last,
    lives,
)
from greylag.cluster.kubernetes.options import Options
from greylag.cluster.kubernetes.tokens import names_a_key
from greylag.cluster.shared import plain
from greylag.domain.errors import ErrorInfo
from greylag.domain.lifecycle import Observation, Observed, Step
from greylag.domain.project import Environment

NAMESPACE_READY = Step("namespace_ready", "The user's namespace and its rules are ready.")
QUOTA_CHECKED = Step("quota_checked", "The user's quota has room.")
PULLING = Step("pulling_image", "The image is being pulled.")
STARTED = Step("process_started", "The environment's container has started.")
READY = Step("agent_ready", "The agent is ready.")

SYNC_SECONDS = 5.0
ALIVE_SECONDS = 1.0
QUIET_SECONDS = 1.5
"""An environment on which nothing happens for so long may be stuck: then Events are read."""

UNANSWERED_SECONDS = 0.02

_LAST_LINES = 5
_LONGEST_WORDS = 600


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
    ) -> None:
        self._api = api
        self._locator = locator
        self._probe = probe
        self._informers = informers
        self._cache = cache
        self._options = options
        self._seen: dict[ProjectKey, _Seen] = {}

    async def fresh(self) -> None:
        """Return when the caches are current; ``ClusterError`` when they are not."""
        await self._informers.synced(SYNC_SECONDS)
        if not await self._informers.alive(ALIVE_SECONDS):
            raise self._informers.trouble

    async def observe(self, environment: Environment) -> Observation:
        """Return how the environment stands."""
        await self.fresh()
        key = key_of(environment)
        version = self._cache.version(key)
        found = self.objects(environment)
        deep = found.needs_events and (self._cache.quiet_for(key) >= QUIET_SECONDS or found.waits)
        if deep:
            with translated():
                found = await self._deepened(environment, found)
        observation = self._judged(environment, found)
        again = QUIET_SECONDS if observation.state is Observed.STARTING and not deep else None
        if observation.state is Observed.READY and not await self._answers(environment, found):
            observation, again = _unanswered(observation), UNANSWERED_SECONDS
        self._seen[key] = _Seen(observation, environment, version, again)
        return observation

    async def latest(self, environment: Environment) -> Observation:
        """Return what was observed last if no object has changed since, else observe anew."""
        await self.fresh()
        key = key_of(environment)
        seen = self._seen.get(key)
        if seen is None or (seen.environment, seen.version) != (
            environment,
            self._cache.version(key),
        ):
            return await self.observe(environment)
        return seen.observation

    async def changed(self, environment: Environment, within: float) -> None:
        """Return once what was observed last may be old, or after ``within`` seconds."""
        key = key_of(environment)
        seen = self._seen.get(key)
        if seen is None:
            return
        if seen.again is not None:
            within = min(within, seen.again)
        await self._cache.changed(key, seen.version, within)

    def forget(self, environment: Environment) -> None:
        """Drop what is remembered of an environment that is gone."""
        key = key_of(environment)
        self._seen.pop(key, None)
        self._cache.forget(key)
        self._probe.forget(key)

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
        )

    async def _answers(self, environment: Environment, found: EnvironmentObjects) -> bool:
        if not self._options.probe or found.pod is None:
            return True
        url = await self._locator.url(environment, found.service)
        uid = str(found.pod["metadata"]["uid"])
        return url is not None and await self._probe.answers(key_of(environment), uid, url)

    def _judged(self, environment: Environment, found: EnvironmentObjects) -> Observation:
        seen = observed(found)
        # What an environment failed of is told first, unless somebody's change may have caused it.
        edited = found.deployment is not None and is_edited(found.deployment)
        asked = found.wanted and (edited or not found.failed_itself)
        if asked and (lost := self._lost(environment)) is not None:
            return replace(seen, state=Observed.FAILED, endpoint=None, error=lost, terminal=False)
        applied = annotation_of(found.deployment, GENERATION_ANNOTATION)
        if seen.terminal and applied != str(environment.generation):
            # It failed as it was asked for before: the new wish is a new try.
            return replace(seen, terminal=False)
        return seen

    def _lost(self, environment: Environment) -> ErrorInfo | None:
        """Return what is missing or changed that only applying all anew sets right."""
        names, find = environment.names, self._cache.find
        needed = [("NetworkPolicy", name) for name in POLICY_NAMES]
        needed += [("Service", names.service), ("Deployment", names.deployment)]
        if self._options.ingress_base_domain:
            needed.append(("Ingress", names.ingress))
        deployment = find("Deployment", names.namespace, names.deployment)
        if self._options.agent_key and not names_a_key(annotation_of(deployment, START_ANNOTATION)):
            return _drifted("The environment's token is of before there was a GREYLAG_AGENT_KEY.")
        for kind, name in needed:
            thing = find(kind, names.namespace, name)
            if thing is None:
                return _drifted(
                    f"The environment runs without its {kind} {name}, which somebody deleted."
                )
            if is_edited(thing):
                return _drifted(f"Somebody changed the environment's {kind} {name}.")
        return None

    async def _deepened(
        self, environment: Environment, found: EnvironmentObjects
    ) -> EnvironmentObjects:
        whole = replace(found, events=await self._events(environment, found))
        if (crashed := whole.crashed) is not None:
            words = await self._last_words(environment.names.namespace, *crashed)
            whole = replace(whole, last_words=words)
        return whole

    async def _events(
        self, environment: Environment, of: EnvironmentObjects
    ) -> list[dict[str, Any]]:
        """Return the Events of the pod and the claim, oldest first."""
        uids = {thing["metadata"]["uid"] for thing in (of.pod, of.claim) if thing}
        found: list[dict[str, Any]] = []
        for uid in sorted(uids):
            page = await self._api.list(
                "Event", environment.names.namespace, fields=f"involvedObject.uid={uid}"
            )
            found += page.items
        return sorted(found, key=_when)

    async def _last_words(self, namespace: str, pod: str, container: str) -> str:
        said = b""
        try:
            async with self._api.stream_log(
                namespace, pod, container=container, tail=_LAST_LINES, previous=True
            ) as chunks:
                async for chunk in chunks:
                    said = (said + chunk)[-4 * _LONGEST_WORDS :]
        except ApiError:
            return ""  # no log is left of that run, and the rest is worth telling without it
        lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines()]
        return plain(" | ".join(line for line in lines if line))[-_LONGEST_WORDS:]


def observed(found: EnvironmentObjects) -> Observation:
    """Return what the domain is to know."""
    if not found.wanted:
        return _resting(found)
    pod = found.pod
    if pod is None and any(is_removed(pod) or lives(pod) for pod in found.pods):
        return Observation(Observed.STOPPING, error=_removal_of(found))
    steps = _steps(found, pod)
    if pod is not None and is_ready(pod) and is_current(found.deployment):
        return _ready(found.endpoint, steps)
    cause = found.why()
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


def _resting(found: EnvironmentObjects) -> Observation:
    if not found.is_idle or (found.deployment is None and is_removed(found.claim)):
        return Observation(Observed.STOPPING, error=_removal_of(found))
    parts = (found.deployment, found.claim, found.service)
    nothing = all(part is None for part in parts)
    return Observation(Observed.ABSENT if nothing else Observed.STOPPED)


def _removal_of(found: EnvironmentObjects) -> ErrorInfo | None:
    """Return what holds up the removal of a pod or the volume, told if it comes too late."""
    going = [("pod", pod) for pod in found.pods if is_removed(pod)]
    if found.claim is not None and is_removed(found.claim):
        going.append(("volume claim", found.claim))
    if not going:
        return None
    return stuck_removal(*going[0]).error


def _steps(found: EnvironmentObjects, pod: Object | None) -> tuple[Step, ...]:
    steps = [NAMESPACE_READY]
    if pod is None:
        return tuple(steps)
    steps.append(QUOTA_CHECKED)
    if node := pod["spec"].get("nodeName"):
        steps.append(Step("scheduled", f"The environment is placed on the node {node}."))
    started = container(pod).get("started") or "running" in container(pod).get("state", {})
    if last(found.events, {"Pulling"}) is not None and not started:
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


def _unanswered(ready: Observation) -> Observation:
    error = ErrorInfo(
        "endpoint_unreachable",
        f"The agent is ready, but does not answer at {ready.endpoint} yet.",
        "Check GREYLAG_KUBE_REACH, and that a network leads from Greylag to that address.",
    )
    return replace(ready, state=Observed.STARTING, endpoint=None, error=error)


def _drifted(message: str) -> ErrorInfo:
    return ErrorInfo("environment_drifted", message, "Greylag sets it right by itself.")


def _when(event: Object) -> str:
    series = event.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event["metadata"].get("creationTimestamp"),
    )
    return next((str(time) for time in times if time), "")
