"""The layer that refuses what must not come in, before anything is read or done."""

import ipaddress
from collections.abc import Callable, Sequence
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from greylag.common.net import ASKED, client_of, is_loopback
from greylag.config import Settings
from greylag.domain.audit import AuditAction, anonymous
from greylag.domain.errors import (
    ErrorInfo,
    ForbiddenError,
    GreylagError,
    LimitExceededError,
    StoreUnavailableError,
    TooLargeError,
    UnauthorizedError,
)
from greylag.services.audit import Audit
from greylag.web import errors, oidc
from greylag.web.addresses import STATIC, address, asked_path
from greylag.web.auth import SIGN_IN, SIGN_OUT, Authenticator
from greylag.web.error_handlers import page_or_problem
from greylag.web.request_log import exchange_of

MAX_HEADER_BYTES = 65_536
# Signing out twice is no error: the second time there is nobody to ask.
_OPEN_PATHS = frozenset({SIGN_IN, SIGN_OUT, *oidc.PATHS, *oidc.DEVICE_PATHS, "/healthz", "/readyz"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_TO_SIGN_IN = 303
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FOREIGN_SITES = frozenset({"cross-site", "same-site"})


class HeadersTooLargeError(TooLargeError):
    """The request's headers are more than are taken."""

    code = "headers_too_large"
    hint = "Send fewer headers, or raise GREYLAG_HEADER_LIMIT."


class Guard:
    """ASGI layer: checks headers, host, origin, who asks, and how much, in this order.

    ``takes_file`` tells by method and path whether a body is a file, which is as long as it is.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        authenticator: Authenticator,
        takes_file: Callable[[str, str], bool],
        audit: Audit,
    ) -> None:
        self._app = app
        self._takes_file = takes_file
        self._hosts = AllowedHosts(settings)
        self._header_limit = settings.header_limit
        self._body_limit = settings.body_limit
        self._authenticator = authenticator
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        if scope["type"] not in ASKED:
            await self._app(scope, receive, send)
        elif refusal := await self._refusal(scope):
            await refusal(scope, receive, send)
        else:
            limit = self._limit(scope)
            await self._app(scope, receive if limit is None else _Limited(receive, limit), send)

    def _limit(self, scope: Scope) -> int | None:
        if scope["type"] == "websocket":
            return None  # the server bounds each message
        takes_file = self._takes_file(scope["method"], scope["path"])
        return None if takes_file else self._body_limit

    async def _refusal(self, scope: Scope) -> Response | None:
        try:
            self._check_headers(scope["headers"])
            self._hosts.check(scope)
            if not _is_open(scope["path"]):
                exchange_of(scope).principal = await self._authenticator.principal(scope)
            _check_length(scope, self._limit(scope))
        except UnauthorizedError as error:
            response = _unauthorized(scope, error.info)
            if response.status_code != _TO_SIGN_IN:
                await self._refused(scope, error)
            return response
        except LimitExceededError as error:
            await self._refused(scope, error)
            return errors.problem_response(error.info, headers={"retry-after": "60"})
        except (ForbiddenError, StoreUnavailableError, TooLargeError) as error:
            if isinstance(error, ForbiddenError):
                await self._refused(scope, error)
            asked = Request(scope) if scope["type"] == "http" else HTTPConnection(scope)
            return page_or_problem(asked, error.info)
        return None

    async def _refused(self, scope: Scope, error: GreylagError) -> None:
        """Tell the audit trail whom was refused to come in, and where to."""
        who, on = anonymous(client_of(scope)), scope["path"]
        await self._audit.refused(who, AuditAction.REQUEST, on, error.info.code)

    def _check_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        if len(headers) > self._header_limit:
            raise HeadersTooLargeError(f"At most {self._header_limit} headers are taken.")
        if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
            raise HeadersTooLargeError(f"At most {MAX_HEADER_BYTES} bytes of headers are taken.")


class _Limited:
    """A request's ``receive`` that refuses a body of more than ``limit`` bytes as it comes."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._left = limit

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            # The framework passes this one error on as it is; others it takes for bad JSON.
            raise HTTPException(413)
        return message


def _check_length(scope: Scope, limit: int | None) -> None:
    # The server has already refused a Content-Length that is not a number.
    length = int(Headers(scope=scope).get("content-length", "0"))
    if limit is not None and length > limit:
        raise TooLargeError(f"The body has {length} bytes; at most {limit} are taken.")


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(f"{STATIC}/")


def _unauthorized(scope: Scope, error: ErrorInfo) -> Response:
    """Send a browser that asked for a page to sign in; tell everyone else, and whoever gave a
    token.
    """
    given = Headers(scope=scope)
    accepted = ",".join(given.getlist("accept"))
    asks_for_page = scope.get("method") == "GET" and "text/html" in accepted
    tries = "authorization" in given or scope["path"].startswith("/api")
    if asks_for_page and not tries:
        wanted = urlencode({"next": asked_path(scope)})
        return RedirectResponse(address(f"{SIGN_IN}?{wanted}"), status_code=_TO_SIGN_IN)
    headers = {"www-authenticate": "Bearer"}
    if "hx-request" in given:
        headers["hx-redirect"] = address(SIGN_IN)
    return errors.problem_response(error, headers=headers)


# Which hosts we answer as, and where a request may say it comes from.


class AllowedHosts:
    """The hosts that a request may name.

    A page of another site can make a name of its own point here (DNS rebinding) and then read
    answers as its own; it cannot choose the name that its browser sends. So only known names are
    answered: this machine's, the bound one, and those of the settings. An address cannot be
    rebound, so once we are bound beyond loopback any address will do (probes use one).
    """

    def __init__(self, settings: Settings) -> None:
        named = (settings.host, *settings.allowed_hosts.split(","))
        self._names = {_bare(name.strip().lower()) for name in named} - {""}
        self._any_address = not is_loopback(settings.host)

    def check(self, scope: Scope) -> None:
        """Raise ``ForbiddenError`` unless Host, Origin and Sec-Fetch-Site are as they must be."""
        headers = Headers(scope=scope)
        host = _only(headers, "host")
        if host is None or not self._allows(host):
            raise ForbiddenError(f"Greylag does not answer to the host {_shown(host)}.")
        # What comes over a WebSocket acts, and no browser asks before it opens one to another site.
        unsafe = scope.get("method") not in SAFE_METHODS
        origin = _only(headers, "origin")
        if origin is not None:
            self._check_origin(origin, host, unsafe=unsafe)
        if unsafe and not _FOREIGN_SITES.isdisjoint(headers.getlist("sec-fetch-site")):
            raise ForbiddenError("Another site's page may not change anything here.")

    def _check_origin(self, origin: str, host: str, *, unsafe: bool) -> None:
        scheme, _, authority = origin.partition("://")
        if scheme not in _DEFAULT_PORTS or not self._allows(authority):
            raise ForbiddenError(f"Requests from pages of {_shown(origin)} are not taken.")
        default = _DEFAULT_PORTS[scheme]
        if unsafe and _split(authority, default) != _split(host, default):
            raise ForbiddenError(
                f"A page of {_shown(origin)} may not change anything at {_shown(host)}."
            )

    def _allows(self, authority: str) -> bool:
        name, _ = _split(authority, None)
        if name in self._names or is_loopback(name):
            return True
        return self._any_address and _is_address(name)


def _only(headers: Headers, name: str) -> str | None:
    """Return the header's value, ``None`` if there is none; two are refused."""
    found = headers.getlist(name)
    if len(found) > 1:
        raise ForbiddenError(f"The request has {len(found)} {name} headers.")
    return found[0].lower() if found else None


def _split(authority: str, default_port: int | None) -> tuple[str, int | None]:
    """Return host and port of ``host[:port]``; an empty host for one that is malformed."""
    try:
        parts = urlsplit(f"//{authority}")
        port = parts.port or default_port
    except ValueError:
        return "", default_port
    plain = parts.netloc == authority and "@" not in authority
    return (parts.hostname or "") if plain else "", port


def _bare(host: str) -> str:
    return host.removeprefix("[").removesuffix("]")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _shown(text: str | None) -> str:
    return "(none)" if text is None else repr(text[:100])
