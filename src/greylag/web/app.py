"""The web application: every route, inside the layers that compress, guard and log it, and what it
tells of itself.
"""

from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.gzip import (
    DEFAULT_EXCLUDED_CONTENT_TYPES,
    GZipResponder,
    IdentityResponder,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from greylag import __version__
from greylag.config import Settings
from greylag.services.use_cases import UseCases
from greylag.web import audit, oidc, preview_links
from greylag.web.addresses import STATIC, RootPath, VersionedFiles, behind
from greylag.web.api import messages, people, projects, relay
from greylag.web.auth import Authenticator, WrongTokens
from greylag.web.auth import router as sign_in
from greylag.web.dashboard import accounts, conversations, extensions, sharing
from greylag.web.dashboard import notifications as notification_pages
from greylag.web.dashboard import projects as project_pages
from greylag.web.dashboard import users as user_pages
from greylag.web.deps import CallDep, Site, UseCasesDep, api_router, problems
from greylag.web.error_handlers import install_error_handlers
from greylag.web.guard import Guard
from greylag.web.preview import PreviewSite
from greylag.web.preview_links import PreviewLinks
from greylag.web.request_log import RequestLogger
from greylag.web.schemas import HealthOut, PlatformOut, ProblemDocument
from greylag.web.stream import AccessWatch, Streams

_DESCRIPTION = """\
Isolated environments, each with a Goose agent, one per project.

Every answer carries `x-request-id`. Every error is a problem document (RFC 9457) with a stable
`code`. What an operation does not know of a request is refused by name. Ids in paths are
percent-encoded. Streams are server-sent events that can be resumed.
"""
_TAGS = [
    {"name": "platform", "description": "The installation and its health."},
    {"name": "users", "description": "Who owns projects."},
    {"name": "notifications", "description": "Where users are told of their turns."},
    {"name": "audit", "description": "Who changed what, and whom what was refused."},
    {"name": "projects", "description": "Projects and the life of their environments."},
    {"name": "sessions", "description": "The conversations with a project's agent."},
    {"name": "turns", "description": "A message and all that answers it."},
    {"name": "files", "description": "The workspace's files and folders."},
    {"name": "changes", "description": "What turns changed in the workspace, and undo."},
    {"name": "terminals", "description": "Shells of the workspace; a WebSocket attaches to one."},
    {"name": "git", "description": "The repository: how it stands, fetch, commit, push."},
    {"name": "ports", "description": "What the environment serves, and links that show it."},
    {"name": "settings", "description": "What the agent is set up with."},
]
_router = api_router("platform")


@_router.get(
    "/api/platform",
    summary="What this installation is",
    responses=problems(),
)
async def show_platform(call: CallDep) -> PlatformOut:
    """Version, cluster and store, and the sentences that every user must see."""
    return PlatformOut.model_validate(call.use_cases.platform)


@_router.head("/healthz", include_in_schema=False)
@_router.get(
    "/healthz",
    summary="Whether the process runs",
    responses=problems(),
)
async def health() -> HealthOut:
    """Always ok: that it is answered is the news."""
    return HealthOut(status="ok")


@_router.head("/readyz", include_in_schema=False)
@_router.get(
    "/readyz",
    summary="Whether requests can be served",
    responses=problems(),
)
async def ready(use_cases: UseCasesDep) -> HealthOut:
    """Ok when the store can be read and written; a problem document otherwise."""
    await use_cases.store.ping()
    return HealthOut(status="ok")


# Those that are asked for most come first: each is looked through in turn.
_API = (
    projects.router,
    _router,
    people.router,
    people.notifications_router,
    audit.router,
    messages.router,
    messages.turns_router,
    relay.router,
    preview_links.router,
    oidc.device_router,
)
_PAGES = (
    relay.socket_router,
    preview_links.pages,
    sign_in,
    oidc.router,
    accounts.router,
    notification_pages.router,
    sharing.router,
    extensions.router,
    audit.page_router,
    oidc.device_pages,
    user_pages.router,
    project_pages.router,
    conversations.router,
)
_OPEN = ("/healthz", "/readyz", *oidc.DEVICE_PATHS)
MIN_BYTES = 1024
_AS_IT_IS = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "text/plain")
# JSON of lists is mostly repetition: the quickest level leaves a tenth of it.
_LEVEL = 1


def create_app(use_cases: UseCases, settings: Settings) -> ASGIApp:
    """Return the application that serves the API and the dashboard.

    It owns nothing that has to be closed; whoever made ``use_cases`` closes them.

    Raises:
        ConfigError: there is no token and sign-in is not turned off.
    """
    authenticator = Authenticator(settings, use_cases)
    app = FastAPI(
        title="Greylag",
        version=__version__,
        contact={"name": "Whoever runs this Greylag"},
        license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        # A page of documentation would need files from another host.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": settings.root_path or "/"}],
    )
    app.state.use_cases = use_cases
    app.state.streams = Streams(settings, AccessWatch(authenticator, use_cases.gate))
    app.state.authenticator = authenticator
    app.state.device_attempts = WrongTokens()
    app.state.states = oidc.States(settings.token) if settings.token else None
    app.state.preview_links = PreviewLinks(settings, use_cases.store)
    app.state.site = Site(use_cases.platform, sign_out=authenticator.needed)
    # Routers are whole as they are. To include them would make each route, the work of a tenth of a
    # second, once more for every application.
    for router in (*_API, *_PAGES):
        app.router.routes.extend(router.routes)
    app.mount(STATIC, VersionedFiles())
    install_error_handlers(app)
    _complete_openapi(app, signed_in=authenticator.needed)
    return _layered(app, settings, authenticator)


def _layered(app: FastAPI, settings: Settings, authenticator: Authenticator) -> ASGIApp:
    """Put around the application what each request passes first."""
    state = app.state
    guarded = Guard(app, settings, authenticator, relay.takes_file, state.use_cases.audit)
    logged = RequestLogger(Compression(guarded), hsts_seconds=settings.hsts_seconds)
    site = RootPath(logged, settings.root_path)
    shown = PreviewSite(site, state.preview_links, authenticator, state.use_cases, state.streams)
    return behind(settings.trusted_proxies, shown)


class Compression:
    """ASGI layer: gzip where the client takes it and the answer gains by it.

    Streams are not compressed: events must come at once. Nor what an agent gives as it is, logs and
    files, nor what is small.
    """

    # Whoever can make a browser ask for what they choose, and sees how long the answers are, could
    # guess a secret that stands in one beside their choice (BREACH). None does: the token and the
    # cookie never stand in a body, and no request of another site's page has the cookie.

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or relay.gives_file(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        respond = _Large(self._app, MIN_BYTES, exclude_content_types=_AS_IT_IS)
        if _takes_gzip(Headers(scope=scope)):
            respond = _Gzip(self._app, MIN_BYTES, _LEVEL, exclude_content_types=_AS_IT_IS)
        await respond(scope, receive, send)


class _Large(IdentityResponder):
    """Tells caches that there is another form of this answer; of a small one there is none."""

    _small = False

    async def send_with_compression(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message.setdefault("headers", []))
            self._small = int(headers.get("content-length", MIN_BYTES)) < MIN_BYTES
        await (self.send if self._small else super().send_with_compression)(message)


class _Gzip(_Large, GZipResponder):
    """The same, compressed."""


def _takes_gzip(headers: Headers) -> bool:
    accepted = headers.get("accept-encoding", "").replace(" ", "").lower()
    offers = (offer.partition(";") for offer in accepted.split(","))
    return any(name == "gzip" and quality.rstrip("0.") != "q=" for name, _, quality in offers)


# What OpenAPI tells beside what the framework finds by itself.


def _complete_openapi(app: FastAPI, *, signed_in: bool) -> None:
    """Make ``app.openapi`` tell of problem documents and, with ``signed_in``, of the token."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(make(), signed_in=signed_in)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # the way the framework's docs tell


def _completed(document: dict[str, Any], *, signed_in: bool) -> dict[str, Any]:
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = ProblemDocument.model_json_schema()
    document["security"] = [{}]
    if signed_in:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        for path in _OPEN:
            for operation in document["paths"][path].values():
                operation["security"] = []
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _sendable(parameter["schema"])
    return document


def _sendable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter's schema without null, which nobody can send: it is left out instead."""
    kinds = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return {**rest, **kinds[0]}
