"""Sessions: the older contract's routes, and cancelling what runs in one."""

import json
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from greylag.agentd.api.routes.shapes import messages_of, rfc3339, session_object
from greylag.agentd.problems import RefusedError
from greylag.agentd.records.database import SessionRecord
from greylag.agentd.sessions import SessionService
from greylag.agentd.turns.turns import TurnService

_PAGE = 20
_NOT_FOUND = {"session_id": "not_found", "created_at": "", "updated_at": "", "message_count": 0}


class SessionRoutes:
    """Handlers for `/api/v1/sessions`."""

    def __init__(self, sessions: SessionService, turns: TurnService) -> None:
        self._sessions = sessions
        self._turns = turns

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/api/v1/sessions/{session_id}"
        return [
            Route("/api/v1/sessions", self.create, methods=["POST"]),
            Route("/api/v1/sessions", self.list, methods=["GET"]),
            Route(one, self.get, methods=["GET"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/messages", self.messages, methods=["GET"]),
            Route(f"{one}/export", self.export, methods=["GET"]),
            Route(f"{one}/cancel", self.cancel, methods=["POST"]),
        ]

    async def create(self, _request: Request) -> Response:
        """Make a session."""
        session = await self._sessions.create()
        return JSONResponse(session_object(session), status_code=201)

    async def list(self, _request: Request) -> Response:
        """List all sessions, newest first."""
        sessions = [session_object(session) for session in await self._sessions.all()]
        return JSONResponse({"sessions": sessions, "total": len(sessions)})

    async def get(self, request: Request) -> Response:
        """Show one session."""
        session = await self._find(request)
        if session is None:
            return JSONResponse(_NOT_FOUND, status_code=404)
        return JSONResponse(session_object(session))

    async def delete(self, request: Request) -> Response:
        """End a session for good."""
        try:
            await self._sessions.delete(request.path_params["session_id"])
        except RefusedError:
            return Response(status_code=404)
        return Response(status_code=204)

    async def cancel(self, request: Request) -> Response:
        """Ask the session's running turn to end: 202, or 200 when none runs."""
        session_id = request.path_params["session_id"]
        cancelled = await self._sessions.cancel(session_id)
        body = {"session_id": session_id, "cancelled": cancelled}
        return JSONResponse(body, status_code=202 if cancelled else 200)

    async def messages(self, request: Request) -> Response:
        """Show what was said, oldest first."""
        session = await self._find(request)
        if session is None:
            session_id = request.path_params["session_id"]
            empty = {"session_id": session_id, "messages": [], "total_count": 0}
            return JSONResponse(empty, status_code=404)
        return StreamingResponse(self._messages_json(session), media_type="application/json")

    async def export(self, request: Request) -> Response:
        """Return the session as Markdown."""
        session = await self._sessions.get(request.path_params["session_id"])
        return StreamingResponse(self._markdown(session), media_type="text/plain; charset=utf-8")

    async def _find(self, request: Request) -> SessionRecord | None:
        try:
            return await self._sessions.get(request.path_params["session_id"])
        except RefusedError:
            return None

    async def _all_messages(self, session: SessionRecord) -> AsyncIterator[dict[str, object]]:
        # Page by page: a long session is never held whole.
        offset = index = 0
        while page := await self._turns.page(session.session_id, offset, _PAGE):
            offset += len(page)
            for turn in page:
                for message in messages_of(turn):
                    yield {**message, "message_index": index}
                    index += 1

    async def _messages_json(self, session: SessionRecord) -> AsyncIterator[str]:
        yield f'{{"session_id":{json.dumps(session.session_id)},"messages":['
        count = 0
        async for message in self._all_messages(session):
            yield ("," if count else "") + json.dumps(message, ensure_ascii=False)
            count += 1
        yield f'],"total_count":{count}}}'

    async def _markdown(self, session: SessionRecord) -> AsyncIterator[str]:
        yield f"# Session Export: {session.session_id}\n\n"
        yield f"Created: {rfc3339(session.created_at)}\n\n"
        async for message in self._all_messages(session):
            number = int(str(message["message_index"])) + 1
            yield f"## Message {number} - {message['role']}\n\n{message['content']}\n\n"
