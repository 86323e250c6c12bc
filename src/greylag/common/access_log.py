"""A request id on every answer and on every log line that belongs to the request."""

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from greylag.common.net import request_id_of

_log = structlog.get_logger()


class AccessLog:
    """ASGI middleware: takes or makes `x-request-id`, echoes it, and logs each request.

    Args:
        app: what answers.
        quiet: paths that are not logged.
    """

    def __init__(self, app: ASGIApp, quiet: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request with its id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        started = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)
            if scope["path"] not in self._quiet:
                _log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round((time.monotonic() - started) * 1000, 1),
                )
