"""The agent as the platform itself understands it: its messages, its questions, and the log.

All else of the agent's API is relayed (`relay.py`).
"""

from typing import Annotated, Any

from fastapi import Header, Query, Response

from greylag.common.agent_api import IN_PATHS, KEPT_AT, Turn
from greylag.domain.names import SEGMENT_FORM
from greylag.domain.users import Action
from greylag.services.agents import MAX_LOG_LINES, NewMessage
from greylag.web.api.relay import COPIED
from greylag.web.deps import PROJECT, ProjectCallDep, api_router, events, path_id, problems, text
from greylag.web.schemas import AgentOut, ConfirmationIn, MessageIn

_RESPONSES = problems(404, 409, 502)

router = api_router("sessions")


@router.get(
    f"{PROJECT}/agent",
    summary="What answers in the environment",
    responses=_RESPONSES,
)
async def show_agent(call: ProjectCallDep) -> AgentOut:
    """The agent, its version and its model; `demonstration` says so when the model is not real."""
    return AgentOut.model_validate(await call.use_cases.agents.status(*call.at))


@router.get(
    f"{PROJECT}/logs",
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
    return call.streams.text(*call.at, opening)


# Messages to the agent, and the turns that answer them.

TURN = f"{PROJECT}/turns/{{turn}}"
_EVENT_ID = r"^[!-~]{1,400}$"

turns_router = api_router("turns")

_TURN = IN_PATHS["turn"]
_TurnInPath = Annotated[
    str, path_id(_TURN.name, _TURN.text, SEGMENT_FORM, *_TURN.schema["examples"])
]
_ConfirmationInPath = Annotated[
    str,
    path_id("confirmation", "The id of a `tool_confirmation` event.", SEGMENT_FORM),
]

_TURN_EVENTS = events(
    "5a1d0b6c2f3e4d51a7c8e9f001122334-1",
    "message",
    {
        "role": "Assistant",
        "content": "Hello",
        "content_type": "text",
        "timestamp": 1_795_424_100,
        "session_id": "0d4f",
    },
)


@turns_router.post(
    f"{PROJECT}/messages",
    summary="Send a message and stream the answer",
    response_class=Response,
    responses={**problems(404, 409, 413, 502), **_TURN_EVENTS},
)
async def send_message(
    call: ProjectCallDep,
    body: MessageIn,
) -> Any:
    """The turn belongs to the environment, not to this connection: when it breaks, ask for the
    turn's events, or, before the `turn` event came, send the same message with the same
    `message_id` again.

    A sleeping environment is woken first; `status` events without an id say how far that is. The
    `turn` event tells the ids. Then come `thinking`, `message`, `tool_request`,
    `tool_confirmation`, `tool_notification`, `tool_response`, `context_exceeded`, `history_update`
    and `error`, until `complete` ends the stream.
    """
    # Asked before a place is taken, too: strangers are to take none, and to learn of none.
    await call.use_cases.gate.authorize(call.principal, Action.MESSAGES_SEND, call.ref)
    new = NewMessage(body.message, body.session_id, body.message_id)
    opening = call.use_cases.agents.send(*call.at, new)
    return call.streams.events(*call.at, opening, Action.AGENT_READ)


@turns_router.get(
    f"{TURN}/events",
    summary="Stream a turn's events again",
    response_class=Response,
    responses={
        **_RESPONSES,
        200: {**_TURN_EVENTS[200], "headers": COPIED},
        204: {"description": "Nothing follows the event that was named: the turn is over."},
    },
)
async def follow_turn(
    call: ProjectCallDep,
    turn: _TurnInPath,
    last_event_id: Annotated[
        str | None, Header(pattern=_EVENT_ID, description="Wins over `after`.")
    ] = None,
    after: Annotated[
        str | None, Query(pattern=_EVENT_ID, description="Only events after this id.")
    ] = None,
) -> Any:
    """Every event of the turn after the one named, then each as it comes, until `complete`.

    After `complete` there is nothing: 204, at which a standard EventSource stops. While the
    environment does not run, turns that had ended are told from a copy, where it has them.
    """
    opening, kept_at = await call.use_cases.agents.stream_turn(
        *call.at, turn, last_event_id or after
    )
    answer = call.streams.events(*call.at, opening, Action.AGENT_READ)
    if kept_at is not None:
        answer.headers[KEPT_AT] = kept_at
    return answer


@turns_router.post(f"{TURN}/cancel", summary="Cancel a turn", responses=_RESPONSES)
async def cancel_turn(call: ProjectCallDep, turn: _TurnInPath) -> Turn:
    """Ask the turn to end; its stream tells when it has. One that has ended stays as it is."""
    return await call.use_cases.agents.cancel_turn(*call.at, turn)


@turns_router.post(
    f"{TURN}/confirmations/{{confirmation}}",
    summary="Allow or refuse a tool",
    status_code=204,
    responses={**problems(404, 409, 413, 502), 204: {"description": "Answered."}},
)
async def answer_confirmation(
    call: ProjectCallDep,
    turn: _TurnInPath,
    confirmation: _ConfirmationInPath,
    body: ConfirmationIn,
) -> None:
    """Answer the agent's question whether a tool may run; the same answer again is accepted."""
    await call.use_cases.agents.confirm(*call.at, turn, confirmation, decision=body.decision)
