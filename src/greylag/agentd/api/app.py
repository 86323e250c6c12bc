"""The HTTP application: health and status, every route, sign-in, request ids, errors."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from greylag import __version__
from greylag.agentd.agent.types import AgentPort
from greylag.agentd.api.changes import ChangeRoutes
from greylag.agentd.api.configuration import ExtensionRoutes, SettingRoutes
from greylag.agentd.api.files import FileRoutes
from greylag.agentd.api.git import GitRoutes
from greylag.agentd.api.guard import Auth, Prefix
from greylag.agentd.api.legacy import MessageRoutes
from greylag.agentd.api.preview import PreviewRoutes, Previews
from greylag.agentd.api.requests import refusal, refused
from greylag.agentd.api.sessions import SessionRoutes
from greylag.agentd.api.terminals import TerminalRoutes
from greylag.agentd.api.turns import TurnRoutes
from greylag.agentd.changes.service import ChangeService
from greylag.agentd.config import AgentdSettings
from greylag.agentd.extensions import ExtensionService
from greylag.agentd.files import WorkspaceFiles
from greylag.agentd.git.service import GitService
from greylag.agentd.model.relay import model_object
from greylag.agentd.problems import RequestError
from greylag.agentd.records import StorageError
from greylag.agentd.sessions import SessionService
from greylag.agentd.settings import SettingsService
from greylag.agentd.terminals import Terminals
from greylag.agentd.turns.engine import TurnEngine
from greylag.agentd.turns.running import ActivityEntry
from greylag.common import agent_api
from greylag.common.access_log import AccessLog
from greylag.common.git import SETUP

_QUIET_PATHS = frozenset({"/api/v1/health", agent_api.ROOT + SETUP})
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_PREVIEW = f"{agent_api.ROOT}{agent_api.PREVIEW}/"
_BYTES = tuple(agent_api.ROOT + one.path for one in (agent_api.READ_FILE, agent_api.READ_ARCHIVE))
_COMMAND = agent_api.ROOT + agent_api.COMMAND_SOCKET.path
_BY_A_SCRIPT = (b"sec-fetch-dest", b"empty")
_PINGS = 16 * 1024
_PINGS_SECONDS = 60.0
"""What the two sides of a WebSocket carry at most, in so long, to keep it open."""


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes call."""

    agent: AgentPort
    sessions: SessionService
    turns: TurnEngine
    extensions: ExtensionService
    settings: SettingsService
    files: WorkspaceFiles
    terminals: Terminals
    previews: Previews
    changes: ChangeService
    git: GitService


class LastUse:
    """For how long nobody has used the environment.

    Used it is by a turn, by what is typed in a terminal and what one says, and by each request that
    changes something, for a file's bytes, for what a preview shows, or for a command, as long as it
    lasts; by a preview's WebSocket while it carries more than pings. Others count for nothing:
    pages, in forgotten tabs too, and the platform read by themselves.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._going_on = 0
        self._last = now()
        self._said = 0

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Count it as used until the block ends."""
        self._going_on += 1
        try:
            yield
        finally:
            self._going_on -= 1
            self._last = self._now()

    def carrying(self) -> Callable[[int], None]:
        """Return what is told of each piece that a connection carries how many bytes it has."""
        since, carried = self._now(), 0

        def told(size: int) -> None:
            nonlocal since, carried
            if self._now() - since > _PINGS_SECONDS:
                since, carried = self._now(), 0
            carried += size
            if carried > _PINGS:
                self._last = self._now()

        return told

    def seconds(self, *, busy: bool, said: int) -> float:
        """Return for how long it has not been used, as seen by those who ask every minute or so.

        Args:
            busy: whether a turn or a clone runs now.
            said: how many bytes terminals have said, and were told, by now.
        """
        if busy or self._going_on or said != self._said:
            self._last = self._now()
        self._said = said
        return self._now() - self._last


class CountUse:
    """ASGI middleware: what an environment is used by is told to ``last_use``."""

    def __init__(self, app: ASGIApp, last_use: LastUse) -> None:
        self._app = app
        self._last_use = last_use

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        with self._last_use.going_on() if _uses(scope) else nullcontext():
            await self._app(scope, receive, send)


def _uses(scope: Scope) -> bool:
    path = scope["path"]
    if scope["type"] == "websocket":
        return bool(path == _COMMAND)
    if scope["method"] not in _READS:
        return path not in _QUIET_PATHS
    if path.startswith(_PREVIEW):
        return _BY_A_SCRIPT not in scope["headers"]  # of an open page, which may ask for ever
    return bool(path.startswith(_BYTES))


class HealthRoutes:
    """Handlers for health and status."""

    def __init__(self, settings: AgentdSettings, services: Services, last_use: LastUse) -> None:
        self._settings = settings
        self._agent = services.agent
        self._turns = services.turns
        self._terminals = services.terminals
        self._git = services.git
        self._last_use = last_use

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
        terminals = self._terminals.all()
        watched = sum(one.is_watched for one in terminals)
        cloning = self._git.state.status == "cloning"
        said = sum(one.scrollback.end + one.typed for one in terminals)
        return JSONResponse(
            {
                "overall_status": overall,
                "active_sessions": busy,
                "watched_terminals": watched,
                "cloning": cloning,
                "idle_seconds": self._last_use.seconds(busy=bool(busy or cloning), said=said),
                "total_processed": self._turns.activity.total_processed,
                "uptime_seconds": self._turns.activity.uptime_seconds,
                "sessions": [_entry(entry) for entry in recent],
                **self._who(),
            }
        )

    def _who(self) -> dict[str, Any]:
        state = self._agent.state
        return {"agent": asdict(state), "model": model_object(self._settings, state.kind)}


def _entry(entry: ActivityEntry) -> dict[str, Any]:
    return {
        "session_id": entry.turn.session_id,
        "endpoint_type": entry.endpoint_type,
        "status": entry.status,
        "start_time": _system_time(entry.start_time),
        "last_update": _system_time(entry.last_update),
    }


def _system_time(seconds: float) -> dict[str, int]:
    whole = int(seconds)
    nanos = int((seconds - whole) * 1_000_000_000)
    return {"secs_since_epoch": whole, "nanos_since_epoch": nanos}


# The application.

_log = structlog.get_logger()


def create_app(settings: AgentdSettings, services: Services) -> Starlette:
    """Return the application; nothing is started by it."""
    limit = settings.message_limit
    every = ["*"]
    last_use = LastUse()
    cors = Middleware(CORSMiddleware, allow_origins=every, allow_methods=every, allow_headers=every)
    return Starlette(
        routes=[
            *HealthRoutes(settings, services, last_use).routes(),
            *SessionRoutes(services.sessions, services.turns).routes(),
            *MessageRoutes(services.turns, limit).routes(),
            *TurnRoutes(services.sessions, services.turns, limit).routes(),
            *ExtensionRoutes(services.extensions).routes(),
            *SettingRoutes(services.settings, services.turns).routes(),
            *FileRoutes(services.files).routes(),
            *TerminalRoutes(services.terminals).routes(),
            *PreviewRoutes(services.previews, last_use.carrying).routes(),
            *ChangeRoutes(services.changes, services.turns, services.sessions).routes(),
            *GitRoutes(services.git).routes(),
        ],
        middleware=[
            Middleware(Prefix, prefix=settings.path_prefix),
            Middleware(AccessLog, quiet=_QUIET_PATHS),
            *([cors] if settings.legacy_api else []),
            Middleware(Auth, token=settings.token, legacy=settings.legacy_api),
            Middleware(CountUse, last_use=last_use),
        ],
        exception_handlers={
            RequestError: refused,
            StorageError: _storage_failed,
            HTTPException: _http_error,
            Exception: _defect,
        },
    )


async def _http_error(_request: Request, error: Exception) -> Response:
    """Answer what Starlette refuses by itself (no such path, wrong method)."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class alone; tells mypy so
    code = error.detail.lower().replace(" ", "_")
    body = {"error": error.detail, "message": f"{error.detail}.", "code": code}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _storage_failed(_request: Request, error: Exception) -> Response:
    """Answer what the records could not take or give, a full disk most often."""
    _log.error("records_failed", error=str(error))
    return refusal(RequestError("storage_failed", str(error)))


async def _defect(_request: Request, _error: Exception) -> Response:
    """Answer a defect of ours; the log has the traceback, the client gets no detail."""
    return refusal(RequestError("internal", "agentd failed; its log says why.", "Internal error"))
