"""A request id on every answer and on every log line that belongs to the request."""

import re
import time
import uuid

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = structlog.get_logger()

# What a caller sends is written into logs, so only harmless characters, and not many.
_HARMLESS = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")
_QUIET_PATHS = frozenset({"/api/v1/health"})


class RequestLog:
    """ASGI middleware: takes or makes `x-request-id`, echoes it, and logs each request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request with its id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
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
            if scope["path"] not in _QUIET_PATHS:
                milliseconds = round((time.monotonic() - started) * 1000, 1)
                _log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=milliseconds,
                )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _HARMLESS.match(value):
            return str(value.decode("ascii"))
    return uuid.uuid4().hex
