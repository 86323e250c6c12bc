"""Messages by the older contract: streamed, awaited, or as provider tokens."""

import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from greylag.agentd.api.requests import follow, read_object, refusal, text
from greylag.agentd.journal.replay import JournalTail
from greylag.agentd.problems import RequestError, invalid
from greylag.agentd.turns.engine import TurnEngine
from greylag.common import sse
from greylag.common.typed import parse_json

# A character may be written as six (\uXXXX) in JSON, and there is a little around the message.
_ESCAPED = 6
_AROUND = 64 * 1024
_MESSAGE_ID = 200
_MEMBERS = ("message", "message_id", "session_id")


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


class MessageRoutes:
    """Handlers for what is sent to a session; ``message_limit`` is in bytes."""

    def __init__(self, turns: TurnEngine, message_limit: int) -> None:
        self._turns = turns
        self._message_limit = message_limit

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/api/v1/sessions/{session_id}"
        return [
            Route(f"{one}/messages", self.messages, methods=["POST"]),
            Route(f"{one}/send", self.send, methods=["POST"]),
            Route(f"{one}/stream", self.stream, methods=["POST"]),
        ]

    async def messages(self, request: Request) -> Response:
        """Start a turn and stream its events."""
        session_id = request.path_params["session_id"]
        message = await read_message(request, self._message_limit)
        try:
            started = await self._turns.start(session_id, message.text, message.message_id)
        except RequestError as error:
            return _failed_start(error, session_id)
        return await follow(self._turns, started.turn.turn_id, request)

    async def send(self, request: Request) -> Response:
        """Start a turn, wait for its end and return the answer."""
        session_id = request.path_params["session_id"]
        message = await read_message(request, self._message_limit)
        try:
            started = await self._turns.start(session_id, message.text, message.message_id, "sync")
        except RequestError as error:
            return refusal(error, session_id=session_id)
        turn = await self._turns.wait_ended(started.turn.turn_id)
        if turn.status == "error":
            body = {"error": "Agent processing error", "message": turn.error}
            body |= {"session_id": session_id, "code": turn.error_code}
            return JSONResponse(body, status_code=500)
        return JSONResponse(
            {
                "message": "Message processed successfully",
                "session_id": session_id,
                "assistant_response": turn.answer,
                "timestamp": int(time.time()),
                "tool_calls_count": turn.tool_calls_count,
            }
        )

    async def stream(self, request: Request) -> Response:
        """Start a turn and stream the answer's text alone, in the older token shape."""
        session_id = request.path_params["session_id"]
        message = await read_message(request, self._message_limit)
        started = await self._turns.start(
            session_id, message.text, message.message_id, "provider-streaming"
        )

        def tokens(tail: JournalTail) -> AsyncIterator[bytes]:
            return self._tokens(tail, session_id, started.turn.turn_id)

        return await follow(self._turns, started.turn.turn_id, request, tokens)

    async def _tokens(
        self, tail: JournalTail, session_id: str, turn_id: str
    ) -> AsyncIterator[bytes]:
        splitter = sse.FrameSplitter()
        async for chunk in tail.chunks():
            if chunk == sse.HEARTBEAT:
                yield chunk
                continue
            for frame in splitter.feed(chunk):
                token = _token(frame)
                if token is None:
                    continue
                if token["type"] == "complete":
                    token["accumulated"] = (await self._turns.get(turn_id)).answer
                yield sse.encode({**token, "timestamp": int(time.time()), "session_id": session_id})


def _failed_start(error: RequestError, session_id: str) -> Response:
    """Answer as the older contract does: some failures are one event in a 200."""
    match error.code:
        case "session_not_found":
            content = {"error": "Session not found", "message": f"Session {session_id} not found"}
        case "agent_unavailable":
            content = {
                "message": "Failed to start agent processing",
                "error": error.message,
                "session_id": session_id,
            }
        case _:
            return refusal(error, session_id=session_id)
    event = sse.encode({"type": "error", "content": {**content, "code": error.code}})
    return Response(event, media_type=sse.MEDIA_TYPE)


def _token(frame: bytes) -> dict[str, Any] | None:
    """Return the token event that one of a turn's frames stands for, None for most."""
    parsed = sse.parse(frame)
    if parsed is None:
        return None
    event = parse_json(parsed.data)
    content = event["content"]
    match event["type"]:
        case "message":
            return {"type": "token", "content": content["content"], "accumulated": None}
        case "error":
            return {"type": "error", "content": content["error"], "accumulated": None}
        case "complete":
            return {"type": "complete", "content": "", "accumulated": None}
        case _:
            return None
