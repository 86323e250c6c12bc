"""What a project's page asks of the agent: its sessions, its messages, and, without scripts, a
message's way to it. With scripts the console speaks the JSON API.
"""

import json
from datetime import UTC, datetime

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from greylag import sse
from greylag.domain.users import Principal
from greylag.services.messages import NewMessage
from greylag.services.use_cases import UseCases
from greylag.web.dashboard.asking import Asker, see
from greylag.web.dashboard.board import Board
from greylag.web.dashboard.conversations import TURNS_SHOWN, Conversation, read_conversation
from greylag.web.dashboard.forms import field
from greylag.web.dashboard.pages import is_fragment_request, respond
from greylag.web.dashboard.views import ProjectView, project_url, project_view, session_url

_AT = "/users/{user}/projects/{project}"


def add_agent_routes(router: APIRouter, board: Board) -> None:
    """Add what the agent's part of a project's page needs to ``router``."""
    _add_pieces(router, board)
    _add_forms(router, board)


def _add_pieces(router: APIRouter, board: Board) -> None:
    async def read(
        principal: Principal, user: str, project: str, session: str | None
    ) -> tuple[ProjectView, Conversation]:
        found = await board.use_cases.projects.get(principal, user, project)
        view = project_view(found, datetime.now(UTC))
        return view, await read_conversation(
            board.use_cases.agents, principal, view, session, TURNS_SHOWN
        )

    @router.get(_AT + "/sessions")
    async def sessions(
        principal: Asker, user: str, project: str, session: str | None = None
    ) -> Response:
        view, conversation = await read(principal, user, project, session)
        return respond("fragments/sessions.html", project=view, conversation=conversation)

    @router.get(_AT + "/conversation")
    async def conversation(
        principal: Asker, user: str, project: str, session: str | None = None
    ) -> Response:
        view, found = await read(principal, user, project, session)
        return respond(
            "fragments/conversation.html",
            project=view,
            conversation=found,
            turns_shown=TURNS_SHOWN,
        )


def _add_forms(router: APIRouter, board: Board) -> None:
    @router.post(_AT + "/messages")
    async def send(request: Request, principal: Asker, user: str, project: str) -> Response:
        form = await request.form()
        new = NewMessage(field(form, "message"), field(form, "session") or None)
        session = await _start(board.use_cases, principal, user, project, new)
        return see(session_url(user, project, session))

    @router.post(_AT + "/turns/{turn}/cancel")
    async def cancel(principal: Asker, user: str, project: str, turn: str) -> Response:
        ended = await board.use_cases.agents.cancel_turn(principal, user, project, turn)
        return see(session_url(user, project, ended.session_id))

    @router.post(_AT + "/sessions/{session}/delete")
    async def delete_session(
        request: Request, principal: Asker, user: str, project: str, session: str
    ) -> Response:
        await board.use_cases.agents.delete_session(principal, user, project, session)
        url = project_url(user, project)
        return Response(headers={"HX-Redirect": url}) if is_fragment_request(request) else see(url)


async def _start(
    use_cases: UseCases, principal: Principal, user: str, project: str, new: NewMessage
) -> str | None:
    """Send a message and return its turn's session as soon as the turn is known to run; it goes on
    without us. ``None`` when it ended before that.
    """
    splitter = sse.FrameSplitter()
    async with use_cases.messages.send(principal, user, project, new) as runs:
        async for run in runs:
            for raw in splitter.feed(run):
                session = _turn_session(sse.parse(raw))
                if session is not None:
                    return session
    return None


def _turn_session(frame: sse.Frame | None) -> str | None:
    event = json.loads(frame.data) if frame is not None else {}
    return str(event["content"]["session_id"]) if event.get("type") == "turn" else None
