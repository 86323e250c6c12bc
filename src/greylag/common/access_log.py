"""A request's id, on its answer and on every log line that belongs to it, and a line of its own."""

import time
from collections.abc import Container
from dataclasses import dataclass, field

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from greylag.common import logs
from greylag.common.net import ASKED, request_id_of

STARTS = frozenset({"http.response.start", "websocket.http.response.start"})
"""What begins an answer; a WebSocket that is refused has one, too."""
_SWITCHED = 101
# Whoever reaches the port may ask for any path, and what is logged fills a disk.
_LONGEST_PATH = 200

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Exchange:
    """One request and its answer.

    Attributes:
        scope: the request's.
        send: the server's own ``send``.
        request_id: as it came, or as we made it.
        status: the HTTP status, once the answer has begun.
        client_left: whether a stream ended because its client went away.
        started: when the request came, on ``time.monotonic``.
        begun: when its answer began.
    """

    scope: Scope
    send: Send
    request_id: str = field(init=False)
    status: int | None = None
    client_left: bool = False
    started: float = field(default_factory=time.monotonic)
    begun: float = field(init=False)

    def __post_init__(self) -> None:
        self.request_id = request_id_of(self.scope["headers"])
        structlog.contextvars.clear_contextvars()
        logs.request_id.set(self.request_id)

    async def answer(self, message: Message) -> None:
        """Send a part of the answer, its head with the request's id."""
        if message["type"] == "websocket.accept":
            self._begin(_SWITCHED)
        if message["type"] in STARTS:
            self._begin(message["status"])
            head = (b"x-request-id", self.request_id.encode())
            message["headers"] = [*message.get("headers", ()), head]
        await self.send(message)

    def _begin(self, status: int) -> None:
        self.status, self.begun = status, time.monotonic()

    def write_line(self, path: str, quiet: Container[str], **who: str) -> None:
        """Log the request as one for ``path``, and who asked, as far as that is known; those of a
        ``quiet`` path only when debugging.
        """
        more: dict[str, str | bool] = {name: said for name, said in who.items() if said}
        if self.client_left:
            more["client_left"] = True
        if (b"sec-fetch-site", b"cross-site") in self.scope["headers"]:
            # To be counted. A page that only reads or links here is no news.
            more["cross_site"] = True
        write = _log.debug if self.scope["path"] in quiet else _log.info
        ms = round((time.monotonic() - self.started) * 1000, 1)
        method = self.scope.get("method", "GET")
        known = {"method": method, "path": path[:_LONGEST_PATH], "status": self.status, "ms": ms}
        write("request", **known, **more)


class AccessLog:
    """ASGI layer: each request has an id, and a line in the log once its answer has ended.

    Args:
        app: what answers.
        quiet: paths that are asked often and say little.
    """

    def __init__(self, app: ASGIApp, quiet: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request with its id."""
        if scope["type"] not in ASKED:
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, send)
        try:
            await self._app(scope, receive, exchange.answer)
        finally:
            exchange.write_line(scope["path"], self._quiet)
