"""The web application: every route, inside the layers that guard and log it."""

from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp

from greylag import __version__
from greylag.config import Settings
from greylag.services.use_cases import UseCases
from greylag.web.api import lifecycle, platform, projects, sessions, turns
from greylag.web.api.deps import Web
from greylag.web.auth import Attempts, Authenticator
from greylag.web.dashboard import dashboard_routes, error_page
from greylag.web.errors import install_error_handlers
from greylag.web.guard import Guard
from greylag.web.openapi import DESCRIPTION, TAGS, complete_openapi
from greylag.web.request_log import RequestLog
from greylag.web.sign_in import sign_in_routes
from greylag.web.static_files import CachedStaticFiles
from greylag.web.stream import Streams

_STATIC = Path(__file__).parent / "static"


def create_app(use_cases: UseCases, settings: Settings) -> ASGIApp:
    """Return the application that serves the API and the dashboard.

    It owns nothing that has to be closed; whoever made ``use_cases`` closes them.
    """
    authenticator = Authenticator(settings.token, Attempts())
    app = FastAPI(
        title="Greylag",
        version=__version__,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        # A page of documentation would need files from another host.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.web = Web(use_cases, Streams(settings))
    for part in (platform, projects, lifecycle, sessions, turns):
        app.include_router(part.router)
    app.include_router(sign_in_routes(authenticator))
    app.include_router(dashboard_routes(use_cases, settings))
    app.mount("/static", CachedStaticFiles(directory=_STATIC))
    install_error_handlers(app, error_page)
    complete_openapi(app, signed_in=authenticator.needed)
    return RequestLog(Guard(app, settings, authenticator))
