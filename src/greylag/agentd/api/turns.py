"""Turns: start, follow, list, cancel, and answer their confirmations."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from greylag.agentd.api.contract import MessageReader
from greylag.agentd.api.requests import follow, read_object, turn_object, turn_summary, whole_number
from greylag.agentd.problems import RequestError, invalid
from greylag.agentd.sessions import SessionService
from greylag.agentd.turns.engine import TurnEngine

_SMALL_BODY = 4096
_MOST_TURNS = 200


class TurnRoutes:
    """Handlers for turns; all that the older contract lacked."""

    def __init__(self, sessions: SessionService, turns: TurnEngine, reader: MessageReader) -> None:
        self._sessions = sessions
        self._turns = turns
        self._reader = reader

    def routes(self) -> list[Route]:
        """Return the routes."""
        of_session = "/api/v1/sessions/{session_id}/turns"
        one = "/api/v1/turns/{turn_id}"
        return [
            Route("/api/v1/turns", self.start, methods=["POST"]),
            Route(of_session, self.list, methods=["GET"]),
            Route(one, self.get, methods=["GET"]),
            Route(f"{one}/events", self.events, methods=["GET"]),
            Route(f"{one}/cancel", self.cancel, methods=["POST"]),
            Route(f"{one}/confirmations/{{confirmation_id}}", self.confirm, methods=["POST"]),
        ]

    async def start(self, request: Request) -> Response:
        """Start a turn: 201, or 200 with the turn that the same message_id already has.

        Without a session_id, a session is made for it.
        """
        message = await self._reader.read(request)
        started = await self._turns.start(message.session_id, message.text, message.message_id)
        status = 201 if started.outcome == "new" else 200
        return JSONResponse(turn_object(started.turn), status_code=status)

    async def list(self, request: Request) -> Response:
        """List a session's turns, newest first."""
        limit = whole_number(request, "limit", default=50, most=_MOST_TURNS)
        session = await self._sessions.get(request.path_params["session_id"])
        turns = await self._turns.newest(session.session_id, limit)
        return JSONResponse({"turns": [turn_summary(turn) for turn in turns]})

    async def get(self, request: Request) -> Response:
        """Show one turn."""
        return JSONResponse(turn_object(await self._turns.get(request.path_params["turn_id"])))

    async def events(self, request: Request) -> Response:
        """Stream a turn's events from the one after Last-Event-ID on, until `complete`."""
        turn = await self._turns.get(request.path_params["turn_id"])
        return await follow(self._turns, turn.turn_id, request)

    async def cancel(self, request: Request) -> Response:
        """Ask a turn to end: 202, or 200 when it has ended already."""
        turn = await self._turns.cancel(request.path_params["turn_id"])
        return JSONResponse(turn_object(turn), status_code=202 if turn.ended_at is None else 200)

    async def confirm(self, request: Request) -> Response:
        """Answer a tool confirmation."""
        decision = (await read_object(request, _SMALL_BODY)).get("decision")
        if decision not in {"allow_once", "reject_once"}:
            raise invalid("decision must be allow_once or reject_once.")
        turn_id = request.path_params["turn_id"]
        confirmation_id = request.path_params["confirmation_id"]
        match await self._turns.answer(turn_id, confirmation_id, decision):
            case "unknown":
                raise RequestError(
                    "confirmation_not_found",
                    "Confirmation not found",
                    "This turn has no such confirmation.",
                )
            case "settled_otherwise":
                raise RequestError(
                    "confirmation_settled",
                    "Confirmation settled",
                    "This confirmation was settled differently before.",
                )
        return JSONResponse({"confirmation_id": confirmation_id, "decision": decision})
