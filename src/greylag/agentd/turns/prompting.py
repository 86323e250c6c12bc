"""Giving a turn's message to the agent, in the agent's own session."""

import structlog

from greylag.agentd.agent.errors import (
    AgentDiedError,
    AgentError,
    AgentRefusedError,
    AgentUnavailableError,
)
from greylag.agentd.agent.port import AgentPort
from greylag.agentd.agent.types import PromptResult
from greylag.agentd.journal.journal import JournalError, JournalFullError
from greylag.agentd.records.database import StorageError, session_title
from greylag.agentd.records.sessions import SessionRecords
from greylag.agentd.turns.errors import TurnError
from greylag.agentd.turns.provider_errors import SESSION_UNKNOWN, refusal
from greylag.agentd.turns.run import TurnRun
from greylag.agentd.turns.translate import TurnEvent

RESTARTED = TurnError(
    "agent_restarted", "The agent restarted while it answered. Send the message again."
)

_log = structlog.get_logger()


class Prompting:
    """Finds or makes the agent's session for ours, and asks."""

    def __init__(self, agent: AgentPort, sessions: SessionRecords) -> None:
        self._agent = agent
        self._sessions = sessions

    async def ask(self, run: TurnRun, agent_session_id: str | None) -> PromptResult:
        """Give the agent the turn's message and return how the answer ended.

        Args:
            run: the turn.
            agent_session_id: what the agent calls the turn's session; None if it has none yet.

        Raises:
            AgentError: the agent did not answer.
            JournalError: the answer could not be kept.
            StorageError: the records could not be written.
        """
        if agent_session_id is None:
            return await self._prompt(run, await self._new_session(run.turn.session_id))
        try:
            return await self._prompt(run, agent_session_id)
        except AgentRefusedError as error:
            if error.code != SESSION_UNKNOWN:
                raise
            _log.warning("agent_session_lost")
        words = "The agent has lost what was said in this session before; it starts afresh."
        run.emit(TurnEvent("status", {"message": words, "session_id": run.turn.session_id}))
        return await self._prompt(run, await self._new_session(run.turn.session_id))

    async def _new_session(self, session_id: str) -> str:
        agent_session_id = await self._agent.new_session(session_title(session_id))
        await self._sessions.bind(session_id, agent_session_id)
        return agent_session_id

    async def _prompt(self, run: TurnRun, agent_session_id: str) -> PromptResult:
        # No await between the two: a cancel either finds the session's id, or is seen here.
        if run.cancelled:
            return PromptResult("cancelled", None)
        run.agent_session_id = agent_session_id
        return await self._agent.prompt(agent_session_id, run.turn.message, run)


def failure_of(error: AgentError | JournalError | StorageError) -> TurnError:
    """Return what an error means for the turn, in the words that its user gets."""
    match error:
        case AgentRefusedError():
            return refusal(error)
        case AgentDiedError():
            return RESTARTED
        case AgentUnavailableError():
            return TurnError("agent_unavailable", str(error))
        case JournalError():
            full = isinstance(error, JournalFullError)
            return TurnError("journal_full" if full else "journal_failed", str(error))
        case StorageError():
            return TurnError("storage_failed", str(error))
        case _:
            return TurnError("agent_failed", str(error))
