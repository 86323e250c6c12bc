"""Conversations: ours are UUIDs, the agent has ids of its own (and uses them again)."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from greylag.agentd.agent.types import (
    SESSION_UNKNOWN,
    AgentError,
    AgentPort,
    AgentRefusedError,
    HistoryFixedError,
)
from greylag.agentd.problems import RequestError, agent_failed, not_found
from greylag.agentd.records import HistoryCut, Records, SessionRecord, TurnRecord, session_title
from greylag.agentd.turns.engine import TurnEngine

_AGENT_WITHIN = 15.0
"""How long the agent may take over its half of a new session, which nobody needs at once."""
_CANNOT = "The agent that runs here cannot cut its history."

_log = structlog.get_logger(__name__)


class SessionService:
    """Makes, shows, names and deletes sessions; one that is not there is session_not_found.

    Args:
        agent: who has the other half of each session.
        records: where they are kept.
        engine: who ends the turns of a session that goes.
    """

    def __init__(self, agent: AgentPort, records: Records, engine: TurnEngine) -> None:
        self._agent = agent
        self._sessions = records.sessions
        self._turns = records.turns
        self._engine = engine

    async def create(self) -> SessionRecord:
        """Make a session. If the agent is not ready, it gets to know it with the first turn."""
        session_id = str(uuid.uuid4())
        title = session_title(session_id)
        agent_session_id: str | None = None
        if self._agent.state.status == "ready":
            try:
                async with asyncio.timeout(_AGENT_WITHIN):
                    agent_session_id = await self._agent.new_session(title)
            except (AgentError, TimeoutError) as error:
                reason = str(error) or "it took too long"
                _log.warning("agent_session_later", session_id=session_id, error=reason)
        now = time.time()
        session = SessionRecord(session_id, agent_session_id, title, now, now, 0)
        await self._sessions.add(session)
        self._engine.activity.touch()
        return await self.get(session_id)

    async def get(self, session_id: str) -> SessionRecord:
        """Return a session."""
        session = await self._sessions.get(session_id)
        if session is None:
            raise not_found("session", session_id)
        return session

    async def all(self) -> list[SessionRecord]:
        """Return every session, newest first."""
        return await self._sessions.all()

    async def rename(self, session_id: str, title: str) -> SessionRecord:
        """Call a session so (empty: as its first message begins), and return it."""
        await self.get(session_id)
        await self._sessions.rename(session_id, title)
        self._engine.activity.touch()
        return await self.get(session_id)

    async def cancel(self, session_id: str) -> bool:
        """Ask the running turn of a session to end; False when none runs."""
        await self.get(session_id)
        newest = await self._turns.newest(session_id, 1)
        if not newest or newest[0].status != "running":
            return False
        await self._engine.cancel(newest[0].turn_id)
        return True

    async def delete(self, session_id: str) -> None:
        """End a session for good: its turn is cancelled, what was said in it is removed."""
        session = await self.get(session_id)
        await self.cancel(session_id)
        turn_ids = await self._sessions.delete(session_id, time.time())
        await self._engine.forget(session_id, turn_ids)
        self._engine.activity.touch()
        if session.agent_session_id is None:
            return
        try:
            await self._agent.forget_session(session.agent_session_id)
        except AgentError as error:
            # The session is gone for every client; goose keeps an unused one, no more.
            _log.warning("agent_session_stays", session_id=session_id, error=str(error))

    @asynccontextmanager
    async def cutting(self, turn_id: str) -> AsyncIterator[HistoryCut | None]:
        """Make ready to let the agent forget a turn and those after it, which
        ``TurnRecords.forget`` does.

        No turn of the session begins in the ``with`` block. ``None`` says that the agent has
        forgotten it already.

        Raises:
            RequestError: history_not_cut, session_busy, agent_unavailable, agent_refused.
        """
        turn = await self._turns.get(turn_id)
        if turn is None:
            raise _not_cut("Only a turn of a session can be cut out of the agent's history.")
        async with self._engine.held(turn.session_id):
            turn = await self._engine.get(turn_id)  # as it is now that nobody else cuts it
            if turn.forgotten:
                yield None
                return
            cut = await self._prepared(turn)
            yield cut
            self._engine.activity.touch()
            await self._put_away(cut)

    async def _put_away(self, cut: HistoryCut) -> None:
        """Let the agent put away its old session if the new one has taken its place, and the new
        one if it never will.
        """
        # In this order: one that waits no longer has taken its place by then.
        waits = await self._engine.is_cut_left(cut)
        session = await self._sessions.get(cut.session_id)
        now = None if session is None else session.agent_session_id
        try:
            if cut.old is not None and now not in {cut.old, None}:
                await self._agent.replace_session(cut.old, str(now))
            elif not waits and cut.new not in {None, now}:
                await self._agent.forget_session(str(cut.new))
        except AgentError as error:
            _log.warning("agent_session_stays", session_id=cut.session_id, error=str(error))

    async def _prepared(self, turn: TurnRecord) -> HistoryCut:
        session = await self.get(turn.session_id)
        old = session.agent_session_id
        cut, position = await self._turns.end_from(turn, old)
        if self._agent.state.kind != "goose":
            raise _not_cut(_CANNOT)
        if old is not None and position is None:
            raise _not_cut("It is not known where in the agent's history this turn begins.")
        try:
            new = None if old is None else await self._agent.cut_session(old, position or 0)
        except HistoryFixedError as error:
            raise _not_cut(str(error)) from error
        except AgentError as error:
            if error.unknown_method:
                raise _not_cut(_CANNOT) from error
            if not isinstance(error, AgentRefusedError) or error.code != SESSION_UNKNOWN:
                raise agent_failed(error, _CANNOT) from error
            new = None  # it has lost all of it
        return replace(cut, new=new)


def _not_cut(why: str) -> RequestError:
    return RequestError("history_not_cut", why)
