"""What the JSON API takes and gives of an environment's agent."""

from typing import Self

from pydantic import Field

from greylag.domain.names import MAX_ID_LENGTH
from greylag.ports.agent import AgentStatus, ChatMessage, Decision, Session, Turn
from greylag.services.messages import MAX_MESSAGE_ID_LENGTH
from greylag.web.schemas import In, Out, Text

_TIME = "2026-11-23T09:15:00.000Z"
_SESSION = "0d4f7c1e-6a35-4b0e-9c55-1f2f0c5f7a10"
_TURN = "5a1d0b6c2f3e4d51a7c8e9f001122334"


class AgentOut(Out):
    """What answers in the environment."""

    agent: str = Field(examples=["goose"])
    version: str = Field(examples=["1.52.0"])
    model: str = Field(examples=["scripted"])
    demonstration: str | None

    @classmethod
    def of(cls, status: AgentStatus) -> Self:
        """Return ``status`` as it is shown."""
        return cls.model_validate(status)


class SessionOut(Out):
    """A session: one conversation with the agent."""

    session_id: str = Field(examples=[_SESSION])
    created_at: str = Field(examples=[_TIME])
    updated_at: str = Field(examples=[_TIME])
    message_count: int = Field(examples=[2])

    @classmethod
    def of(cls, session: Session) -> Self:
        """Return ``session`` as it is shown."""
        return cls.model_validate(session)


class SessionsOut(Out):
    """The sessions of a project, newest first."""

    sessions: list[SessionOut]


class MessageOut(Out):
    """One message of a session's history."""

    role: str = Field(examples=["User"])
    content: str = Field(examples=["Hello"])
    timestamp: int | None = Field(description="Seconds since 1970.", examples=[1795424100])
    message_index: int = Field(examples=[0])

    @classmethod
    def of(cls, message: ChatMessage) -> Self:
        """Return ``message`` as it is shown."""
        return cls.model_validate(message)


class MessagesOut(Out):
    """The history of a session, oldest first."""

    messages: list[MessageOut]


class TurnOut(Out):
    """A message and all that answers it."""

    turn_id: str = Field(examples=[_TURN])
    session_id: str = Field(examples=[_SESSION])
    message_id: str = Field(examples=["b3c1"])
    status: str = Field(
        description="running, completed, cancelled or error.", examples=["completed"]
    )
    message: str = Field(examples=["Hello"])
    started_at: str = Field(examples=[_TIME])
    ended_at: str | None = Field(examples=[_TIME])

    @classmethod
    def of(cls, turn: Turn) -> Self:
        """Return ``turn`` as it is shown."""
        return cls.model_validate(turn)


class TurnsOut(Out):
    """The turns of a session, newest first."""

    turns: list[TurnOut]


class MessageIn(In):
    """A message to the agent."""

    message: Text = Field(min_length=1, examples=["What is in this folder?"])
    session_id: Text | None = Field(
        None, description="Left out: a new session.", min_length=1, max_length=MAX_ID_LENGTH
    )
    message_id: Text | None = Field(
        None,
        description="Made by the client: sent again with the same id, it is the same turn.",
        min_length=1,
        max_length=MAX_MESSAGE_ID_LENGTH,
        examples=["b3c1"],
    )


class ConfirmationIn(In):
    """The answer to the agent's question whether a tool may run."""

    decision: Decision = Field(examples=["allow_once"])
