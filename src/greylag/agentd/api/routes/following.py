"""Opening a turn's events for one request."""

from collections.abc import AsyncIterator, Callable

from starlette.requests import Request

from greylag.agentd.api.event_stream import EventStream
from greylag.agentd.journal.tail import (
    JournalGoneError,
    JournalTail,
    UnknownEventError,
    event_number,
)
from greylag.agentd.problems import RefusedError
from greylag.agentd.turns.turns import TurnService


async def follow(
    turns: TurnService,
    turn_id: str,
    request: Request,
    convert: Callable[[JournalTail], AsyncIterator[bytes]] = JournalTail.chunks,
) -> EventStream:
    """Return the response that streams a turn's events.

    Args:
        turns: who has the events.
        turn_id: a turn that exists.
        request: says by `Last-Event-ID` or `?after=` which event the client saw last.
        convert: makes the bytes to send from the journal.

    Raises:
        RefusedError: events_gone, or unknown_event for an id that is not of this turn.
    """
    try:
        tail = turns.tail(turn_id)
    except JournalGoneError as error:
        raise RefusedError("events_gone", "Events gone", str(error)) from error
    after = request.headers.get("last-event-id") or request.query_params.get("after")
    try:
        if after:
            await tail.skip(event_number(turn_id, after))
    except UnknownEventError as error:
        tail.close()
        raise RefusedError("unknown_event", "Unknown event", str(error)) from error
    except BaseException:
        tail.close()
        raise
    return EventStream(convert(tail), tail.close)
