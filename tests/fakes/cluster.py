"""A cluster in memory: the verified fake of the port that tests step and break."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from greylag.cluster.shared import ChangeFeed
from greylag.domain.errors import ClusterError, ErrorInfo, NotActiveError, OvertakenError
from greylag.domain.lifecycle import (
    AGENT_READY,
    API_ANSWERS,
    PROCESS_STARTED,
    Observation,
    Observed,
    Verb,
)
from greylag.domain.project import Environment, Fence, NewEvent, ProjectRef
from greylag.ports import AgentAddress, FoundEnvironment

_LOST = ErrorInfo("cluster_unavailable", "The cluster in memory was told to know nothing.")
_ALIVE = frozenset({Observed.STARTING, Observed.READY, Observed.STOPPING})


@dataclass(slots=True)
class VerbCall:
    """One verb as it was asked for. ``began`` and ``ended`` count all beginnings and ends of verbs
    of the cluster; ``ended`` is ``None`` while it runs (or for ever, when it was cancelled).
    """

    verb: Verb
    began: int
    ended: int | None = None


@dataclass(slots=True)
class _Simulated:
    environment: Environment
    seen: Observation
    unknown: ErrorInfo | None = None
    lines: list[bytes] = field(default_factory=list)


class MemoryCluster:
    """Environments that are only states.

    With ``auto`` a started one is ready, and a stopping one stopped, at the next ``observe``;
    without it a test calls ``advance``. ``calls`` keeps each project's verbs in order,
    ``observations`` counts how often each was observed.
    """

    kind = "memory"
    notice: str | None = None

    def __init__(self, *, auto: bool = False) -> None:
        self.calls: defaultdict[ProjectRef, list[VerbCall]] = defaultdict(list)
        self.observations: Counter[ProjectRef] = Counter()
        self.auto = auto
        self._environments: dict[ProjectRef, _Simulated] = {}
        self._faults: dict[tuple[ProjectRef, Verb], ClusterError] = {}
        self._gates: dict[tuple[ProjectRef, Verb], asyncio.Event] = {}
        self._observed: dict[ProjectRef, Observation] = {}
        self._unasked = ChangeFeed()
        self._news = asyncio.Event()
        self._fences: dict[ProjectRef, Fence] = {}
        self.foreign: dict[str, str] = {}
        """By user: the other Greylag that all of it belongs to."""
        self._count = 0
        self._closed = False

    # What a test does to it.

    def advance(self, ref: ProjectRef) -> None:
        """Let a starting environment be ready, or a stopping one stopped; else do nothing."""
        known = self._environments.get(ref)
        if known is None:
            return
        match known.seen.state:
            case Observed.STARTING:
                endpoint = f"memory://{known.environment.names.namespace}/{known.environment.names.deployment}"
                steps = (PROCESS_STARTED, API_ANSWERS, AGENT_READY)
                self._set(ref, Observation(Observed.READY, endpoint=endpoint, steps=steps))
            case Observed.STOPPING:
                self._set(ref, Observation(Observed.STOPPED))
            case _:
                pass

    def outdate(self, ref: ProjectRef, settings: str) -> None:
        """Let a ready environment lack these settings until it is started anew."""
        self._set(ref, replace(self._environments[ref].seen, outdated=settings))

    def reach_step(self, ref: ProjectRef, step: NewEvent) -> None:
        """Let a starting environment report one more step on its way."""
        seen = self._environments[ref].seen
        self._set(ref, replace(seen, steps=(*seen.steps, step)))

    def end(self, ref: ProjectRef, error: ErrorInfo, *, terminal: bool = False) -> None:
        """Let an environment fail unasked; ``changes`` tells of it."""
        self._set(ref, Observation(Observed.FAILED, error=error, terminal=terminal))
        self._unasked.tell(ref)

    def stumble(self, ref: ProjectRef, error: ErrorInfo, *, unheard: bool = False) -> None:
        """Let a running environment end and start again by itself (``unheard``: run on without
        an answer); ``changes`` tells of it.
        """
        self._set(ref, Observation(Observed.STARTING, error=error, unheard=unheard))
        self._unasked.tell(ref)

    def warn(self, ref: ProjectRef, error: ErrorInfo | None) -> None:
        """Let a running environment be well, but for ``error``; ``changes`` tells of it."""
        self._set(ref, replace(self._environments[ref].seen, error=error))
        self._unasked.tell(ref)

    def vanish(self, ref: ProjectRef) -> None:
        """Let an environment be deleted by someone else; ``changes`` tells of it."""
        self._environments.pop(ref, None)
        self._tell()
        self._unasked.tell(ref)

    def lose(self, ref: ProjectRef, error: ErrorInfo = _LOST) -> None:
        """Let ``observe`` answer ``UNKNOWN`` until ``find``."""
        self._environments[ref].unknown = error
        self._tell()

    def find(self, ref: ProjectRef) -> None:
        """End what ``lose`` began."""
        self._environments[ref].unknown = None
        self._tell()

    def fail_next(self, ref: ProjectRef, verb: Verb, error: ClusterError) -> None:
        """Let the next ``verb`` for this project raise ``error`` and change nothing."""
        self._faults[ref, verb] = error

    def hang(self, ref: ProjectRef, verb: Verb) -> asyncio.Event:
        """Let each ``verb`` for this project wait, before it does anything, for the event."""
        return self._gates.setdefault((ref, verb), asyncio.Event())

    def say(self, ref: ProjectRef, line: bytes) -> None:
        """Append one line (without its line end) to the environment's log."""
        self._environments[ref].lines.append(line)
        self._tell()

    # What the port says.

    async def observe(self, environment: Environment) -> Observation:
        """Return the environment's state; with ``auto``, after moving it on."""
        self.observations[environment.ref] += 1
        if self.auto:
            self.advance(environment.ref)
        seen = self._look(environment.ref)
        self._observed[environment.ref] = seen
        return seen

    async def prepare(self, environment: Environment) -> None:
        """Make the environment, stopped; one that exists is left alone."""
        async with self._verb(environment, Verb.PREPARE):
            self._ensure(environment)

    async def start(self, environment: Environment) -> None:
        """Make the environment start unless it runs; a stopping one raises ``ClusterError``."""
        async with self._verb(environment, Verb.START):
            state = self._ensure(environment).seen.state
            if state is Observed.STOPPING:
                raise ClusterError(
                    "The environment is still being stopped.", code="environment_stopping"
                )
            if state not in _ALIVE:
                self._set(environment.ref, Observation(Observed.STARTING, steps=(PROCESS_STARTED,)))

    async def stop(self, environment: Environment) -> None:
        """Make the environment stop; one that is absent or stopped is left alone."""
        async with self._verb(environment, Verb.STOP):
            state = self._look(environment.ref).state
            if state not in {Observed.ABSENT, Observed.STOPPED}:
                self._set(environment.ref, Observation(Observed.STOPPING))

    async def delete(self, environment: Environment) -> None:
        """Remove the environment; one that is alive raises ``ClusterError``."""
        async with self._verb(environment, Verb.DELETE):
            known = self._environments.get(environment.ref)
            if known is not None and known.seen.state in _ALIVE:
                raise ClusterError(
                    "The environment must be stopped before it can be deleted.",
                    code="environment_running",
                )
            self._environments.pop(environment.ref, None)
            self._tell()

    async def changed(self, environment: Environment, timeout: float) -> None:  # noqa: ASYNC109 - the port's
        """Return once the state differs from what was last observed, or after ``timeout``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._look(environment.ref) == self._observed.get(environment.ref):
                    await self._news.wait()

    def changes(self) -> AsyncIterator[ProjectRef]:
        """Yield what ``end`` and ``vanish`` did from now on, until ``close``."""
        return self._unasked.listen()

    async def reach(self, environment: Environment) -> AgentAddress:
        """Return ``memory://<namespace>/<deployment>``, which the agent in memory understands."""
        seen = self._look(environment.ref)
        if seen.state is not Observed.READY or seen.endpoint is None:
            raise NotActiveError("The environment does not run.")
        return AgentAddress(seen.endpoint, token="opens-nothing")

    @asynccontextmanager
    async def logs(
        self, environment: Environment, *, follow: bool, tail: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open what ``say`` wrote."""
        yield self._lines(environment.ref, follow=follow, tail=tail)

    async def inventory(self) -> Sequence[ProjectRef]:
        """Return every environment that exists."""
        return tuple(ref for ref in self._environments if ref.user_id not in self.foreign)

    async def found(self) -> Sequence[FoundEnvironment]:
        """Return every environment with what it was made from."""
        return tuple(
            FoundEnvironment(
                ref=ref,
                names=one.environment.names,
                record_id=self._fences[ref].record_id,
                claim=self._fences[ref].number,
                name=one.environment.name,
                template=one.environment.template,
                wanted=one.seen.state in {Observed.STARTING, Observed.READY, Observed.FAILED},
                instance=self.foreign.get(ref.user_id),
            )
            for ref, one in self._environments.items()
        )

    async def take_over(self, found: FoundEnvironment) -> None:
        """Forget that all of this user is another's, unless that is yet another."""
        if self.foreign.get(found.ref.user_id) == found.instance:
            self.foreign.pop(found.ref.user_id, None)

    async def close(self) -> None:
        """End ``changes`` and logs; the environments stay as they are."""
        self._closed = True
        self._unasked.close()
        self._tell()

    async def _lines(self, ref: ProjectRef, *, follow: bool, tail: int) -> AsyncIterator[bytes]:
        at = max(0, len(self._log(ref)) - tail)
        while True:
            news = self._news  # taken before reading, so that a line said meanwhile is not missed
            for line in self._log(ref)[at:]:
                at += 1
                yield line + b"\n"
            if not follow or self._closed:
                return
            await news.wait()

    def _log(self, ref: ProjectRef) -> list[bytes]:
        known = self._environments.get(ref)
        return known.lines if known is not None else []

    @asynccontextmanager
    async def _verb(self, environment: Environment, verb: Verb) -> AsyncIterator[None]:
        """Note a verb's beginning and end. It always lets others run in between, as a real cluster
        does, so that two workers that overlap are seen to.
        """
        call = VerbCall(verb, self._tick())
        self.calls[environment.ref].append(call)
        gate = self._gates.get((environment.ref, verb))
        await (gate.wait() if gate is not None else asyncio.sleep(0))
        try:
            self._raise_fence(environment)
            if fault := self._faults.pop((environment.ref, verb), None):
                raise fault
            yield
        finally:
            call.ended = self._tick()

    def _raise_fence(self, environment: Environment) -> None:
        fence = environment.fence
        newest = self._fences.setdefault(environment.ref, fence)
        if newest.record_id == fence.record_id and newest.number > fence.number:
            raise OvertakenError(newest.number)
        self._fences[environment.ref] = fence

    def _tick(self) -> int:
        self._count += 1
        return self._count

    def _ensure(self, environment: Environment) -> _Simulated:
        if environment.ref not in self._environments:
            stopped = Observation(Observed.STOPPED)
            self._environments[environment.ref] = _Simulated(environment, stopped)
            self._tell()
        return self._environments[environment.ref]

    def _look(self, ref: ProjectRef) -> Observation:
        known = self._environments.get(ref)
        if known is None:
            return Observation(Observed.ABSENT)
        if known.unknown is not None:
            return Observation(Observed.UNKNOWN, error=known.unknown)
        return known.seen

    def _set(self, ref: ProjectRef, seen: Observation) -> None:
        self._environments[ref].seen = seen
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
