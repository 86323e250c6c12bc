"""A cluster in memory: the verified fake of ``ports.cluster`` that tests step and break."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from greylag.cluster.news import News
from greylag.domain.errors import ClusterError, ErrorInfo, LeaseLostError, NotActiveError
from greylag.domain.lifecycle import (
    AGENT_READY,
    API_ANSWERS,
    PROCESS_STARTED,
    Observation,
    Observed,
    Step,
    Verb,
)
from greylag.domain.names import EnvironmentNames
from greylag.domain.project import Fence, Project, ProjectRef
from greylag.ports import AgentAddress

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
class _Environment:
    names: EnvironmentNames
    seen: Observation
    unknown: ErrorInfo | None = None
    lines: list[bytes] = field(default_factory=list)


class MemoryCluster:
    """Environments that are only states.

    With ``auto`` a started one is ready, and a stopping one stopped, at the next ``observe``;
    without it a test calls ``advance``. ``calls`` keeps each project's verbs in order.
    """

    kind = "memory"
    notice: str | None = None

    def __init__(self, *, auto: bool = False) -> None:
        self.calls: defaultdict[ProjectRef, list[VerbCall]] = defaultdict(list)
        self._auto = auto
        self._environments: dict[ProjectRef, _Environment] = {}
        self._faults: dict[tuple[ProjectRef, Verb], ClusterError] = {}
        self._gates: dict[tuple[ProjectRef, Verb], asyncio.Event] = {}
        self._observed: dict[ProjectRef, Observation] = {}
        self._unasked = News()
        self._news = asyncio.Event()
        self._fences: dict[ProjectRef, Fence] = {}
        self._count = 0
        self._closed = False

    # What a test does to it.

    def advance(self, ref: ProjectRef) -> None:
        """Let a starting environment be ready, or a stopping one stopped; else do nothing."""
        environment = self._environments.get(ref)
        if environment is None:
            return
        match environment.seen.state:
            case Observed.STARTING:
                endpoint = f"memory://{environment.names.namespace}/{environment.names.deployment}"
                steps = (PROCESS_STARTED, API_ANSWERS, AGENT_READY)
                self._set(ref, Observation(Observed.READY, endpoint=endpoint, steps=steps))
            case Observed.STOPPING:
                self._set(ref, Observation(Observed.STOPPED))
            case _:
                pass

    def reach_step(self, ref: ProjectRef, step: Step) -> None:
        """Let a starting environment report one more step on its way."""
        seen = self._environments[ref].seen
        self._set(ref, replace(seen, steps=(*seen.steps, step)))

    def end(self, ref: ProjectRef, error: ErrorInfo, *, terminal: bool = False) -> None:
        """Let an environment fail unasked; ``changes`` tells of it."""
        self._set(ref, Observation(Observed.FAILED, error=error, terminal=terminal))
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

    async def observe(self, project: Project) -> Observation:
        """Return the environment's state; with ``auto``, after moving it on."""
        if self._auto:
            self.advance(project.ref)
        seen = self._look(project.ref)
        self._observed[project.ref] = seen
        return seen

    async def prepare(self, project: Project) -> None:
        """Make the environment, stopped; one that exists is left alone."""
        async with self._verb(project, Verb.PREPARE):
            self._ensure(project)

    async def start(self, project: Project) -> None:
        """Make the environment start unless it runs; a stopping one raises ``ClusterError``."""
        async with self._verb(project, Verb.START):
            state = self._ensure(project).seen.state
            if state is Observed.STOPPING:
                raise ClusterError(
                    "The environment is still being stopped.", code="environment_stopping"
                )
            if state not in _ALIVE:
                self._set(project.ref, Observation(Observed.STARTING, steps=(PROCESS_STARTED,)))

    async def stop(self, project: Project) -> None:
        """Make the environment stop; one that is absent or stopped is left alone."""
        async with self._verb(project, Verb.STOP):
            state = self._look(project.ref).state
            if state not in {Observed.ABSENT, Observed.STOPPED}:
                self._set(project.ref, Observation(Observed.STOPPING))

    async def delete(self, project: Project) -> None:
        """Remove the environment; one that is alive raises ``ClusterError``."""
        async with self._verb(project, Verb.DELETE):
            environment = self._environments.get(project.ref)
            if environment is not None and environment.seen.state in _ALIVE:
                raise ClusterError(
                    "The environment must be stopped before it can be deleted.",
                    code="environment_running",
                )
            self._environments.pop(project.ref, None)
            self._tell()

    async def changed(self, project: Project, timeout: float) -> None:  # noqa: ASYNC109 - the port's
        """Return once the state differs from what was last observed, or after ``timeout``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._look(project.ref) == self._observed.get(project.ref):
                    await self._news.wait()

    def changes(self) -> AsyncIterator[ProjectRef]:
        """Yield what ``end`` and ``vanish`` did from now on, until ``close``."""
        return self._unasked.listen()

    async def reach(self, project: Project) -> AgentAddress:
        """Return ``memory://<namespace>/<deployment>``, which the agent in memory understands."""
        seen = self._look(project.ref)
        if seen.state is not Observed.READY or seen.endpoint is None:
            raise NotActiveError("The environment does not run.")
        return AgentAddress(seen.endpoint, token="opens-nothing")  # noqa: S106 - it guards nothing

    @asynccontextmanager
    async def logs(
        self, project: Project, *, follow: bool, tail: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open what ``say`` wrote."""
        yield self._lines(project.ref, follow=follow, tail=tail)

    async def inventory(self) -> Sequence[ProjectRef]:
        """Return every environment that exists."""
        return tuple(self._environments)

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
        environment = self._environments.get(ref)
        return environment.lines if environment is not None else []

    @asynccontextmanager
    async def _verb(self, project: Project, verb: Verb) -> AsyncIterator[None]:
        """Note a verb's beginning and end. It always lets others run in between, as a real cluster
        does, so that two workers that overlap are seen to.
        """
        call = VerbCall(verb, self._tick())
        self.calls[project.ref].append(call)
        gate = self._gates.get((project.ref, verb))
        await (gate.wait() if gate is not None else asyncio.sleep(0))
        try:
            self._raise_fence(project)
            if fault := self._faults.pop((project.ref, verb), None):
                raise fault
            yield
        finally:
            call.ended = self._tick()

    def _raise_fence(self, project: Project) -> None:
        fence = project.fence
        newest = self._fences.setdefault(project.ref, fence)
        if newest.record_id == fence.record_id and newest.number > fence.number:
            raise LeaseLostError("Another worker has taken this project over.")
        self._fences[project.ref] = fence

    def _tick(self) -> int:
        self._count += 1
        return self._count

    def _ensure(self, project: Project) -> _Environment:
        if project.ref not in self._environments:
            stopped = Observation(Observed.STOPPED)
            self._environments[project.ref] = _Environment(project.names, stopped)
            self._tell()
        return self._environments[project.ref]

    def _look(self, ref: ProjectRef) -> Observation:
        environment = self._environments.get(ref)
        if environment is None:
            return Observation(Observed.ABSENT)
        if environment.unknown is not None:
            return Observation(Observed.UNKNOWN, error=environment.unknown)
        return environment.seen

    def _set(self, ref: ProjectRef, seen: Observation) -> None:
        self._environments[ref].seen = seen
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
