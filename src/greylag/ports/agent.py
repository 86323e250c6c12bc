"""The way to the agent in an environment."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """Where an environment's agent answers, and the token that it demands (never shown)."""

    url: str
    token: str = field(repr=False)


Decision = Literal["allow_once", "reject_once"]


@dataclass(frozen=True, slots=True)
class Session:
    """One of the agent's conversations."""

    session_id: str
    created_at: str
    updated_at: str
    message_count: int


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a session's history."""

    role: str
    content: str
    timestamp: int | None
    message_index: int


@dataclass(frozen=True, slots=True)
class Turn:
    """A message and all that answers it. ``status``: running, completed, cancelled, error."""

    turn_id: str
    session_id: str
    message_id: str
    status: str
    message: str
    started_at: str
    ended_at: str | None = None


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """What answers in an environment; ``demonstration`` says so when no real model is set."""

    agent: str
    version: str
    model: str
    demonstration: str | None = None


class AgentGateway(Protocol):
    """The way to the agent in an environment.

    Every method may raise ``AgentUnreachableError`` or ``AgentFailedError``. The request id of
    ``greylag.context`` passes through to the agent's log.
    """

    async def status(self, at: AgentAddress) -> AgentStatus:
        """Return what answers there."""

    async def create_session(self, at: AgentAddress) -> Session:
        """Start a conversation."""

    async def sessions(self, at: AgentAddress) -> Sequence[Session]:
        """Return the conversations, newest first."""

    async def session(self, at: AgentAddress, session_id: str) -> Session:
        """Return one conversation, or raise ``SessionNotFoundError``."""

    async def delete_session(self, at: AgentAddress, session_id: str) -> None:
        """End a conversation for good, or raise ``SessionNotFoundError``."""

    async def messages(self, at: AgentAddress, session_id: str) -> Sequence[ChatMessage]:
        """Return a conversation's history, oldest first, or raise ``SessionNotFoundError``."""

    async def turns(self, at: AgentAddress, session_id: str) -> Sequence[Turn]:
        """Return a conversation's turns, newest first, or raise ``SessionNotFoundError``."""

    async def start_turn(
        self, at: AgentAddress, session_id: str | None, message: str, message_id: str
    ) -> Turn:
        """Give the agent a message; without ``session_id`` in a new session. The same message id
        again is the same turn. Raises ``SessionNotFoundError``, ``SessionBusyError``,
        ``ConflictError`` (this ``message_id`` was used in another session) or ``TooLargeError``.
        """

    async def turn(self, at: AgentAddress, turn_id: str) -> Turn:
        """Return one turn, or raise ``TurnNotFoundError``."""

    def stream_turn(
        self, at: AgentAddress, turn_id: str, after: str | None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a turn's events: whole SSE frames as bytes, one or more at a time, from the event
        after id ``after`` (``None``: from the first), live until ``complete``. Entering raises
        ``TurnNotFoundError``, or ``InvalidRequestError`` for an id that is not of this turn.
        Iterating raises ``StreamCutError`` when the stream ends before ``complete``. Leaving closes
        the connection at once; the turn goes on.
        """

    async def cancel_turn(self, at: AgentAddress, turn_id: str) -> Turn:
        """Ask the turn to end; one that has ended stays so. May raise ``TurnNotFoundError``."""

    async def confirm(
        self, at: AgentAddress, turn_id: str, confirmation_id: str, decision: Decision
    ) -> None:
        """Answer a confirmation. The same answer again is accepted. Raises ``TurnNotFoundError``,
        ``ConfirmationNotFoundError`` or ``ConfirmationSettledError``.
        """

    async def close(self) -> None:
        """Close all connections."""
