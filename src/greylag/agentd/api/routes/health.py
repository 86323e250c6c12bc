"""How agentd and its agent are doing."""

import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from greylag import __version__
from greylag.agentd.agent.port import AgentPort
from greylag.agentd.turns.activity import ActivityEntry
from greylag.agentd.turns.turns import TurnService


class HealthRoutes:
    """Handlers for health and status.

    Args:
        agent: whose state is told.
        turns: whose work is told.
        model: returns what answers the agent's model calls, for clients.
    """

    def __init__(
        self, agent: AgentPort, turns: TurnService, model: Callable[[], dict[str, Any]]
    ) -> None:
        self._agent = agent
        self._turns = turns
        self._model = model

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/", self.about, methods=["GET"]),
            Route("/api/v1/health", self.health, methods=["GET"]),
            Route("/api/v1/agent/status", self.status, methods=["GET"]),
        ]

    async def about(self, _request: Request) -> Response:
        """Say what this is."""
        return JSONResponse({"name": "greylag agentd", "version": __version__})

    async def health(self, _request: Request) -> Response:
        """Say whether a message would be answered: the agent has made a session, or 503."""
        state = self._agent.state
        ready = state.status == "ready" and not self._turns.stopping
        body = {
            "status": "ok" if ready else "error",
            "timestamp": str(int(time.time())),
            "version": __version__,
            "database_connected": True,
            "storage_type": "file",
            "streaming_modes": ["agent-events", "provider-tokens"],
            "provider_streaming_support": True,
            "detail": "agentd is stopping." if self._turns.stopping else state.detail,
            **self._who(),
        }
        return JSONResponse(body, status_code=200 if ready else 503)

    async def status(self, _request: Request) -> Response:
        """Say what is going on."""
        recent = self._turns.activity.recent()
        busy = sum(entry.status == "processing" for entry in recent)
        failed = self._agent.state.status == "failed"
        overall = "error" if failed else "processing" if busy else "idle"
        return JSONResponse(
            {
                "overall_status": overall,
                "active_sessions": busy,
                "total_processed": self._turns.activity.total_processed,
                "uptime_seconds": self._turns.activity.uptime_seconds,
                "sessions": [_entry(entry) for entry in recent],
                **self._who(),
            }
        )

    def _who(self) -> dict[str, Any]:
        state = self._agent.state
        agent = {
            "kind": state.kind,
            "version": state.version,
            "status": state.status,
            "detail": state.detail,
        }
        return {"agent": agent, "model": self._model()}


def _entry(entry: ActivityEntry) -> dict[str, Any]:
    return {
        "session_id": entry.session_id,
        "endpoint_type": entry.endpoint_type,
        "status": entry.status,
        "start_time": _system_time(entry.start_time),
        "last_update": _system_time(entry.last_update),
    }


def _system_time(seconds: float) -> dict[str, int]:
    whole = int(seconds)
    return {
        "secs_since_epoch": whole,
        "nanos_since_epoch": int((seconds - whole) * 1_000_000_000),
    }
