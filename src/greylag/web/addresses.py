"""Where the site is found: below a path of a proxy's, behind proxies that are trusted, and under
which names browsers keep its files.

Inside, every path is as the routes have it, whether a proxy has taken GREYLAG_ROOT_PATH off or not.
What goes out, in a page, a header or a document, is made by ``address``.
"""

import hashlib
import re
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlencode

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from greylag.common.net import ASKED, below
from greylag.domain.project import ProjectRef

STATIC = "/static"
SERVICE_WORKER = "js/service_worker.js"
"""Shows notifications on every page of the site."""
_FOLDER = Path(__file__).parent / "static"
_VERSION_DIGITS = 16
_VERSION = re.compile(rf"[0-9a-f]{{{_VERSION_DIGITS}}}")
_log = structlog.get_logger(__name__)
_root: ContextVar[str] = ContextVar("root_path", default="")
"""The root path of the site that answers the request of this task."""


class RootPath:
    """ASGI layer that takes the root path off requests that have it.

    Those without it are served as well: some proxies take it off, and probes come without one.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        _root.set(self._root_path)
        if scope["type"] in ASKED and self._root_path:
            scope = below(scope, self._root_path)
        await self._app(scope, receive, send)


def behind(proxies: str, app: ASGIApp) -> ASGIApp:
    """Return ``app`` as it is reached through trusted proxies: their word for a client's address
    and scheme is taken, and nobody else's.
    """
    if not proxies:
        return UnheededProxies(app, lambda _: False)
    # Only where it is used: a serverless host has a server of its own.
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware  # noqa: PLC0415

    heeding = ProxyHeadersMiddleware(cast("Any", app), proxies)
    return UnheededProxies(cast("ASGIApp", heeding), heeding.trusted_hosts.__contains__)


class UnheededProxies:
    """ASGI layer that tells the log, once, of somebody who says for whom they ask and whom nobody
    ``trusts``: behind a proxy that no setting names all clients are one, and TLS is unknown.
    """

    def __init__(self, app: ASGIApp, trusts: Callable[[str], bool]) -> None:
        self._app = app
        self._trusts = trusts
        self._told = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if not self._told and scope["type"] in ASKED and scope.get("client"):
            address = scope["client"][0]
            says = any(name == b"x-forwarded-for" for name, _ in scope["headers"])
            if says and not self._trusts(address):
                self._told = True
                hint = "If it is a proxy of yours, name it in GREYLAG_TRUSTED_PROXIES."
                _log.warning("forwarded_for_unheeded", address=address, hint=hint)
        await self._app(scope, receive, send)


def root_path() -> str:
    """Return what every address of this site begins with; empty at the root of a host."""
    return _root.get()


def address(path: str) -> str:
    """Return where browsers and clients find ``path``, which begins with a slash."""
    return _root.get() + path


def origin_of(request: Request) -> str:
    """Return the origin at which whoever asks reached us; the guard has checked its host."""
    return f"{request.url.scheme}://{request.headers['host']}"


def site_of(request: Request) -> str:
    """Return where whoever asks reaches this site, its root path included."""
    return origin_of(request) + _root.get()


def asked_path(scope: Scope) -> str:
    """Return the path that a request asks for, encoded as it came, with its query."""
    path = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1")
    query = scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


def user_url(user_id: str, under: str = "", **query: str | int | None) -> str:
    """Return the address of a user's page, or of the path ``under`` it.

    A query value of ``None`` is left out.
    """
    given = {name: value for name, value in query.items() if value is not None}
    path = address(f"/users/{quote(user_id, safe='')}{under}")
    return f"{path}?{urlencode(given)}" if given else path


def project_url(ref: ProjectRef, session_id: str | None = None) -> str:
    """Return the address of a project's page with a session chosen (``None``: the newest)."""
    url = address(ref.path)
    return f"{url}?{urlencode({'session': session_id})}" if session_id else url


# The files of pages.


@cache
def _version() -> str:
    """Return a name for the content of all files together.

    One for all, as a folder: scripts name one another by their place beside each other.
    """
    digest = hashlib.sha256()
    for path in sorted(_FOLDER.rglob("*")):
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(_FOLDER)} {content}\n".encode())
    return digest.hexdigest()[:_VERSION_DIGITS]


def service_worker_url() -> str:
    """Return the address of the service worker, the same for all versions: browsers ask for it
    anew by that address.
    """
    return address(f"{STATIC}/{SERVICE_WORKER}")


def static_url(name: str) -> str:
    """Return the address of a file that stays the same for ever."""
    return address(f"{STATIC}/{_version()}/{name}")


@cache
def inline_url(name: str) -> str:
    """Return a picture as an address that holds all of it: it costs a page no request."""
    return f"data:image/svg+xml,{quote((_FOLDER / name).read_text().strip(), safe=' =:/')}"


class VersionedFiles(StaticFiles):
    """The files of pages. Under the name of their content browsers keep them for good.

    Under another version's name, which a page of before an update may ask for, or under none, they
    are given as they are now, and browsers ask by ETag whether they still are.
    """

    def __init__(self) -> None:
        super().__init__(directory=_FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file, or that it is the one that the browser has."""
        version, _, rest = path.partition("/")
        named = _VERSION.fullmatch(version) is not None
        response = await super().get_response(rest if named else path, scope)
        kept = "public, max-age=31536000, immutable" if version == _version() else "no-cache"
        response.headers["cache-control"] = kept
        if path.endswith(SERVICE_WORKER):
            response.headers["service-worker-allowed"] = address("/")
        # Weak, as the same file is also sent compressed (RFC 9110, section 8.8.3.3).
        response.headers["etag"] = f"W/{response.headers['etag'].removeprefix('W/')}"
        return response
