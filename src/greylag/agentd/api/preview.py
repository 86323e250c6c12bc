"""What listens on the environment's ports, over HTTP: by tunnels of execd, and nothing else.

Whoever asks was let in by the platform; what answers is the agent's, and believed nothing.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial

import aiohttp
from aiohttp.client_proto import ResponseHandler
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from greylag.agentd.api.requests import answer, refusal, relayed
from greylag.agentd.execution import Execution, ExecutionError, joined
from greylag.agentd.problems import RequestError, invalid
from greylag.common import agent_api, forwarding
from greylag.common.agent_api import ForwardedAnswer, ForwardedRequest
from greylag.common.concurrent import place_among
from greylag.execd.protocol import Reader, Writer

_MOST_CONNECTIONS = 100
_MOST_SHARED = 64
"""How many of them those have at most who were given a link: some are left to the project's people,
however many processes of the platform hand requests on.
"""
_MOST_STRANGERS = 256
"""How many of those may ask at once, with WebSockets: half of what agentd's own server takes."""
_PLACE_SECONDS = 30.0


class NotListeningError(aiohttp.ClientOSError):
    """No process of the environment listens there; the message says what is known."""


class Previews:
    """The way to what the environment's processes serve.

    Args:
        execution: the way to execd.

    Attributes:
        http: speaks HTTP to ``http://localhost:<port>`` of the environment, whatever the host.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._strangers = 0
        self._shared = asyncio.Semaphore(_MOST_SHARED)
        self.http = aiohttp.ClientSession(
            connector=_Tunnels(self.connect),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def ports(self) -> list[agent_api.ListeningPort]:
        """Return what is listened on.

        Raises:
            RequestError: agent_unavailable.
        """
        try:
            found = await self._execution.ports()
        except ExecutionError as error:
            raise RequestError("agent_unavailable", str(error)) from error
        return [agent_api.ListeningPort(port, name) for port, name in found]

    async def connect(self, port: int) -> tuple[Reader, Writer]:
        """Return a connection to a port.

        Raises:
            NotListeningError: no process of the environment listens there.
        """
        try:
            return await self._execution.connect(port)
        except ExecutionError as error:
            raise NotListeningError(str(error)) from error

    @asynccontextmanager
    async def place_for_stranger(self, *, socket: bool) -> AsyncIterator[None]:
        """Hold a place of those to whom a preview is shared; who asks for more than that waits.

        Args:
            socket: whether it is for a WebSocket, which takes none of ``http``'s connections.

        Raises:
            RequestError: limit_exceeded: for a while there was none.
        """
        full = RequestError("limit_exceeded", "Shared previews have as much open as may be.")
        if self._strangers >= _MOST_STRANGERS:
            raise full
        self._strangers += 1
        try:
            places = self._shared
            async with nullcontext() if socket else place_among(places, _PLACE_SECONDS, full):
                yield
        finally:
            self._strangers -= 1

    async def close(self) -> None:
        """End all connections."""
        await self.http.close()


class _End(ResponseHandler):
    """aiohttp's end of a tunnel, which ends with it.

    Once aiohttp is done with it nothing unsent is of use: a port that takes none of that would keep
    for ever what is only closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, tunnel: asyncio.Task[None]) -> None:
        super().__init__(loop)
        self._tunnel = tunnel

    def close(self) -> None:
        self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._tunnel.cancel()


class _Tunnels(aiohttp.BaseConnector):
    """Connects by execd to a port of the other side's loopback."""

    def __init__(self, connect: Callable[[int], Awaitable[tuple[Reader, Writer]]]) -> None:
        super().__init__(limit=_MOST_CONNECTIONS)
        self._connect = connect
        self._tunnels: set[asyncio.Task[None]] = set()

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: object,  # noqa: ARG002 - the library's signature
        timeout: object,  # noqa: ARG002, ASYNC109 - the same; execd has times of its own
    ) -> ResponseHandler:
        reader, writer = await self._connect(req.url.port or 0)
        ours, theirs = socket.socketpair()
        tunnel = asyncio.create_task(_carry(theirs, (reader, writer)), name="tunnel")
        self._tunnels.add(tunnel)
        tunnel.add_done_callback(self._tunnels.discard)
        _, end = await self._loop.create_connection(lambda: _End(self._loop, tunnel), sock=ours)
        return end


async def _carry(end: socket.socket, port: tuple[Reader, Writer]) -> None:
    await joined(await asyncio.open_connection(sock=end), port)


# Their routes: all below ``/api/v1/preview/{port}`` is handed on to that port.

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
    """Handlers for ``/api/v1/ports`` and ``/api/v1/preview``.

    Args:
        previews: the way to the ports.
        carrying: returns, for each WebSocket, what is told of the sizes that it carries.
    """

    def __init__(self, previews: Previews, carrying: Callable[[], forwarding.Carrying]) -> None:
        self._http = previews.http
        self._previews = previews
        self._carrying = carrying

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
            client = WebSocket(scope, receive, send)
            await forwarding.hand_on(client, socket, self._carrying())
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
