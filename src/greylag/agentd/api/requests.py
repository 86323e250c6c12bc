"""What all routes share: reading a JSON body within limits, answering, and streaming events."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from greylag.agentd.journal.journal import (
    JournalGoneError,
    JournalTail,
    UnknownEventError,
    event_number,
)
from greylag.agentd.problems import RequestError, invalid
from greylag.agentd.turns.engine import TurnEngine
from greylag.common import agent_api, sse
from greylag.common.git import CAUSES
from greylag.common.typed import is_encodable, parse_json

# A character may be written as six (\uXXXX) in JSON, and there is a little around the message.
_ESCAPED = 6
_AROUND = 64 * 1024
_MESSAGE_ID = 200
_MEMBERS = ("message", "message_id", "session_id")
_STATUS = {
    "invalid_request": 400,
    "unknown_event": 400,
    "setting_overridden": 400,
    "setting_invalid": 400,
    "extension_invalid": 400,
    "extension_enabled": 400,
    "invalid_path": 400,
    "invalid_archive": 400,
    "session_not_found": 404,
    "file_not_found": 404,
    "turn_not_found": 404,
    "confirmation_not_found": 404,
    "setting_not_found": 404,
    "extension_not_found": 404,
    "terminal_not_found": 404,
    "session_busy": 409,
    **dict.fromkeys(CAUSES, 409),
    "turn_running": 409,
    "history_not_cut": 409,
    "message_id_conflict": 409,
    "confirmation_settled": 409,
    "not_a_folder": 409,
    "not_a_file": 409,
    "file_exists": 409,
    "folder_not_empty": 409,
    "file_denied": 409,
    "outside_workspace": 409,
    "no_space": 409,
    "events_gone": 410,
    "snapshot_gone": 410,
    "file_changed": 412,
    "too_large": 413,
    "range_not_satisfiable": 416,
    "limit_exceeded": 429,
    "agent_refused": 500,
    "files_failed": 500,
    "internal": 500,
    "not_answered": 502,
    "storage_failed": 500,
    "agent_unavailable": 503,
    "not_started": 503,
}


async def refused(_request: Request, error: Exception) -> Response:
    """Answer a ``RequestError``; this is the one place where a code becomes a status."""
    assert isinstance(error, RequestError)  # noqa: S101 - registered for this class alone; tells mypy so
    return refusal(error)


def refusal(error: RequestError, **more: Any) -> JSONResponse:
    """Return the JSON answer for a refused request, with ``more`` members."""
    body = {"error": error.error, "message": error.message, "code": error.code}
    return JSONResponse({**body, **error.details, **more}, status_code=_STATUS[error.code])


def relayed(
    operation: agent_api.Operation[Any], handler: Callable[[Request], Awaitable[Response]]
) -> Route:
    """Return the route of an operation that the platform relays."""
    return Route(agent_api.ROOT + operation.path, handler, methods=[operation.method])


def answer(shape: Any, status: int = 200) -> JSONResponse:
    """Return the answer that is one of the shapes of ``agent_api``."""
    return JSONResponse(asdict(shape), status_code=status)


async def read_object(request: Request, limit: int, *members: str) -> dict[str, Any]:
    """Return the request's body, a JSON object.

    Args:
        request: the request.
        limit: most bytes that the body may have.
        members: the names that it may hold; another is refused, and so never dropped. With none
            there need be no body.

    Raises:
        RequestError: too_large, or invalid_request for anything but such a JSON object.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise RequestError("too_large", f"The request is larger than {limit} bytes.")
    try:
        value = {} if not body and not members else parse_json(body)
    except ValueError as error:
        raise invalid("The body must be JSON.") from error
    if not isinstance(value, dict):
        raise invalid("The body must be a JSON object.")
    if unknown := [name for name in value if name not in members]:
        takes = f"it takes {', '.join(members)}" if members else "it takes no members"
        raise invalid(f"The body holds {unknown[0][:100]!r}, which is not known: {takes}.")
    return value


def text(body: dict[str, Any], name: str) -> str | None:
    """Return a text member of the body, None when it is not there (or null).

    Raises:
        RequestError: invalid_request when it is no text, or no valid Unicode.
    """
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise invalid(f"{name} must be text.")
    if not is_encodable(value):
        raise invalid(f"{name} holds half of a Unicode character.")
    return value


class Message(NamedTuple):
    """What a user said; the client may give it an id, and name the session in the body."""

    text: str
    message_id: str | None
    session_id: str | None


async def read_message(request: Request, limit: int) -> Message:
    """Return the message of a request; it may have ``limit`` bytes (UTF-8).

    Raises:
        RequestError: invalid_request or too_large.
    """
    body = await read_object(request, limit * _ESCAPED + _AROUND, *_MEMBERS)
    words = text(body, "message")
    if words is None or not words.strip():
        raise invalid("message must be text, and not empty.")
    if len(words.encode()) > limit:
        raise RequestError("too_large", f"The message is longer than {limit} bytes.")
    message_id = text(body, "message_id")
    if message_id is not None and not 1 <= len(message_id) <= _MESSAGE_ID:
        raise invalid(f"message_id must have from 1 to {_MESSAGE_ID} characters.")
    return Message(words, message_id, text(body, "session_id"))


def whole_number(request: Request, name: str, *, default: int, most: int) -> int:
    """Return a query parameter, a whole number from 1 to ``most``.

    Raises:
        RequestError: invalid_request.
    """
    value = request.query_params.get(name, str(default))
    digits = value.isascii() and value.isdigit() and len(value) <= len(str(most))
    if not digits or not 1 <= int(value) <= most:
        raise invalid(f"{name} must be a whole number from 1 to {most}.")
    return int(value)


# A turn's events as an HTTP response, in constant memory for any reader.

_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class JournalStream(StreamingResponse):
    """A response that sends chunks as they come and ends when the client leaves.

    The server's ``send`` waits while the client reads slowly, so nothing piles up here.

    Args:
        chunks: the bytes to send; they are asked for one at a time.
        done: called once in the end, however it ends, even if nothing could be sent.
    """

    def __init__(self, chunks: AsyncIterator[bytes], done: Callable[[], None]) -> None:
        super().__init__(chunks, media_type=sse.MEDIA_TYPE, headers=_HEADERS)
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._done()


async def follow(
    turns: TurnEngine,
    turn_id: str,
    request: Request,
    convert: Callable[[JournalTail], AsyncIterator[bytes]] = JournalTail.chunks,
) -> Response:
    """Return the response that streams a turn's events; 204 when none will follow any more.

    Args:
        turns: who has the events.
        turn_id: a turn that exists.
        request: says by ``Last-Event-ID`` or ``?after=`` which event the client saw last.
        convert: makes the bytes to send from the journal.

    Raises:
        RequestError: events_gone, or unknown_event for an id that is not of this turn.
    """
    try:
        tail = turns.tail(turn_id)
    except JournalGoneError as error:
        raise RequestError("events_gone", str(error)) from error
    after = request.headers.get("last-event-id") or request.query_params.get("after")
    with ExitStack() as opened:
        opened.callback(tail.close)
        try:
            if after:
                await tail.skip(event_number(turn_id, after))
        except UnknownEventError as error:
            raise RequestError("unknown_event", str(error)) from error
        if after and tail.is_over:
            # A standard EventSource opens a stream again that ended with 200 (WHATWG HTML, 9.2).
            return Response(status_code=204)
        return JournalStream(convert(tail), opened.pop_all().close)
