"""The HTTP application: routes, sign-in, request ids, errors."""

from dataclasses import dataclass

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from greylag.agentd.agent.port import AgentPort
from greylag.agentd.api.auth import Auth
from greylag.agentd.api.prefix import Prefix
from greylag.agentd.api.request_log import RequestLog
from greylag.agentd.api.routes.extensions import ExtensionRoutes
from greylag.agentd.api.routes.health import HealthRoutes
from greylag.agentd.api.routes.http import refusal, refused
from greylag.agentd.api.routes.messages import MessageReader, MessageRoutes
from greylag.agentd.api.routes.sessions import SessionRoutes
from greylag.agentd.api.routes.settings import SettingRoutes
from greylag.agentd.api.routes.turns import TurnRoutes
from greylag.agentd.config import AgentdSettings
from greylag.agentd.extensions import ExtensionService
from greylag.agentd.model.provider import model_object
from greylag.agentd.problems import RefusedError
from greylag.agentd.records.database import StorageError
from greylag.agentd.sessions import SessionService
from greylag.agentd.settings import SettingsService
from greylag.agentd.turns.turns import TurnService

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes call."""

    agent: AgentPort
    sessions: SessionService
    turns: TurnService
    extensions: ExtensionService
    settings: SettingsService


def create_app(settings: AgentdSettings, services: Services) -> Starlette:
    """Return the application; nothing is started by it."""
    reader = MessageReader(settings.message_limit)
    health = HealthRoutes(
        services.agent,
        services.turns,
        lambda: model_object(settings, services.agent.state.kind),
    )
    return Starlette(
        routes=[
            *health.routes(),
            *SessionRoutes(services.sessions, services.turns).routes(),
            *MessageRoutes(services.turns, reader).routes(),
            *TurnRoutes(services.sessions, services.turns, reader).routes(),
            *ExtensionRoutes(services.extensions).routes(),
            *SettingRoutes(services.settings).routes(),
        ],
        middleware=[
            Middleware(Prefix, prefix=settings.path_prefix),
            Middleware(RequestLog),
            Middleware(Auth, token=settings.token),
        ],
        exception_handlers={
            RefusedError: refused,
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
    _log.error("records_failed", reason=str(error))
    return refusal(RefusedError("storage_failed", "Storage failed", str(error)))


async def _defect(_request: Request, _error: Exception) -> Response:
    """Answer a defect of ours; the log has the traceback, the client gets no detail."""
    body = {
        "error": "Internal error",
        "message": "agentd failed; its log says why.",
        "code": "internal",
    }
    return JSONResponse(body, status_code=500)
