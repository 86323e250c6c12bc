"""The layer that refuses what must not come in, before anything is read or done."""

from collections.abc import Sequence
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from greylag.config import Settings
from greylag.domain.errors import (
    ErrorInfo,
    ForbiddenError,
    LimitExceededError,
    TooLargeError,
    UnauthorizedError,
)
from greylag.web import errors
from greylag.web.auth import SIGN_IN, AllowedHosts, Authenticator, values
from greylag.web.errors import exchange_of

MAX_HEADER_BYTES = 65_536
_OPEN_PATHS = frozenset({SIGN_IN, "/healthz", "/readyz"})


class HeadersTooLargeError(TooLargeError):
    """The request's headers are more than are taken."""

    code = "headers_too_large"
    hint = "Send fewer headers, or raise GREYLAG_HEADER_LIMIT."


class Guard:
    """ASGI layer: checks headers, host, origin, who asks, and how much, in this order."""

    def __init__(self, app: ASGIApp, settings: Settings, authenticator: Authenticator) -> None:
        self._app = app
        self._hosts = AllowedHosts(settings)
        self._header_limit = settings.header_limit
        self._body_limit = settings.body_limit
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        elif refusal := self._refusal(scope):
            await refusal(scope, receive, send)
        else:
            await self._app(scope, _Limited(receive, self._body_limit), send)

    def _refusal(self, scope: Scope) -> Response | None:
        try:
            self._check_headers(scope["headers"])
            self._hosts.check(scope)
            if not _is_open(scope["path"]):
                exchange_of(scope).principal = self._authenticator.principal(scope)
            _check_length(scope, self._body_limit)
        except UnauthorizedError as error:
            return _unauthorized(scope, error.info)
        except LimitExceededError as error:
            return errors.problem_response(scope, error.info, headers={"retry-after": "60"})
        except (ForbiddenError, TooLargeError) as error:
            return errors.problem_response(scope, error.info)
        return None

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


def _check_length(scope: Scope, limit: int) -> None:
    # The server has already refused a Content-Length that is not a number.
    length = int((values(scope, b"content-length") or [b"0"])[0])
    if length > limit:
        raise TooLargeError(f"The body has {length} bytes; at most {limit} are taken.")


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith("/static/")


def _unauthorized(scope: Scope, error: ErrorInfo) -> Response:
    """Send a browser that asked for a page to sign in; tell everyone else."""
    asks_for_page = scope["method"] == "GET" and any(
        b"text/html" in value for value in values(scope, b"accept")
    )
    if asks_for_page and not scope["path"].startswith("/api"):
        wanted = urlencode({"next": scope["path"]})
        return RedirectResponse(f"{SIGN_IN}?{wanted}", status_code=303)
    headers = {"www-authenticate": "Bearer"}
    if values(scope, b"hx-request"):
        headers["hx-redirect"] = SIGN_IN
    return errors.problem_response(scope, error, headers=headers)
