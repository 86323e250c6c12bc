"""What stands before the routes: who may talk to agentd, and below which path."""

import base64
import hmac
import re
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from greylag.agentd.config import Secret
from greylag.common import agent_api
from greylag.common.net import ASKED, below, is_loopback

_OPEN_PATHS = frozenset({"/", "/api/v1/health"})
_IN_QUERY = "token"
_PORT = re.compile(r":\d+\Z")


class Auth:
    """ASGI middleware: a bearer token, or without one only this machine's own programs.

    Without a token a page of another site could still make a browser on this machine send
    requests here, so then the Host must be a loopback name and a foreign Origin is refused.

    Args:
        app: what answers a request that may pass.
        token: the token that clients must send; None for loopback without one.
        legacy: whether the token may also come as ``?token=``, which is taken off, or as the
            password of basic authentication: older clients have no other way.
    """

    def __init__(self, app: ASGIApp, token: Secret | None, *, legacy: bool = False) -> None:
        self._app = app
        self._token = token
        self._legacy = legacy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 403."""
        asked = scope["type"] in ASKED
        if asked and self._legacy:
            scope = _with_usual_token(scope)
        refusal = self._refusal(scope) if asked else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        if self._token is None:
            if _local(Headers(scope=scope)):
                return None
            return _refused(403, "Forbidden", "Without a token only this machine may connect.")
        if scope["path"] in _OPEN_PATHS and scope.get("method") in {"GET", "HEAD"}:
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


def _with_usual_token(scope: Scope) -> Scope:
    """Return the request with a token in its address or password in the header for tokens."""
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    found = [value for name, value in query if name == _IN_QUERY]
    kept = urlencode([pair for pair in query if pair[0] != _IN_QUERY]).encode()
    scheme, _, basic = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            found.append(base64.b64decode(basic).decode("latin-1").partition(":")[2])
        except ValueError:  # no base64, or not even ASCII
            return scope
    if not found:
        return scope
    header = (b"x-greylag-agent-token", found[0].encode("latin-1", "replace"))
    return {**scope, "query_string": kept, "headers": [header, *scope["headers"]]}


def _refused(status: int, error: str, message: str) -> JSONResponse:
    # A preview's answers come from here, too, and its application may refuse in the same words.
    headers = {agent_api.NOT_FORWARDED: error.lower()}
    if status == 401:  # noqa: PLR2004 - the status that the header belongs to
        headers["www-authenticate"] = "Bearer"
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
        if scope["type"] in ASKED and self._prefix is not None:
            scope = below(scope, self._prefix)
        await self._app(scope, receive, send)
