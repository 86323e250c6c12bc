"""What the agents of active projects do now, told at once to whoever looks at a list of them.

Nothing of it is stored. As long as somebody looks, one request for each active project waits at its
agentd (``common/agent_api.py``: ``SHOW_ACTIVITY``), however many look: 300 active projects are 300
idle connections and 12 requests a second. What an agent tells is bounded, and counts for its
own project alone.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from greylag.common import agent_api
from greylag.common.agent_api import TurnState
from greylag.common.backoff import Pauses
from greylag.common.clock import parse_rfc3339
from greylag.common.concurrent import cancel_all
from greylag.common.typed import parse_encodable, shaped
from greylag.domain.errors import GreylagError
from greylag.domain.project import Project, Status
from greylag.ports import AgentGateway, AgentRequest
from greylag.services.agents import Agents

MOST_WATCHED = 1000
"""How many projects one process hears of; of others it is not known what their agents do."""
LINGER_SECONDS = 10.0
_MOST_TURNS = 100
_LONGEST_TEXT = 600
_MOST_BYTES = 2 * agent_api.MEBIBYTE
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 60.0
_SOON = 1.0
_BURST = 0.1
_TOO_SOON_PAUSE = 5.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AgentActivity:
    """What an agent does: its turns that run and those of late, and when it was last at work."""

    revision: str
    turns: tuple[TurnState, ...]
    last_at: datetime | None

    def count(self, state: str) -> int:
        """Return how many turns stand so."""
        return sum(turn.state == state for turn in self.turns)


@dataclass(slots=True, eq=False)
class _Watched:
    """One project that somebody looks at."""

    project: Project
    lookers: "set[Watch]" = field(default_factory=set)
    known: AgentActivity | None = None
    task: asyncio.Task[None] | None = None

    def tell(self, activity: AgentActivity | None) -> None:
        if activity == self.known:
            return
        self.known = activity
        for looker in self.lookers:
            looker.news.set()


class Watch:
    """One look at projects; ``news`` is set when an agent of theirs does something else."""

    def __init__(self, activities: "Activities") -> None:
        self._activities = activities
        self.news = asyncio.Event()

    def follow(self, projects: Iterable[Project]) -> None:
        """Hear of these projects, as far as they are active, and of no others any more."""
        self._activities.follow(self, [one for one in projects if one.status is Status.ACTIVE])

    def of(self, project: Project) -> AgentActivity | None:
        """Return what the project's agent does, ``None`` when that is not known."""
        return self._activities.known(project)


class Activities:
    """Hears of what agents do, for all who look at their projects in this process.

    Args:
        agents: knows where they are.
        gateway: the way there.
    """

    def __init__(self, agents: Agents, gateway: AgentGateway) -> None:
        self._agents = agents
        self._gateway = gateway
        self._watched: dict[str, _Watched] = {}

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Look at projects until the block ends. Whoever looks has asked whether they may."""
        watch = Watch(self)
        try:
            yield watch
        finally:
            self.follow(watch, ())

    def follow(self, watch: Watch, projects: Iterable[Project]) -> None:
        """Hear of ``projects`` for ``watch``; requests that nobody waits for any more end."""
        wanted = {project.id: project for project in projects}
        for record_id, watched in list(self._watched.items()):
            if record_id not in wanted and watch in watched.lookers:
                self._leave(watch, watched)
        for record_id, project in wanted.items():
            if record_id in self._watched:
                self._watched[record_id].project = project
                self._watched[record_id].lookers.add(watch)
            elif len(self._watched) < MOST_WATCHED:
                self._begin(watch, project)

    def known(self, project: Project) -> AgentActivity | None:
        """Return what is known of a project's agent."""
        watched = self._watched.get(project.id)
        return watched.known if watched else None

    def _begin(self, watch: Watch, project: Project) -> None:
        self._watched[project.id] = watched = _Watched(project, {watch})
        watched.task = asyncio.create_task(self._hear(watched), name=f"activity {project.id}")
        watched.task.add_done_callback(_note_defect)

    def _leave(self, watch: Watch, watched: _Watched) -> None:
        watched.lookers.discard(watch)
        if not watched.lookers:
            # Whoever goes from page to page looks again in a moment.
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self._end, watched)

    def _end(self, watched: _Watched) -> None:
        # Of one that was left more than once, the first call ends it; another may be in its place.
        record_id = watched.project.id
        if watched.lookers or watched.task is None or self._watched.get(record_id) is not watched:
            return
        watched.task.cancel()
        del self._watched[record_id]

    async def close(self) -> None:
        """Hear of nothing any more."""
        tasks = [one.task for one in self._watched.values() if one.task is not None]
        self._watched.clear()
        await cancel_all(tasks)

    async def _hear(self, watched: _Watched) -> None:
        pauses = Pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        while True:
            asked_at = time.monotonic()
            before = watched.known
            try:
                watched.tell(await self._ask(watched))
            except GreylagError:
                # It sleeps, restarts, or is of a version that does not tell: that is not known.
                watched.tell(None)
                await pauses.pause()
                continue
            pauses.worked()
            if time.monotonic() - asked_at < _SOON:
                # One that tells nothing new is to wait for news, and did not.
                await asyncio.sleep(_BURST if watched.known != before else _TOO_SOON_PAUSE)

    async def _ask(self, watched: _Watched) -> AgentActivity:
        at = await self._agents.reach(watched.project)
        known = watched.known
        query = {"since": known.revision} if known is not None else {}
        request = AgentRequest(agent_api.SHOW_ACTIVITY, query=query)
        async with self._gateway.relay(at, request) as answer:
            return await answer.read(_MOST_BYTES, _read)


def _read(body: bytes) -> AgentActivity:
    """Return what an agent, which may tell anything, tells of what it does."""
    told = parse_encodable(body)
    listed = [shaped(TurnState, one) for one in told["turns"][-_MOST_TURNS:]]
    whole = shaped(agent_api.Activity, told | {"turns": []})
    last = None if whole.last_at is None else parse_rfc3339(whole.last_at)
    # What was is not to come.
    last = last and min(last.astimezone(UTC), datetime.now(UTC))
    turns = tuple(one for one in listed if _length(one) < _LONGEST_TEXT)
    return AgentActivity(whole.revision[:_LONGEST_TEXT], turns, last)


def _length(turn: TurnState) -> int:
    return len(turn.turn_id + turn.session_id + turn.message_id + turn.state)


def _note_defect(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("activity_failed", exc_info=error)
