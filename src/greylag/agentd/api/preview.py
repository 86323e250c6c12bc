"""Ports and previews over HTTP: all below ``/api/v1/preview/{port}`` is handed on to that port."""

import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from greylag.agentd.api.requests import answer, refusal, relayed
from greylag.agentd.preview import Previews
from greylag.agentd.problems import RequestError, invalid
from greylag.common import agent_api, forwarding
from greylag.common.agent_api import ForwardedAnswer, ForwardedRequest

_ROOT = agent_api.ROOT + agent_api.PREVIEW
_PATH = re.compile(rf"{_ROOT}/(\d{{1,5}})(/.*)?")
_THEIRS = agent_api.FORWARDED_AUTHORIZATION.encode()
_APART = agent_api.APART.encode()
_SHARED = agent_api.SHARED.encode()
_FOR = b"x-forwarded-for"
_OWN = (
    b"authorization",
    b"x-greylag-agent-token",
    b"x-request-id",
    b"host",
    _THEIRS,
    _APART,
    _SHARED,
    _FOR,
    *forwarding.TOLD_BY_PROXIES,
)


class PreviewRoutes:
    """Handlers for ``/api/v1/ports`` and ``/api/v1/preview``."""

    def __init__(self, previews: Previews) -> None:
        self._http = previews.http
        self._previews = previews

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [relayed(agent_api.LIST_PORTS, self._list), Mount(_ROOT, app=self._forward)]

    async def _list(self, _request: Request) -> Response:
        return answer(agent_api.PortList(await self._previews.ports()))

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = forwarding.end_to_end(scope["headers"], *_OWN, *forwarding.HANDSHAKE)
        theirs = [value for name, value in scope["headers"] if name == _THEIRS]
        headers += [(b"authorization", value) for value in theirs]
        # Proxies on the way, the API server among them, add themselves after who asks.
        askers = [value.partition(b",")[0] for name, value in scope["headers"] if name == _FOR]
        headers += [(_FOR, value) for value in askers[:1]]
        try:
            async with self._place(scope):
                await self._handed_on(scope, receive, send, headers)
        except (forwarding.UnansweredError, RequestError) as error:
            known = error if isinstance(error, RequestError) else _unanswered(error)
            response = refusal(known)
            response.headers[agent_api.NOT_FORWARDED] = known.code
            await response(scope, receive, send)

    def _place(self, scope: Scope) -> AbstractAsyncContextManager[None]:
        if _SHARED not in dict(scope["headers"]):
            return nullcontext()
        return self._previews.place_for_stranger(socket=scope["type"] == "websocket")

    async def _handed_on(
        self, scope: Scope, receive: Receive, send: Send, headers: forwarding.Headers
    ) -> None:
        base, target = _parts(scope)
        if scope["type"] == "websocket":
            offered = scope["subprotocols"]
            connecting = self._previews.connect(int(base.rpartition(":")[2]))
            socket = forwarding.socket_opened(connecting, base + target, headers, offered)
            await forwarding.hand_on(WebSocket(scope, receive, send), socket)
            return
        opening = partial(self._asked, base, apart=_APART in dict(scope["headers"]))
        await forwarding.forward(scope, receive, send, target, headers, opening)

    @asynccontextmanager
    async def _asked(
        self, base: str, request: ForwardedRequest, *, apart: bool
    ) -> AsyncIterator[ForwardedAnswer]:
        async with forwarding.asked(self._http, base, request) as answer:
            headers = forwarding.set_apart(answer.headers) if apart else answer.headers
            yield replace(answer, headers=headers)


def _unanswered(error: forwarding.UnansweredError) -> RequestError:
    return RequestError("not_answered", f"What listens there does not answer: {error}")


def _parts(scope: Scope) -> tuple[str, str]:
    """Return what a request's path begins with at the port, and the rest of it with its query."""
    match = _PATH.fullmatch(scope["raw_path"].decode("latin-1"))
    if match is None:
        raise invalid("A preview's path names a port.")
    query = scope["query_string"].decode("latin-1")
    return f"http://localhost:{match[1]}", (match[2] or "/") + (f"?{query}" if query else "")
