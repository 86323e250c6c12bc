"""The outermost layer: a request's id, the headers of every answer, and one log line for each."""

import time
from dataclasses import dataclass, field

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from greylag.common import logs
from greylag.common.net import request_id_of
from greylag.domain.users import Principal
from greylag.web import errors

log = structlog.get_logger(__name__)

_QUIET = frozenset({"/healthz", "/readyz"})

_CONTENT_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    b"connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; "
    b"frame-ancestors 'none'"
)
SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", _CONTENT_POLICY),
    (b"x-content-type-options", b"nosniff"),
    # Not no-referrer: under that policy a browser sends `Origin: null` with our own forms too, and
    # the guard could not tell them from another site's.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)


_KEY = "greylag.exchange"


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as the parts of the web share it through the ASGI scope.

    Attributes:
        request_id: as it came, or as we made it.
        send: the server's own ``send``. The body of a stream goes straight to it: no layer between
            looks at one, and each would cost a call per event.
        principal: who asks, once that is known.
        status: the HTTP status, once the answer has begun.
        client_left: whether a stream ended because its client went away.
        started: when the request came, on ``time.monotonic``.
    """

    request_id: str
    send: Send
    principal: Principal | None = None
    status: int | None = None
    client_left: bool = False
    started: float = field(default_factory=time.monotonic)


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange of a request that came through ``RequestLogger``."""
    found: Exchange = scope[_KEY]
    return found


class RequestLogger:
    """ASGI layer around everything else.

    It takes or makes ``x-request-id``, adds it and the security headers to every answer, answers
    500 for whatever nobody caught, and writes one line when the answer has ended (for a stream:
    when the stream has).
    """

    def __init__(self, app: ASGIApp, *, hsts_seconds: int = 0) -> None:
        self._app = app
        self._hsts = f"max-age={hsts_seconds}".encode() if hsts_seconds else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[_KEY] = exchange = Exchange(request_id_of(scope["headers"]), send)
        logs.request_id.set(exchange.request_id)
        structlog.contextvars.clear_contextvars()
        added = [*SECURITY_HEADERS, (b"x-request-id", exchange.request_id.encode())]
        if self._hsts is not None and scope["scheme"] == "https":
            added.append((b"strict-transport-security", self._hsts))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = _with_cache_rule([*message.get("headers", ()), *added])
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001 - logged with its stack, and answered
            known = errors.unexpected(error)
            if exchange.status is None:
                answer = errors.problem_response(known)
                await answer(scope, receive, send_with_headers)
        finally:
            _write_line(scope, exchange)


def _with_cache_rule(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Forbid keeping an answer that does not say itself how it may be kept."""
    if not any(name == b"cache-control" for name, _ in headers):
        headers.append((b"cache-control", b"no-store"))
    return headers


def _write_line(scope: Scope, exchange: Exchange) -> None:
    line = {
        "method": scope["method"],
        # The template, not the path: lines are to be counted by it, and paths may hold anything.
        "path": getattr(scope.get("route"), "path", None) or "(none)",
        "status": exchange.status,
        "ms": round((time.monotonic() - exchange.started) * 1000, 1),
    }
    if (b"sec-fetch-site", b"cross-site") in scope["headers"]:
        # To be counted. A page that only reads or links here is no news.
        line["cross_site"] = True
    if exchange.client_left:
        line["client_left"] = True
    write = log.debug if scope["path"] in _QUIET else log.info
    write("request", **line)
