"""What an agent remembers, as a project's page shows it: sessions, messages and their answers."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from greylag.common import agent_api, sse
from greylag.common.agent_api import ChatMessage, Session, Turn
from greylag.domain.errors import AgentUnreachableError, ErrorInfo, GreylagError
from greylag.services.messages import NewMessage
from greylag.web.api.deps import ProjectCall, ProjectCallDep
from greylag.web.api.relay import ask
from greylag.web.dashboard.pages import field, lead, respond, see
from greylag.web.dashboard.views import (
    Moment,
    ProjectView,
    parsed_moment,
    project_url,
    project_view,
    session_url,
)

NEW_SESSION = "new"
"""What an address says in place of a session id to begin a new one."""
RUNNING = "running"
TURNS_SHOWN = 30
_PATIENCE_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class SessionView:
    """One session in the list of them."""

    session_id: str
    updated: Moment | None
    message_count: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """A message and the text that answered it; ``turn`` is ``None`` when it is not kept."""

    message: str
    answer: str
    turn: Turn | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """All that a page shows of an agent. ``selected`` is ``None`` before a session's first message;
    ``error`` tells why the agent's part is missing.
    """

    sessions: tuple[SessionView, ...] = ()
    selected: str | None = None
    exchanges: tuple[Exchange, ...] = ()
    hidden: int = 0
    demonstration: str | None = None
    error: ErrorInfo | None = None

    @property
    def running(self) -> Turn | None:
        """The turn that the selected session works on."""
        last = self.exchanges[-1].turn if self.exchanges else None
        return last if last is not None and last.status == RUNNING else None


async def read_conversation(
    call: ProjectCall, project: ProjectView, wanted: str | None, shown: int
) -> Conversation:
    """Return the session ``wanted`` (``None``: the newest) with its last ``shown`` turns.

    A project that is not active has nothing to show yet; an agent that fails or takes longer than
    a page may is an ``error`` of the result, so that the rest of the page stands.
    """
    if not project.is_active:
        return Conversation(selected=_chosen(wanted, ()))
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await _read(call, wanted, shown)
    except GreylagError as error:
        return Conversation(selected=_chosen(wanted, ()), error=error.info)
    except TimeoutError:
        late = AgentUnreachableError("The agent did not answer in time.")
        return Conversation(selected=_chosen(wanted, ()), error=late.info)


async def _read(call: ProjectCall, wanted: str | None, shown: int) -> Conversation:
    status = await call.use_cases.agents.status(*call.at)
    sessions = (await ask(call, agent_api.LIST_SESSIONS)).sessions
    selected = _chosen(wanted, sessions)
    found: tuple[Exchange, ...] = ()
    error = None
    if selected is not None:
        try:
            said = await ask(call, agent_api.LIST_MESSAGES, session=selected)
            turns = await ask(call, agent_api.LIST_TURNS, session=selected)
            found = tuple(pair(said.messages, turns.turns))
        except GreylagError as problem:
            error, selected = problem.info, None
    return Conversation(
        sessions=tuple(_session_view(session) for session in sessions),
        selected=selected,
        exchanges=found[-shown:],
        hidden=max(0, len(found) - shown),
        demonstration=status.demonstration,
        error=error,
    )


def pair(messages: Sequence[ChatMessage], turns: Sequence[Turn]) -> list[Exchange]:
    """Return a session's exchanges, oldest first, each with its turn where that is known.

    ``messages`` come oldest first and ``turns`` newest first, as an agent tells them. A turn that
    began between the two questions is there too, without an answer.
    """
    texts = list(_texts(messages))
    pairs: list[Exchange] = []
    for turn in turns:
        if texts and texts[-1][0] == turn.message:
            pairs.append(Exchange(*texts.pop(), turn))
        elif turn.status == RUNNING:
            pairs.append(Exchange(turn.message, "", turn))
    pairs += [Exchange(message, answer, None) for message, answer in reversed(texts)]
    return pairs[::-1]


def _texts(messages: Sequence[ChatMessage]) -> Iterator[tuple[str, str]]:
    """Yield each user message with all that was said until the next one."""
    message: str | None = None
    answer: list[str] = []
    for one in messages:
        if one.role.lower() != "user":
            answer.append(one.content)
            continue
        if message is not None or answer:
            yield message or "", "\n\n".join(answer)
        message, answer = one.content, []
    if message is not None or answer:
        yield message or "", "\n\n".join(answer)


def _chosen(wanted: str | None, sessions: Sequence[Session]) -> str | None:
    if wanted == NEW_SESSION:
        return None
    return wanted or (sessions[0].session_id if sessions else None)


def _session_view(session: Session) -> SessionView:
    updated = parsed_moment(session.updated_at, datetime.now(UTC))
    return SessionView(session.session_id, updated, session.message_count)


# What a project's page asks of the agent: its sessions, its messages, and, without scripts, a
# message's way to it. With scripts the console speaks the JSON API.

_AT = "/users/{user}/projects/{project}"


def add_agent_routes(router: APIRouter) -> None:
    """Add what the agent's part of a project's page needs to ``router``."""
    _add_pieces(router)
    _add_forms(router)


def _add_pieces(router: APIRouter) -> None:
    @router.get(_AT + "/sessions")
    async def sessions(call: ProjectCallDep, session: str | None = None) -> Response:
        view, conversation = await _agent_routes_read(call, session)
        return respond("fragments/sessions.html", project=view, conversation=conversation)

    @router.get(_AT + "/conversation")
    async def conversation(call: ProjectCallDep, session: str | None = None) -> Response:
        view, found = await _agent_routes_read(call, session)
        return respond(
            "fragments/conversation.html",
            project=view,
            conversation=found,
            turns_shown=TURNS_SHOWN,
        )


async def _agent_routes_read(
    call: ProjectCall, session: str | None
) -> tuple[ProjectView, Conversation]:
    project = await call.use_cases.projects.get(*call.at)
    view = project_view(project, datetime.now(UTC))
    return view, await read_conversation(call, view, session, TURNS_SHOWN)


def _add_forms(router: APIRouter) -> None:
    @router.post(_AT + "/messages")
    async def send(request: Request, call: ProjectCallDep) -> Response:
        form = await request.form()
        new = NewMessage(field(form, "message"), field(form, "session") or None)
        session = await _start(call, new)
        return see(session_url(call.ref.user_id, call.ref.project_id, session))

    @router.post(_AT + "/turns/{turn}/cancel")
    async def cancel(call: ProjectCallDep, turn: str) -> Response:
        ended = await call.use_cases.agents.cancel_turn(*call.at, turn)
        return see(session_url(call.ref.user_id, call.ref.project_id, ended.session_id))

    @router.post(_AT + "/sessions/{session}/delete")
    async def delete_session(request: Request, call: ProjectCallDep, session: str) -> Response:
        await ask(call, agent_api.DELETE_SESSION, session=session)
        return lead(request, project_url(call.ref.user_id, call.ref.project_id))


async def _start(call: ProjectCall, new: NewMessage) -> str | None:
    """Send a message and return its turn's session as soon as the turn is known to run; it goes on
    without us. ``None`` when it ended before that.
    """
    splitter = sse.FrameSplitter()
    async with call.use_cases.messages.send(*call.at, new) as runs:
        async for run in runs:
            for raw in splitter.feed(run):
                session = _turn_session(sse.parse(raw))
                if session is not None:
                    return session
    return None


def _turn_session(frame: sse.Frame | None) -> str | None:
    event = json.loads(frame.data) if frame is not None else {}
    return str(event["content"]["session_id"]) if event.get("type") == "turn" else None
