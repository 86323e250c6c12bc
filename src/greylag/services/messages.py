"""A message to a project's agent: wake the environment if it sleeps, then relay the turn."""

import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from greylag.common.agent_api import Turn
from greylag.domain.audit import name_of
from greylag.domain.errors import InvalidRequestError
from greylag.domain.project import Desired, Project, ProjectRef, Status
from greylag.domain.users import Action, Principal
from greylag.ports import AgentAddress, AgentGateway
from greylag.services.agents import Agents
from greylag.services.projects import Projects

MAX_MESSAGE_ID_LENGTH = 128
MESSAGE_ID_FORM = rf"^[^\x00-\x1f\x7f-\x9f]{{1,{MAX_MESSAGE_ID_LENGTH}}}$"


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
        self, principal: Principal, ref: ProjectRef, new: NewMessage
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the agent a message and open the stream of whole SSE frames that answers it.

        Leaving stops the relay; the turn goes on.

        Raises:
            GreylagError: on entering: what can be told before the first byte, by ``Projects.want``
                and, of an active project, by ``AgentGateway.start_turn``.
            InvalidRequestError: on entering: the message is empty or too long.
            StreamCutError: on iterating: the turn goes on and is to be resumed.
        """
        _check(new)
        project = await self._projects.want(principal, ref, Desired.ACTIVE, Action.MESSAGES_SEND)
        if project.settled and project.status is Status.ACTIVE:
            at = await self._agents.reach(project)
            turn = await self._start(principal, project, at, new)
            async with self._gateway.stream_turn(at, turn.turn_id, None) as frames:
                yield frames
            return
        yield self._wake_and_answer(principal, project, new)

    async def _wake_and_answer(
        self, principal: Principal, project: Project, new: NewMessage
    ) -> AsyncIterator[bytes]:
        words = f"{project.name} is {project.status}: waking its environment."
        async for frame in self._agents.waking(project, words):
            yield frame
        at = await self._agents.awake(project)
        turn = await self._start(principal, project, at, new)
        async with self._gateway.stream_turn(at, turn.turn_id, None) as frames:
            async for part in frames:
                yield part

    async def _start(
        self, principal: Principal, project: Project, at: AgentAddress, new: NewMessage
    ) -> Turn:
        message_id = new.message_id or uuid.uuid4().hex
        on = f"{name_of(project.ref)}/sessions/{new.session_id or ''}"
        async with self._agents.audit.doing(
            principal, Action.MESSAGES_SEND, on, message_id=message_id
        ):
            return await self._gateway.start_turn(
                at, new.session_id, new.message, message_id, principal.name
            )


def _check(new: NewMessage) -> None:
    if not new.message.strip():
        raise InvalidRequestError("message must not be empty.")
    if new.message_id is not None and not re.fullmatch(MESSAGE_ID_FORM, new.message_id):
        raise InvalidRequestError(
            f"message_id must have 1 to {MAX_MESSAGE_ID_LENGTH} characters, none of them control"
            " characters."
        )
