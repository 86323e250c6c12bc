"""Turns: a message is taken, what answers it is followed, stopped, and told what it asks."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from greylag.agentd.api.requests import (
    answer,
    follow,
    read_message,
    read_object,
    relayed,
    whole_number,
)
from greylag.agentd.problems import RequestError, invalid
from greylag.agentd.records import TurnRecord
from greylag.agentd.sessions import SessionService
from greylag.agentd.turns.engine import TurnEngine
from greylag.common import agent_api
from greylag.common.agent_api import TurnChanges
from greylag.common.clock import maybe_rfc3339, rfc3339

_SMALL_BODY = 4096
_LIST_TEXT = 1000


class TurnRoutes:
    """Handlers for turns; all that the older contract lacked."""

    def __init__(self, sessions: SessionService, turns: TurnEngine, message_limit: int) -> None:
        self._sessions = sessions
        self._turns = turns
        self._message_limit = message_limit

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/api/v1/turns/{turn}"
        return [
            Route("/api/v1/turns", self.start, methods=["POST"]),
            relayed(agent_api.LIST_TURNS, self._list),
            relayed(agent_api.SHOW_TURN, self._get),
            relayed(agent_api.SHOW_ACTIVITY, self._activity),
            Route(f"{one}/events", self.events, methods=["GET"]),
            Route(f"{one}/cancel", self.cancel, methods=["POST"]),
            Route(f"{one}/confirmations/{{confirmation}}", self.confirm, methods=["POST"]),
        ]

    async def start(self, request: Request) -> Response:
        """Start a turn: 201, or 200 with the turn that the same message_id already has.

        Without a session_id, a session is made for it.
        """
        message = await read_message(request, self._message_limit)
        started = await self._turns.start(
            message.session_id, message.text, message.message_id, author=_author(request)
        )
        status = 201 if started.outcome == "new" else 200
        return answer(_turn(started.turn, most_answer=_LIST_TEXT), status)

    async def _list(self, request: Request) -> Response:
        limit = whole_number(request, "limit", default=agent_api.TURNS, most=agent_api.MOST_TURNS)
        session = await self._sessions.get(request.path_params["session"])
        # One more than is shown, which tells that there is more.
        most = _LIST_TEXT + 1
        turns = await self._turns.records.newest(session.session_id, limit, most_text=most)
        changes = await self._turns.changes(*(turn.turn_id for turn in turns))
        shown = [_turn(turn, most_message=_LIST_TEXT, most_answer=_LIST_TEXT) for turn in turns]
        told = [self._now(turn, changes) for turn in shown]
        return answer(agent_api.TurnList(told))

    async def _get(self, request: Request) -> Response:
        turn = _turn(await self._turns.get(request.path_params["turn"]))
        changes = await self._turns.changes(turn.turn_id)
        return answer(self._now(turn, changes))

    def _now(self, turn: agent_api.Turn, changes: Mapping[str, TurnChanges]) -> agent_api.Turn:
        """Return a turn with what its record does not hold."""
        question = self._turns.question(turn.turn_id)
        return replace(turn, changes=changes.get(turn.turn_id), question=question)

    async def _activity(self, request: Request) -> Response:
        most = agent_api.MOST_WAIT
        activity = self._turns.activity
        await activity.changed(
            request.query_params.get("since"),
            whole_number(request, "wait", default=most, most=most),
        )
        last = activity.last_at
        turns = [agent_api.TurnState(*one) for one in self._turns.states()]
        return answer(agent_api.Activity(activity.revision, turns, maybe_rfc3339(last)))

    async def events(self, request: Request) -> Response:
        """Stream a turn's events from the one after Last-Event-ID on, until ``complete``."""
        turn = await self._turns.get(request.path_params["turn"])
        return await follow(self._turns, turn.turn_id, request)

    async def cancel(self, request: Request) -> Response:
        """Ask a turn to end: 202, or 200 when it has ended already."""
        await read_object(request, _SMALL_BODY)
        turn = await self._turns.cancel(request.path_params["turn"])
        shown = _turn(turn, most_answer=_LIST_TEXT)
        return answer(shown, 202 if turn.ended_at is None else 200)

    async def confirm(self, request: Request) -> Response:
        """Answer a tool confirmation."""
        wanted = (await read_object(request, _SMALL_BODY, "decision")).get("decision")
        decision = agent_api.DECISIONS.get(wanted) if isinstance(wanted, str) else None
        if decision is None:
            raise invalid("decision must be allow_once, allow_session or reject_once.")
        turn_id = request.path_params["turn"]
        confirmation_id = request.path_params["confirmation"]
        match await self._turns.answer(turn_id, confirmation_id, decision):
            case "unknown":
                reason = "This turn has no such confirmation."
                raise RequestError("confirmation_not_found", reason)
            case "settled_otherwise":
                reason = "This confirmation was settled differently before."
                raise RequestError("confirmation_settled", reason)
        return JSONResponse({"confirmation_id": confirmation_id, "decision": decision})


def _author(request: Request) -> str | None:
    """Return who sends a message, as the platform tells it: in a header, as an agentd that does not
    know of it takes no other member of a body.
    """
    name = unquote(request.headers.get(agent_api.AUTHOR_HEADER, ""))
    return name[: agent_api.MOST_AUTHOR] or None


def _turn(
    turn: TurnRecord, *, most_message: int | None = None, most_answer: int | None = None
) -> agent_api.Turn:
    """Return a turn as it is shown, its texts cut to so many characters."""
    message, reply = turn.message[:most_message], turn.answer[:most_answer]
    shown: dict[str, Any] = {
        "message": message,
        "answer": reply,
        "started_at": rfc3339(turn.started_at),
        "ended_at": maybe_rfc3339(turn.ended_at),
        "shortened": (message, reply) != (turn.message, turn.answer),
    }
    return agent_api.Turn(**asdict(turn) | shown)
