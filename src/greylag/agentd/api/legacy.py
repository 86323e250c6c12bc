"""Messages by the older contract: streamed, awaited, or as provider tokens."""

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from greylag.agentd.api.requests import follow, read_message, refusal
from greylag.agentd.journal.journal import JournalTail
from greylag.agentd.problems import RequestError
from greylag.agentd.turns.engine import TurnEngine
from greylag.common import sse
from greylag.common.typed import parse_json


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
