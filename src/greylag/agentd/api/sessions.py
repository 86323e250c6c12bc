"""Sessions, and what was said in them.

They are of the older contract, which gives some refusals shapes of their own.
"""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from greylag.agentd.api.requests import (
    answer,
    read_object,
    relayed,
    whole_number,
)
from greylag.agentd.problems import RequestError, invalid
from greylag.agentd.records import SessionRecord, TurnRecord
from greylag.agentd.sessions import SessionService
from greylag.agentd.turns.engine import TurnEngine
from greylag.common import agent_api
from greylag.common.clock import rfc3339

_NOT_FOUND = {"session_id": "not_found", "created_at": "", "updated_at": "", "message_count": 0}
_SMALL_BODY = 4096
_LIST_TEXT = 1000


class SessionRoutes:
    """Handlers for ``/api/v1/sessions``; ``agent_api`` describes those that are relayed."""

    def __init__(self, sessions: SessionService, turns: TurnEngine) -> None:
        self._sessions = sessions
        self._turns = turns

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            relayed(agent_api.CREATE_SESSION, self._create),
            relayed(agent_api.LIST_SESSIONS, self._list),
            relayed(agent_api.SHOW_SESSION, self._get),
            relayed(agent_api.RENAME_SESSION, self._rename),
            relayed(agent_api.DELETE_SESSION, self._delete),
            relayed(agent_api.LIST_MESSAGES, self._messages),
            relayed(agent_api.EXPORT_SESSION, self._export),
            Route("/api/v1/sessions/{session}/cancel", self.cancel, methods=["POST"]),
        ]

    async def _create(self, request: Request) -> Response:
        await read_object(request, _SMALL_BODY)
        return answer(_session(await self._sessions.create()), 201)

    async def _list(self, _request: Request) -> Response:
        sessions = [_session(session) for session in await self._sessions.all()]
        return answer(agent_api.SessionList(sessions, len(sessions)))

    async def _get(self, request: Request) -> Response:
        session = await self._find(request)
        if session is None:
            return JSONResponse(_NOT_FOUND, status_code=404)
        return answer(_session(session))

    async def _rename(self, request: Request) -> Response:
        title = (await read_object(request, _SMALL_BODY, "title")).get("title")
        if not isinstance(title, str) or len(title) > agent_api.MOST_TITLE:
            raise invalid(f"title must be text of at most {agent_api.MOST_TITLE} characters.")
        line = " ".join(title.split())
        if not all(map(str.isprintable, line)):
            raise invalid("title must be printable.")
        return answer(_session(await self._sessions.rename(request.path_params["session"], line)))

    async def _delete(self, request: Request) -> Response:
        try:
            await self._sessions.delete(request.path_params["session"])
        except RequestError:
            return Response(status_code=404)
        return Response(status_code=204)

    async def cancel(self, request: Request) -> Response:
        """Ask the session's running turn to end: 202, or 200 when none runs."""
        await read_object(request, _SMALL_BODY)
        session_id = request.path_params["session"]
        cancelled = await self._sessions.cancel(session_id)
        body = {"session_id": session_id, "cancelled": cancelled}
        return JSONResponse(body, status_code=202 if cancelled else 200)

    async def _messages(self, request: Request) -> Response:
        session = await self._find(request)
        if session is None:
            session_id = request.path_params["session"]
            empty = {"session_id": session_id, "messages": [], "total_count": 0}
            return JSONResponse(empty, status_code=404)
        if "limit" in request.query_params:
            most = whole_number(request, "limit", default=1, most=agent_api.MOST_MESSAGES)
            last = agent_api.MOST_BEFORE
            before = whole_number(request, "before", default=last, most=last)
            return answer(await self._page(session, most, before))
        return StreamingResponse(self._messages_json(session), media_type="application/json")

    async def _export(self, request: Request) -> Response:
        session = await self._sessions.get(request.path_params["session"])
        return StreamingResponse(self._markdown(session), media_type="text/plain; charset=utf-8")

    async def _find(self, request: Request) -> SessionRecord | None:
        try:
            return await self._sessions.get(request.path_params["session"])
        except RequestError:
            return None

    async def _all_messages(self, session: SessionRecord) -> AsyncIterator[agent_api.ChatMessage]:
        # One turn at a time, here too: a long session is never held whole.
        offset = index = 0
        while turns := await self._turns.records.page(session.session_id, offset, 1):
            offset += 1
            for message in _messages(turns[0], index):
                yield message
                index += 1

    async def _page(self, session: SessionRecord, most: int, before: int) -> agent_api.History:
        """Return the newest messages before an index, as many as a page takes."""
        index, skipped, left = session.message_count, 0, agent_api.PAGE_CHARACTERS
        page: list[agent_api.ChatMessage] = []
        # One turn at a time: each may be as long as a journal.
        while turns := await self._turns.records.newest(session.session_id, 1, skipped):
            skipped += 1
            said = list(_messages(turns[0], 0))
            index = max(0, index - len(said))
            for message in reversed(said):
                place = index + message.message_index
                if place >= before:
                    continue
                if len(page) == most or (page and len(message.content) > left):
                    return agent_api.History(session.session_id, page[::-1], session.message_count)
                text = message.content[:left]
                left -= len(text)
                cut = len(text) < len(message.content)
                page.append(replace(message, message_index=place, content=text, shortened=cut))
        return agent_api.History(session.session_id, page[::-1], session.message_count)

    async def _messages_json(self, session: SessionRecord) -> AsyncIterator[str]:
        # `agent_api.History`, piece by piece.
        yield f'{{"session_id":{json.dumps(session.session_id)},"messages":['
        count = 0
        async for message in self._all_messages(session):
            yield ("," if count else "") + json.dumps(asdict(message), ensure_ascii=False)
            count += 1
        yield f'],"total_count":{count}}}'

    async def _markdown(self, session: SessionRecord) -> AsyncIterator[str]:
        yield f"# Session Export: {session.session_id}\n\n"
        yield f"Created: {rfc3339(session.created_at)}\n\n"
        async for message in self._all_messages(session):
            number = message.message_index + 1
            mark = " (forgotten by the agent)" if message.forgotten else ""
            yield f"## Message {number} - {message.role}{mark}\n\n{message.content}\n\n"


def _session(session: SessionRecord) -> agent_api.Session:
    return agent_api.Session(
        session.session_id,
        rfc3339(session.created_at),
        rfc3339(session.updated_at),
        session.message_count,
        session.title,
        session.mode,
        session.model,
    )


def _messages(turn: TurnRecord, index: int) -> Iterator[agent_api.ChatMessage]:
    """Yield what was said in a turn; ``index`` is that of its first message."""
    asked = int(turn.started_at)
    turn_id, gone = turn.turn_id, turn.forgotten
    yield agent_api.ChatMessage(
        "User", turn.message, asked, index, turn_id, author=turn.author, forgotten=gone
    )
    if turn.answer:
        ended = None if turn.ended_at is None else int(turn.ended_at)
        yield agent_api.ChatMessage(
            "Assistant", turn.answer, ended, index + 1, turn_id, forgotten=gone
        )
