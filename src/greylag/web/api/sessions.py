"""The agent of an active project: what it is, its sessions and their history, and the log."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from greylag.domain.names import MAX_ID_LENGTH
from greylag.services.agents import MAX_LOG_LINES
from greylag.web.agent_schemas import (
    AgentOut,
    MessageOut,
    MessagesOut,
    SessionOut,
    SessionsOut,
    TurnOut,
    TurnsOut,
)
from greylag.web.api.deps import ProjectCallDep
from greylag.web.api.docs import problems, text
from greylag.web.api.projects import PROJECT

SESSIONS = f"{PROJECT}/sessions"
SESSION = f"{SESSIONS}/{{session}}"
_RESPONSES = problems(404, 409, 502)

router = APIRouter(tags=["sessions"])

_SessionId = Annotated[
    str,
    Path(
        alias="session",
        description="A session's id.",
        min_length=1,
        max_length=MAX_ID_LENGTH,
        examples=["0d4f7c1e-6a35-4b0e-9c55-1f2f0c5f7a10"],
    ),
]


@router.get(
    f"{PROJECT}/agent",
    operation_id="show_agent",
    summary="What answers in the environment",
    responses=_RESPONSES,
)
async def show_agent(call: ProjectCallDep) -> AgentOut:
    """The agent, its version and its model; `demonstration` says so when the model is not real."""
    return AgentOut.of(await call.use_cases.agents.status(*call.at))


@router.get(
    SESSIONS, operation_id="list_sessions", summary="List the sessions", responses=_RESPONSES
)
async def list_sessions(call: ProjectCallDep) -> SessionsOut:
    """The project's sessions, newest first."""
    sessions = await call.use_cases.agents.sessions(*call.at)
    return SessionsOut(sessions=[SessionOut.of(session) for session in sessions])


@router.post(
    SESSIONS,
    operation_id="create_session",
    summary="Start a session",
    status_code=201,
    responses=_RESPONSES,
)
async def create_session(call: ProjectCallDep) -> SessionOut:
    """A new, empty conversation. A message without `session_id` starts one by itself."""
    session = await call.use_cases.agents.create_session(*call.at)
    return SessionOut.of(session)


@router.get(SESSION, operation_id="show_session", summary="Read a session", responses=_RESPONSES)
async def show_session(call: ProjectCallDep, session: _SessionId) -> SessionOut:
    """One session."""
    found = await call.use_cases.agents.session(*call.at, session)
    return SessionOut.of(found)


@router.delete(
    SESSION,
    operation_id="delete_session",
    summary="Delete a session",
    status_code=204,
    responses={**_RESPONSES, 204: {"description": "It is gone."}},
)
async def delete_session(call: ProjectCallDep, session: _SessionId) -> None:
    """End the conversation for good; a running turn of it is cancelled."""
    await call.use_cases.agents.delete_session(*call.at, session)


@router.get(
    f"{SESSION}/messages",
    operation_id="list_messages",
    summary="Read a session's history",
    responses=_RESPONSES,
)
async def list_messages(call: ProjectCallDep, session: _SessionId) -> MessagesOut:
    """What was said, oldest first; tool calls are in the events of the turns."""
    said = await call.use_cases.agents.messages(*call.at, session)
    return MessagesOut(messages=[MessageOut.of(message) for message in said])


@router.get(
    f"{SESSION}/turns",
    operation_id="list_turns",
    summary="List a session's turns",
    responses=_RESPONSES,
)
async def list_turns(call: ProjectCallDep, session: _SessionId) -> TurnsOut:
    """The session's turns, newest first."""
    turns = await call.use_cases.agents.turns(*call.at, session)
    return TurnsOut(turns=[TurnOut.of(turn) for turn in turns])


@router.get(
    f"{PROJECT}/logs",
    operation_id="read_logs",
    summary="Read the environment's log",
    tags=["projects"],
    response_class=Response,
    responses={**problems(404, 502), **text("The log's lines, as they are.")},
)
async def read_logs(
    call: ProjectCallDep,
    *,
    follow: Annotated[bool, Query(description="Go on with what comes.")] = False,
    tail: Annotated[int, Query(ge=0, le=MAX_LOG_LINES, description="How many last lines.")] = 200,
) -> Any:
    """The last lines of what the environment wrote, then, with `follow`, each as it comes."""
    opening = await call.use_cases.agents.logs(*call.at, follow=follow, tail=tail)
    return call.streams.text(call.ref, opening)
