"""What a project's page asks of the agent: its sessions, its messages, and, without scripts, a
message's way to it. With scripts the console speaks the JSON API.
"""

import json
from datetime import UTC, datetime

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from greylag import sse
from greylag.services.messages import NewMessage
from greylag.web.api.deps import ProjectCall, ProjectCallDep
from greylag.web.dashboard.conversations import TURNS_SHOWN, Conversation, read_conversation
from greylag.web.dashboard.forms import field
from greylag.web.dashboard.pages import lead, respond, see
from greylag.web.dashboard.views import ProjectView, project_url, project_view, session_url

_AT = "/users/{user}/projects/{project}"


def add_agent_routes(router: APIRouter) -> None:
    """Add what the agent's part of a project's page needs to ``router``."""
    _add_pieces(router)
    _add_forms(router)


def _add_pieces(router: APIRouter) -> None:
    @router.get(_AT + "/sessions")
    async def sessions(call: ProjectCallDep, session: str | None = None) -> Response:
        view, conversation = await _read(call, session)
        return respond("fragments/sessions.html", project=view, conversation=conversation)

    @router.get(_AT + "/conversation")
    async def conversation(call: ProjectCallDep, session: str | None = None) -> Response:
        view, found = await _read(call, session)
        return respond(
            "fragments/conversation.html",
            project=view,
            conversation=found,
            turns_shown=TURNS_SHOWN,
        )


async def _read(call: ProjectCall, session: str | None) -> tuple[ProjectView, Conversation]:
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
        await call.use_cases.agents.delete_session(*call.at, session)
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
