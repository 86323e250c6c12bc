"""The agent of an active project: its sessions and turns, and the environment's log."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from greylag.common import sse
from greylag.domain.errors import ClusterError, InvalidRequestError, NotActiveError
from greylag.domain.project import Desired, Event, Project, Status
from greylag.domain.users import Action, Principal
from greylag.ports import (
    AgentAddress,
    AgentGateway,
    AgentStatus,
    ChatMessage,
    Cluster,
    Decision,
    Session,
    Turn,
)
from greylag.services.projects import Projects

MAX_LOG_LINES = 10_000


class Agents:
    """The use cases of what runs in an environment.

    Each raises what ``Projects`` raises for a wrong user or project, ``NotActiveError`` when the
    environment does not run, ``AgentUnreachableError``, ``AgentFailedError``, and what its
    method of ``AgentGateway`` raises.
    """

    def __init__(self, projects: Projects, cluster: Cluster, gateway: AgentGateway) -> None:
        self._projects = projects
        self._cluster = cluster
        self._gateway = gateway

    async def address(
        self,
        principal: Principal,
        user_id: str,
        project_id: str,
        action: Action = Action.AGENT_READ,
    ) -> AgentAddress:
        """Return where the project's agent answers a principal who may do ``action`` with it."""
        project = await self._projects.get(principal, user_id, project_id, action)
        return await self.reach(project)

    async def reach(self, project: Project) -> AgentAddress:
        """Return where an active project's agent answers."""
        if project.status is not Status.ACTIVE:
            raise NotActiveError(f"Project {project.project_id} is {project.status}, not active.")
        return await self._cluster.reach(project.environment)

    async def status(self, principal: Principal, user_id: str, project_id: str) -> AgentStatus:
        """Return what answers in the environment."""
        return await self._gateway.status(await self.address(principal, user_id, project_id))

    async def create_session(self, principal: Principal, user_id: str, project_id: str) -> Session:
        """Start a conversation."""
        return await self._gateway.create_session(
            await self.address(principal, user_id, project_id, Action.AGENT_WRITE)
        )

    async def sessions(
        self, principal: Principal, user_id: str, project_id: str
    ) -> Sequence[Session]:
        """Return the conversations, newest first."""
        return await self._gateway.sessions(await self.address(principal, user_id, project_id))

    async def session(
        self, principal: Principal, user_id: str, project_id: str, session_id: str
    ) -> Session:
        """Return one conversation."""
        at = await self.address(principal, user_id, project_id)
        return await self._gateway.session(at, session_id)

    async def delete_session(
        self, principal: Principal, user_id: str, project_id: str, session_id: str
    ) -> None:
        """End a conversation for good."""
        at = await self.address(principal, user_id, project_id, Action.AGENT_WRITE)
        await self._gateway.delete_session(at, session_id)

    async def messages(
        self, principal: Principal, user_id: str, project_id: str, session_id: str
    ) -> Sequence[ChatMessage]:
        """Return a conversation's history, oldest first."""
        at = await self.address(principal, user_id, project_id)
        return await self._gateway.messages(at, session_id)

    async def turns(
        self, principal: Principal, user_id: str, project_id: str, session_id: str
    ) -> Sequence[Turn]:
        """Return a conversation's turns, newest first."""
        at = await self.address(principal, user_id, project_id)
        return await self._gateway.turns(at, session_id)

    async def turn(self, principal: Principal, user_id: str, project_id: str, turn_id: str) -> Turn:
        """Return one turn."""
        at = await self.address(principal, user_id, project_id)
        return await self._gateway.turn(at, turn_id)

    async def stream_turn(
        self, principal: Principal, user_id: str, project_id: str, turn_id: str, after: str | None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a turn's events again, as whole SSE frames, from the one after id ``after``."""
        at = await self.address(principal, user_id, project_id)
        return self._gateway.stream_turn(at, turn_id, after)

    async def cancel_turn(
        self, principal: Principal, user_id: str, project_id: str, turn_id: str
    ) -> Turn:
        """Ask a turn to end."""
        at = await self.address(principal, user_id, project_id, Action.AGENT_WRITE)
        return await self._gateway.cancel_turn(at, turn_id)

    async def confirm(  # noqa: PLR0913 - the path of the URL, and the answer
        self,
        principal: Principal,
        user_id: str,
        project_id: str,
        turn_id: str,
        confirmation_id: str,
        *,
        decision: Decision,
    ) -> None:
        """Answer a turn's question whether a tool may run."""
        at = await self.address(principal, user_id, project_id, Action.AGENT_WRITE)
        await self._gateway.confirm(at, turn_id, confirmation_id, decision)

    async def logs(
        self, principal: Principal, user_id: str, project_id: str, *, follow: bool, tail: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the environment's log: its last ``tail`` lines (10,000 at most), then what comes."""
        project = await self._projects.get(principal, user_id, project_id, Action.LOGS_READ)
        return self._cluster.logs(project.environment, follow=follow, tail=min(tail, MAX_LOG_LINES))


# A message to a project's agent: wake the environment if it sleeps, then relay the turn.

MAX_MESSAGE_ID_LENGTH = 128


@dataclass(frozen=True, slots=True)
class NewMessage:
    """What a client sends; without ``session_id`` in a new session.

    A client that repeats a message after a broken connection repeats its ``message_id`` too, and
    gets the same turn.
    """

    message: str
    session_id: str | None = None
    message_id: str | None = None


class Messages:
    """The use case of talking to an agent."""

    def __init__(self, projects: Projects, agents: Agents, gateway: AgentGateway) -> None:
        self._projects = projects
        self._agents = agents
        self._gateway = gateway

    @asynccontextmanager
    async def send(
        self, principal: Principal, user_id: str, project_id: str, new: NewMessage
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the agent a message and open the stream of whole SSE frames that answers it.

        Entering raises what can be told before the first byte: what ``Projects`` raises,
        ``InvalidRequestError``, ``ProjectDeletingError`` and, of an active project, what
        ``AgentGateway.start_turn`` raises. What goes wrong later is raised by
        the iterator; ``StreamCutError`` means that the turn goes on and is to be resumed. Leaving
        stops the relay; the turn goes on.
        """
        _check(new)
        project = await self._projects.want(
            principal, user_id, project_id, Desired.ACTIVE, Action.MESSAGES_SEND
        )
        message_id = new.message_id or uuid.uuid4().hex
        if project.settled and project.status is Status.ACTIVE:
            at = await self._agents.reach(project)
            turn = await self._start(at, new, message_id)
            async with self._gateway.stream_turn(at, turn.turn_id, None) as frames:
                yield frames
            return
        # Only what follows is told.
        newest = await self._projects.newest_events(project)
        before = newest[-1].seq if newest else 0
        yield self._wake_and_answer(project, new, message_id, before)

    async def _wake_and_answer(
        self, project: Project, new: NewMessage, message_id: str, before: int
    ) -> AsyncIterator[bytes]:
        yield _status_frame(f"{project.name} is {project.status}: waking its environment.")
        async for event in self._projects.progress(project, before):
            yield _status_frame(event.message, event)
        awake = await self._projects.settled(project)
        if awake is None or awake.status is not Status.ACTIVE:
            raise ClusterError("The project was stopped before it had become active.")
        at = await self._agents.reach(awake)
        turn = await self._start(at, new, message_id)
        async with self._gateway.stream_turn(at, turn.turn_id, None) as frames:
            async for part in frames:
                yield part

    async def _start(self, at: AgentAddress, new: NewMessage, message_id: str) -> Turn:
        return await self._gateway.start_turn(at, new.session_id, new.message, message_id)


def _check(new: NewMessage) -> None:
    if not new.message.strip():
        raise InvalidRequestError("message must not be empty.")
    if new.message_id is not None and not (
        1 <= len(new.message_id) <= MAX_MESSAGE_ID_LENGTH and new.message_id.isprintable()
    ):
        raise InvalidRequestError(
            f"message_id must have 1 to {MAX_MESSAGE_ID_LENGTH} printable characters."
        )


def _status_frame(message: str, event: Event | None = None) -> bytes:
    content: dict[str, object] = {"message": message}
    if event is not None:
        content |= {"code": event.code, "status": event.status, "hint": event.hint}
    return sse.encode({"type": "status", "content": content})
