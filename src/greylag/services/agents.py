"""What runs in a project's environment: its agent's API and turns, its log, and talking to it: a
message wakes the environment if it sleeps, and is answered.

While an environment cannot be asked, what was said and done there is told from the copy that
workers keep (`transcripts.py`).
"""

import asyncio
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, TypeVar

from greylag.common import sse
from greylag.common.agent_api import (
    TERMINALS,
    Decision,
    ForwardedAnswer,
    ForwardedRequest,
    ForwardedSocket,
    OpenSocket,
    Operation,
    Socket,
    Turn,
)
from greylag.common.concurrent import merged
from greylag.domain.audit import name_of
from greylag.domain.errors import (
    AgentUnreachableError,
    ClusterError,
    InvalidRequestError,
    NotActiveError,
    RefusalError,
)
from greylag.domain.project import Desired, Event, Project, ProjectRef, Status
from greylag.domain.transcript import KeptSession
from greylag.domain.users import Action, Principal
from greylag.ports import (
    AgentAddress,
    AgentAnswer,
    AgentGateway,
    AgentRequest,
    AgentStatus,
    Cluster,
)
from greylag.services.projects import Projects
from greylag.services.transcripts import Transcripts

MAX_LOG_LINES = 10_000
MAX_MESSAGE_ID_LENGTH = 128
MESSAGE_ID_FORM = rf"^[^\x00-\x1f\x7f-\x9f]{{1,{MAX_MESSAGE_ID_LENGTH}}}$"
_T = TypeVar("_T")
_Answer = Callable[[AgentAddress], AbstractAsyncContextManager[AsyncIterator[bytes]]]


@dataclass(frozen=True, slots=True)
class NewMessage:
    """What a client sends; without ``session_id`` in a new session.

    A client that repeats a message after a broken connection repeats its ``message_id`` too, and
    gets the same turn.
    """

    message: str
    session_id: str | None = None
    message_id: str | None = None


@dataclass(frozen=True, slots=True)
class Agents:
    """The use cases of what runs in an environment.

    Each fails as ``Projects`` does for a wrong user or project, as its method of ``AgentGateway``
    does, and by ``NotActiveError`` when the environment does not run; ``send`` wakes it instead.
    ``terminal`` tells whether people may run things there themselves. ``transcripts`` answers some
    of what is asked of an environment that does not run.
    """

    projects: Projects
    cluster: Cluster
    gateway: AgentGateway
    _: KW_ONLY
    terminal: bool = True
    transcripts: Transcripts | None = None

    async def address(
        self, principal: Principal, ref: ProjectRef, action: Action = Action.AGENT_READ
    ) -> AgentAddress:
        """Return where the project's agent answers a principal who may do ``action`` with it."""
        project = await self.projects.get(principal, ref, action)
        if action is Action.TERMINAL_USE and not self.terminal:
            raise RefusalError("Terminals and commands are switched off here.", "terminal_off")
        return await self.reach(project)

    async def reach(self, project: Project) -> AgentAddress:
        """Return where an active project's agent answers."""
        if project.status is not Status.ACTIVE:
            hint = "It is being started: ask again in a moment." if _coming(project) else None
            raise NotActiveError(
                f"Project {project.project_id} is {project.status}, not active.{_why(project)}",
                hint=hint,
            )
        try:
            return await self.cluster.reach(project.environment)
        except NotActiveError as error:
            # It has just ended, and the reconciler, which starts it again, is not there yet.
            raise AgentUnreachableError("The environment is not running at this moment.") from error

    async def status(self, principal: Principal, ref: ProjectRef) -> AgentStatus:
        """Return what answers in the environment."""
        return await self.gateway.status(await self.address(principal, ref))

    async def relay(
        self, principal: Principal, ref: ProjectRef, request: AgentRequest
    ) -> AbstractAsyncContextManager[AgentAnswer]:
        """Return the agent's answer to an operation of its API, to be opened; of an environment
        that does not run, a copy's, where there is one.
        """
        action = action_of(request.operation)
        if self.transcripts is not None and request.operation.kept:
            project = await self.projects.get(principal, ref, action)
            if project.status is not Status.ACTIVE:
                copy = await self.transcripts.answer(project, request)
                if copy is not None:
                    return nullcontext(copy)
            at = await self.reach(project)
        else:
            at = await self.address(principal, ref, action)
        answer = self.gateway.relay(at, request)
        if request.operation.method == "GET":
            return answer
        changed = {**request.told, "operation": request.operation.name}
        doing = self.projects.gate.audit.doing(principal, action, _object(ref, request), **changed)
        return _opened(answer, doing)

    async def kept(
        self, principal: Principal, ref: ProjectRef, session_id: str
    ) -> KeptSession | None:
        """Return what the copy has of a session that is read in it while nobody can be asked."""
        project = await self.projects.get(principal, ref, Action.AGENT_READ)
        if self.transcripts is None or project.status is Status.ACTIVE:
            return None
        return await self.transcripts.kept(project, session_id)

    async def socket(
        self, principal: Principal, ref: ProjectRef, socket: Socket, parts: Mapping[str, str]
    ) -> AbstractAsyncContextManager[OpenSocket]:
        """Return a WebSocket of the agent's, to be opened."""
        at = await self.address(principal, ref, Action.TERMINAL_USE)
        about = (principal, Action.TERMINAL_USE, name_of(ref) + socket.path.format(**parts))
        doing = self.projects.gate.audit.doing(*about, operation=f"open_{socket.name}")
        open_still = self.projects.gate.audit.lasting(*about, operation=f"close_{socket.name}")
        return _opened(self.gateway.socket(at, socket, parts), doing, open_still)

    async def forward(
        self, principal: Principal, ref: ProjectRef, port: int, request: ForwardedRequest
    ) -> AbstractAsyncContextManager[ForwardedAnswer]:
        """Return what a port of the environment answers, to be opened."""
        at = await self.address(principal, ref, Action.PREVIEW_USE)
        return self.gateway.forward(at, port, request)

    async def forward_socket(
        self,
        principal: Principal,
        ref: ProjectRef,
        port: int,
        request: ForwardedRequest,
        protocols: Sequence[str],
    ) -> AbstractAsyncContextManager[ForwardedSocket]:
        """Return a WebSocket to a port of the environment, to be opened."""
        at = await self.address(principal, ref, Action.PREVIEW_USE)
        return self.gateway.forward_socket(at, port, request, protocols)

    @asynccontextmanager
    async def send(
        self, principal: Principal, ref: ProjectRef, new: NewMessage
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the agent a message and open the stream of whole SSE frames that answers it.

        Leaving stops the relay; the turn goes on.

        Raises:
            GreylagError: on entering: what can be told before the first byte, by ``Projects.want``
                and, of an active project, by ``AgentGateway.start_turn``.
            InvalidRequestError: on entering: the message is empty.
            UnauthorizedError: on iterating: the sign-in ended before the environment was awake.
            ForbiddenError: on iterating: so did the right to it.
            StreamCutError: on iterating: the turn goes on and is to be resumed.
        """
        _check(new)
        # One, so that it is one turn, however often it is tried.
        message_id = new.message_id or uuid.uuid4().hex
        project = await self.projects.want(principal, ref, Desired.ACTIVE, Action.MESSAGES_SEND)
        answer = partial(self._answer, principal, ref, new, message_id)
        async with AsyncExitStack() as opened:
            if project.settled and project.status is Status.ACTIVE:
                try:
                    frames = await opened.enter_async_context(answer(await self.reach(project)))
                except AgentUnreachableError:
                    # It may just have been ended, to be started anew.
                    project = await self.projects.get(principal, ref, Action.MESSAGES_SEND)
                    if not _coming(project):
                        raise
                else:
                    yield frames
                    return
        words = f"{project.name} is {project.status}: waking its environment."
        yield self._once_awake(project, words, partial(self._answer_still, principal, ref, answer))

    @asynccontextmanager
    async def _answer_still(
        self, principal: Principal, ref: ProjectRef, answer: _Answer, at: AgentAddress
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Answer somebody who has waited, if they may be answered still."""
        gate = self.projects.gate
        await gate.authorize(await gate.as_of_now(principal), Action.MESSAGES_SEND, ref)
        async with answer(at) as frames:
            yield frames

    @asynccontextmanager
    async def _answer(
        self,
        principal: Principal,
        ref: ProjectRef,
        new: NewMessage,
        message_id: str,
        at: AgentAddress,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        on = f"{name_of(ref)}/sessions/{new.session_id or ''}"
        about = (principal, Action.MESSAGES_SEND, on)
        async with self.projects.gate.audit.doing(*about, message_id=message_id):
            turn = await self.gateway.start_turn(
                at, new.session_id, new.message, message_id, principal.name
            )
        async with self.gateway.stream_turn(at, turn.turn_id, None) as frames:
            yield frames

    async def stream_turn(
        self, principal: Principal, ref: ProjectRef, turn_id: str, after: str | None
    ) -> tuple[AbstractAsyncContextManager[AsyncIterator[bytes]], str | None]:
        """Open a turn's events again, as whole SSE frames, from the one after id ``after``; also
        return of when the copy is that tells them of an environment that does not run.

        Where there is none, an environment that is being started again is waited for, and
        ``status`` frames say so.
        """
        project = await self.projects.get(principal, ref, Action.AGENT_READ)
        if self.transcripts is not None and project.status is not Status.ACTIVE:
            copy = await self.transcripts.events(project, turn_id, after)
            if copy is not None:
                return copy
        if not _coming(project):
            return self.gateway.stream_turn(await self.reach(project), turn_id, after), None
        words = f"The environment of {project.name} is being started: the turn is shown then."
        answer = partial(self.gateway.stream_turn, turn_id=turn_id, after=after)
        return nullcontext(self._once_awake(project, words + _why(project), answer)), None

    async def _once_awake(
        self, project: Project, words: str, answer: _Answer
    ) -> AsyncIterator[bytes]:
        """Yield ``status`` frames, the first with ``words``, until what ``project`` wants is so,
        then what the agent answers.

        Raises:
            ClusterError: the environment could not be started, or was stopped meanwhile.
        """
        yield _status_frame(words)
        async for event in self.projects.progress(project):
            yield _status_frame(event.message, event)
        awake = await self.projects.settled(project)
        if awake is None or awake.status is not Status.ACTIVE:
            raise ClusterError("The project was stopped before it had become active.")
        async with answer(await self.reach(awake)) as frames:
            async for frame in frames:
                yield frame

    async def cancel_turn(self, principal: Principal, ref: ProjectRef, turn_id: str) -> Turn:
        """Ask a turn to end."""
        at = await self.address(principal, ref, Action.AGENT_WRITE)
        on = f"{name_of(ref)}/turns/{turn_id}"
        async with self.projects.gate.audit.doing(
            principal, Action.AGENT_WRITE, on, operation="cancel_turn"
        ):
            return await self.gateway.cancel_turn(at, turn_id)

    async def confirm(
        self,
        principal: Principal,
        ref: ProjectRef,
        turn_id: str,
        confirmation_id: str,
        *,
        decision: Decision,
    ) -> None:
        """Answer a turn's question whether a tool may run."""
        at = await self.address(principal, ref, Action.AGENT_WRITE)
        on = f"{name_of(ref)}/turns/{turn_id}/confirmations/{confirmation_id}"
        async with self.projects.gate.audit.doing(
            principal,
            Action.AGENT_WRITE,
            on,
            operation="answer_confirmation",
            decision=decision,
        ):
            await self.gateway.confirm(at, turn_id, confirmation_id, decision)

    async def logs(
        self, principal: Principal, ref: ProjectRef, *, follow: bool, tail: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the environment's log: its last ``tail`` lines (10,000 at most), then what comes, as
        long as the project is its owner's.
        """
        project = await self.projects.get(principal, ref, Action.LOGS_READ)
        opening = self.cluster.logs(
            project.environment, follow=follow, tail=min(tail, MAX_LOG_LINES)
        )
        over = partial(self.projects.is_another_s, project)
        return _until(over, opening) if follow else opening


@asynccontextmanager
async def _until(
    over: Callable[[], Awaitable[None]], opening: AbstractAsyncContextManager[AsyncIterator[bytes]]
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Open lines that end once ``over`` has: an environment may outlive its owner's right to it."""
    ended = asyncio.Event()

    async def lines(opened: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for line in opened:
            if ended.is_set():  # both may come at once
                return
            yield line

    async def end() -> AsyncGenerator[bytes]:
        await over()
        ended.set()
        nothing: tuple[bytes, ...] = ()
        for none in nothing:
            yield none

    async with opening as opened:
        yield merged(lines(opened), end())


@asynccontextmanager
async def _opened(
    opening: AbstractAsyncContextManager[_T],
    doing: AbstractAsyncContextManager[None],
    open_still: AbstractAsyncContextManager[None] | None = None,
) -> AsyncIterator[_T]:
    """Open something, which ``doing`` tells the audit trail of: that it begins, and how it went;
    and ``open_still`` of its end.
    """
    async with AsyncExitStack() as stack:
        async with doing:
            opened = await stack.enter_async_context(opening)
        async with open_still or nullcontext():
            yield opened


def _object(ref: ProjectRef, request: AgentRequest) -> str:
    """Return what an operation is done with, as the audit trail calls it."""
    path = request.query.get("path", "").strip("/")
    place = request.operation.path.format(**request.parts)
    return f"{name_of(ref)}{place}/{path}".rstrip("/")


def action_of(operation: Operation[Any]) -> Action:
    """Return what somebody does who asks the agent for this."""
    if operation.tag == TERMINALS:
        return Action.TERMINAL_USE
    reads = operation.method == "GET"
    if operation.tag in {"files", "changes", "git"}:
        return Action.FILES_READ if reads else Action.FILES_WRITE
    return Action.AGENT_READ if reads else Action.AGENT_WRITE


def _why(project: Project) -> str:
    return f" {project.error.message}" if project.error is not None else ""


def _coming(project: Project) -> bool:
    """Tell whether the project is to be active, and the reconciler is still at it."""
    return project.desired is Desired.ACTIVE and not project.settled


def _status_frame(message: str, event: Event | None = None) -> bytes:
    content: dict[str, object] = {"message": message}
    if event is not None:
        content |= {"code": event.code, "status": event.status, "hint": event.hint}
    return sse.encode({"type": "status", "content": content})


def _check(new: NewMessage) -> None:
    if not new.message.strip():
        raise InvalidRequestError("message must not be empty.")
    if new.message_id is not None and not re.fullmatch(MESSAGE_ID_FORM, new.message_id):
        raise InvalidRequestError(
            f"message_id must have 1 to {MAX_MESSAGE_ID_LENGTH} characters, none of them control"
            " characters."
        )
