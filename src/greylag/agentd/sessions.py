"""Conversations: ours are UUIDs, the agent has ids of its own (and uses them again)."""

import time
import uuid

import structlog

from greylag.agentd.agent.types import AgentError, AgentPort
from greylag.agentd.problems import not_found
from greylag.agentd.records import Records, SessionRecord, session_title
from greylag.agentd.turns.engine import TurnEngine

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
                agent_session_id = await self._agent.new_session(title)
            except AgentError as error:
                _log.warning("agent_session_later", session_id=session_id, error=str(error))
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
        await self._engine.forget(turn_ids)
        self._engine.ask_again(session_id)
        self._engine.activity.touch()
        if session.agent_session_id is None:
            return
        try:
            await self._agent.forget_session(session.agent_session_id)
        except AgentError as error:
            # The session is gone for every client; goose keeps an unused one, no more.
            _log.warning("agent_session_stays", session_id=session_id, error=str(error))
