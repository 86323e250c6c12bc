"""Messages to the agent, and the turns that answer them."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response

from greylag.domain.names import MAX_ID_LENGTH
from greylag.services.messages import NewMessage
from greylag.web.agent_schemas import ConfirmationIn, MessageIn, TurnOut
from greylag.web.api.deps import ProjectCallDep
from greylag.web.api.docs import events, problems
from greylag.web.api.projects import PROJECT

TURN = f"{PROJECT}/turns/{{turn}}"
_EVENT_ID = r"^[!-~]{1,400}$"
_RESPONSES = problems(404, 409, 502)

router = APIRouter(tags=["turns"])

_TurnId = Annotated[
    str,
    Path(
        alias="turn",
        description="A turn's id.",
        min_length=1,
        max_length=MAX_ID_LENGTH,
        examples=["5a1d0b6c2f3e4d51a7c8e9f001122334"],
    ),
]
_ConfirmationId = Annotated[
    str,
    Path(
        alias="confirmation",
        description="The id of a `tool_confirmation` event.",
        min_length=1,
        max_length=MAX_ID_LENGTH,
    ),
]

_TURN_EXAMPLE = (
    'id: 5a1d-0\ndata: {"type":"turn","content":{"turn_id":"5a1d","session_id":"0d4f",'
    '"message_id":"b3c1","demonstration":null}}\n\n'
    'id: 5a1d-1\ndata: {"type":"message","content":{"role":"Assistant","content":"Hello",'
    '"content_type":"text","timestamp":1795424100,"session_id":"0d4f"}}\n\n'
    'id: 5a1d-2\ndata: {"type":"complete","content":{"message":"Response complete",'
    '"session_id":"0d4f"}}\n\n'
)


@router.post(
    f"{PROJECT}/messages",
    operation_id="send_message",
    summary="Send a message and stream the answer",
    response_class=Response,
    responses={**problems(404, 409, 413, 502), **events(_TURN_EXAMPLE)},
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
    new = NewMessage(body.message, body.session_id, body.message_id)
    opening = call.use_cases.messages.send(*call.at, new)
    return call.streams.events(call.ref, opening)


@router.get(TURN, operation_id="show_turn", summary="Read a turn", responses=_RESPONSES)
async def show_turn(call: ProjectCallDep, turn: _TurnId) -> TurnOut:
    """One turn and how it stands."""
    found = await call.use_cases.agents.turn(*call.at, turn)
    return TurnOut.of(found)


@router.get(
    f"{TURN}/events",
    operation_id="follow_turn",
    summary="Stream a turn's events again",
    response_class=Response,
    responses={**_RESPONSES, **events(_TURN_EXAMPLE)},
)
async def follow_turn(
    call: ProjectCallDep,
    turn: _TurnId,
    last_event_id: Annotated[
        str | None, Header(pattern=_EVENT_ID, description="Wins over `after`.")
    ] = None,
    after: Annotated[
        str | None, Query(pattern=_EVENT_ID, description="Only events after this id.")
    ] = None,
) -> Any:
    """Every event of the turn after the one named, then each as it comes, until `complete`."""
    opening = await call.use_cases.agents.stream_turn(*call.at, turn, last_event_id or after)
    return call.streams.events(call.ref, opening)


@router.post(
    f"{TURN}/cancel", operation_id="cancel_turn", summary="Cancel a turn", responses=_RESPONSES
)
async def cancel_turn(call: ProjectCallDep, turn: _TurnId) -> TurnOut:
    """Ask the turn to end; its stream tells when it has. One that has ended stays as it is."""
    ended = await call.use_cases.agents.cancel_turn(*call.at, turn)
    return TurnOut.of(ended)


@router.post(
    f"{TURN}/confirmations/{{confirmation}}",
    operation_id="answer_confirmation",
    summary="Allow or refuse a tool",
    status_code=204,
    responses={**problems(404, 409, 413, 502), 204: {"description": "Answered."}},
)
async def answer_confirmation(
    call: ProjectCallDep,
    turn: _TurnId,
    confirmation: _ConfirmationId,
    body: ConfirmationIn,
) -> None:
    """Answer the agent's question whether a tool may run; the same answer again is accepted."""
    await call.use_cases.agents.confirm(*call.at, turn, confirmation, decision=body.decision)
