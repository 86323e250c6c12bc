"""What listens on the environment's ports, over HTTP: by tunnels of execd, and nothing else.

Whoever asks was let in by the platform; what answers is the agent's, and believed nothing.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext

import aiohttp
from aiohttp.client_proto import ResponseHandler

from greylag.agentd.execution import Execution, ExecutionError, joined
from greylag.agentd.problems import RequestError
from greylag.common import agent_api
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
