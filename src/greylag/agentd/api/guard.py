"""What stands before the routes: who may talk to agentd, and below which path."""

import hmac
import re

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from greylag.agentd.config import Secret
from greylag.common.net import below, is_loopback

_OPEN_PATHS = frozenset({"/", "/api/v1/health"})
_PORT = re.compile(r":\d+\Z")


class Auth:
    """ASGI middleware: a bearer token, or without one only this machine's own programs.

    Without a token a page of another site could still make a browser on this machine send
    requests here, so then the Host must be a loopback name and a foreign Origin is refused.

    Args:
        app: what answers a request that may pass.
        token: the token that clients must send; None for loopback without one.
    """

    def __init__(self, app: ASGIApp, token: Secret | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 403."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        if self._token is None:
            if _local(Headers(scope=scope)):
                return None
            return _refused(403, "Forbidden", "Without a token only this machine may connect.")
        if scope["path"] in _OPEN_PATHS and scope["method"] in {"GET", "HEAD"}:
            return None
        expected = self._token.value.encode()
        if any(hmac.compare_digest(token, expected) for token in _tokens(Headers(scope=scope))):
            return None
        return _refused(401, "Unauthorized", "Send the token as: Authorization: Bearer <token>.")


def _tokens(headers: Headers) -> list[bytes]:
    """Return the tokens sent. The second header is for ways, such as the service proxy of a
    Kubernetes API server, on which the first one belongs to somebody else.
    """
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    sent = [bearer] if scheme.lower() == "bearer" else []
    sent.append(headers.get("x-greylag-agent-token", ""))
    return [token.encode("latin-1").strip() for token in sent]


def _refused(status: int, error: str, message: str) -> JSONResponse:
    headers = {"www-authenticate": "Bearer"} if status == 401 else None  # noqa: PLR2004 - the status that the header belongs to
    body = {"error": error, "message": message, "code": error.lower()}
    return JSONResponse(body, status_code=status, headers=headers)


def _local(headers: Headers) -> bool:
    origin = headers.get("origin", "")
    named = [headers.get("host", ""), *([origin.partition("://")[2]] if origin else [])]
    return all(is_loopback(_PORT.sub("", authority).lower()) for authority in named)


class Prefix:
    """ASGI middleware that takes ``prefix`` off the path of requests that have it.

    Requests without it are served as well: who is inside the cluster comes without a proxy.

    Args:
        app: what answers.
        prefix: begins with a slash and does not end in one; None: nothing is taken off.
    """

    def __init__(self, app: ASGIApp, prefix: str | None) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http" and self._prefix is not None:
            scope = below(scope, self._prefix)
        await self._app(scope, receive, send)
