"""What turns changed, over HTTP: lists, diffs, and undo."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from greylag.agentd.api.requests import answer, read_object, relayed
from greylag.agentd.changes.service import ChangeService
from greylag.agentd.problems import RequestError, invalid
from greylag.agentd.sessions import SessionService
from greylag.agentd.turns.engine import TurnEngine
from greylag.common import agent_api
from greylag.common.agent_api import UndoWish


class ChangeRoutes:
    """Handlers for changes and undo; ``agent_api`` describes them."""

    def __init__(self, changes: ChangeService, turns: TurnEngine, sessions: SessionService) -> None:
        self._changes = changes
        self._turns = turns
        self._sessions = sessions

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            relayed(agent_api.TURN_CHANGES, self._of_turn),
            relayed(agent_api.TURN_DIFF, self._diff),
            relayed(agent_api.UNDO_TURN, self._undo),
            relayed(agent_api.LIST_CHANGES, self._between),
            relayed(agent_api.DIFF_CHANGES, self._diff_between),
        ]

    async def _of_turn(self, request: Request) -> Response:
        async with self._known(request) as span_id:
            return answer(await self._changes.of_turn(span_id))

    async def _diff(self, request: Request) -> Response:
        path = request.query_params.get("path", "")
        async with self._known(request) as span_id:
            return answer(await self._changes.diff(span_id, path))

    async def _undo(self, request: Request) -> Response:
        limit = agent_api.UNDO_TURN.body_limit
        body = await read_object(request, limit, "override", "paths", "history")
        override, paths = body.get("override", False), body.get("paths")
        history = body.get("history", "keep")
        if not isinstance(override, bool):
            raise invalid("override must be true or false.")
        if paths is not None and not _are_paths(paths):
            raise invalid("paths must be a list of texts.")
        if history not in ("keep", "cut"):
            raise invalid("history must be keep or cut.")
        wish = UndoWish(override, paths, history)
        async with self._known(request) as span_id:
            cutting = self._sessions.cutting(span_id) if history == "cut" else None
            return answer(await self._changes.undo(span_id, wish, cutting))

    async def _between(self, request: Request) -> Response:
        return answer(await self._changes.between(*_states(request)))

    async def _diff_between(self, request: Request) -> Response:
        path = request.query_params.get("path", "")
        return answer(await self._changes.diff_between(*_states(request), path))

    @asynccontextmanager
    async def _known(self, request: Request) -> AsyncIterator[str]:
        """Yield which turn is meant; of one that never was there is no state to be gone."""
        span_id = request.path_params["turn"]
        try:
            yield span_id
        except RequestError as error:
            if error.code == "snapshot_gone":
                await self._turns.get(span_id)
            raise


def _states(request: Request) -> tuple[str | None, str | None]:
    return request.query_params.get("from") or None, request.query_params.get("to") or None


def _are_paths(paths: object) -> bool:
    return isinstance(paths, list) and all(isinstance(path, str) for path in paths)
