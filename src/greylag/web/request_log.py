"""The outermost layer: a request's id, the headers of every answer, one log line for each, and
how it counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from greylag.common import metrics
from greylag.common.access_log import STARTS, Exchange
from greylag.common.net import ASKED, client_of
from greylag.domain.users import Principal
from greylag.web import errors

_QUIET = frozenset({"/healthz", "/readyz"})
_NO_ROUTE = "(none)"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})

POLICY = "content-security-policy"
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; manifest-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""What a page may load and do; one that shows previews adds their origins to it."""
SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (POLICY.encode(), CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    # Not no-referrer: under that policy a browser sends `Origin: null` with our own forms too, and
    # the guard could not tell them from another site's.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)

_Header = tuple[bytes, bytes]
_NOT_KEPT = (b"cache-control", b"no-store")
_KEY = "greylag.exchange"


@dataclass(slots=True)
class WebExchange(Exchange):
    """One request and its answer, as the parts of the web share it through the ASGI scope.

    The body of a stream goes straight to its ``send``: no layer between looks at one, and each
    would cost a call per event.

    Attributes:
        principal: who asks, once that is known.
    """

    principal: Principal | None = None


def exchange_of(scope: Scope) -> WebExchange:
    """Return the exchange of a request that came through ``RequestLogger``."""
    found: WebExchange = scope[_KEY]
    return found


class RequestLogger:
    """ASGI layer around everything else.

    It adds the request's id and the security headers to every answer, answers 500 for whatever
    nobody caught, and writes one line when the answer has ended (for a stream: when the stream
    has).
    """

    def __init__(self, app: ASGIApp, *, hsts_seconds: int = 0) -> None:
        self._app = app
        self._hsts = f"max-age={hsts_seconds}".encode() if hsts_seconds else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] not in ASKED:
            await self._app(scope, receive, send)
            return
        scope[_KEY] = exchange = WebExchange(scope, send)
        added = list(SECURITY_HEADERS)
        if self._hsts is not None and scope["scheme"] == "https":
            added.append((b"strict-transport-security", self._hsts))

        async def send_with_headers(message: Message) -> None:
            if message["type"] in STARTS:
                message["headers"] = _completed(message.get("headers", ()), added)
            await exchange.answer(message)

        metrics.IN_PROGRESS.inc()
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001 - logged with its stack, and answered
            known = errors.unexpected(error)
            if exchange.status is None:  # of a WebSocket that is open the server closes
                answer = errors.problem_response(known)
                await answer(scope, receive, send_with_headers)
        finally:
            # The template, not the path: lines are counted by it, and paths may hold anything.
            path = getattr(scope.get("route"), "path", None) or _NO_ROUTE
            exchange.write_line(path, _QUIET, **_who(exchange))
            _count(exchange, path)


def _who(exchange: WebExchange) -> dict[str, str]:
    """Return who asked, in the words of the audit trail: a path names whose the project is."""
    if (known := exchange.principal) is None:
        return {"address": client_of(exchange.scope)}
    actor = known.user_id or known.name
    return {"actor": actor, "via": known.via, "address": known.address}


def _count(exchange: WebExchange, path: str) -> None:
    metrics.IN_PROGRESS.dec()
    if exchange.status is None:  # its client left first
        return
    method = exchange.scope.get("method", "GET")
    if method not in _METHODS or exchange.status == HTTPStatus.METHOD_NOT_ALLOWED:
        method, path = "(other)", _NO_ROUTE  # the client's own word for it
    seconds = exchange.begun - exchange.started
    metrics.REQUESTS.labels(method, path, exchange.status).observe(seconds)


def _completed(headers: Iterable[_Header], added: Iterable[_Header]) -> list[_Header]:
    """Return an answer's headers with those that it lacks: it may be kept only if it says so."""
    said = list(headers)
    names = {name for name, _ in said}
    return said + [one for one in (*added, _NOT_KEPT) if one[0] not in names]
