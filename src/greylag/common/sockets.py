"""WebSockets as agentd and the web both use them: messages both ways, until one side ends."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import aiohttp
from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from greylag.common.agent_api import OpenSocket
from greylag.common.concurrent import until_one_ends

NORMAL, GOING_AWAY, WRONG, FAILED = 1000, 1001, 1008, 1011
"""Why a connection is closed (RFC 6455, section 7.4.1)."""
LEFT = "greylag.left"
"""The ASGI extension of a WebSocket whose ``wait`` returns once its connection is lost, also while
nobody receives what the client has said before that.
"""
FINISHES = "greylag.finishes"
"""The ASGI extension of a request or a WebSocket whose ``set`` says what ``finishes`` does."""
_LAST_WORDS_SECONDS = 1.0


class RedirectedError(aiohttp.ClientError):
    """A server answered with a redirect to what asked for a WebSocket."""


def never_redirected() -> aiohttp.TraceConfig:
    """Return what a session is traced by that must follow no redirect: for WebSockets the library
    knows no other way.
    """

    async def refuse(*_: object) -> NoReturn:
        raise RedirectedError("The answer is a redirect, which is not followed.")

    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(refuse)
    return tracing


class SocketClosedError(Exception):
    """The client has closed the connection."""


def finishes(scope: Scope) -> None:
    """Say that a WebSocket, or an answer without a length, comes to an end of its own, so that a
    server that is to end lets it, as it lets an upload; others can be opened again elsewhere, and
    are closed soon.
    """
    extension = scope.get("extensions", {}).get(FINISHES)
    if extension is not None:
        extension["set"]()


async def received(socket: WebSocket) -> bytes | str:
    """Return the next message.

    Raises:
        SocketClosedError: there is none any more.
    """
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise SocketClosedError
    data = message.get("bytes")
    return message.get("text", "") if data is None else bytes(data)


async def left(socket: WebSocket) -> NoReturn:
    """Wait until the client has gone, also while nobody receives what it said before.

    Raises:
        SocketClosedError: it has, and has had a moment for its last words to be received.
    """
    extension = socket.scope.get("extensions", {}).get(LEFT)
    await (asyncio.Event().wait() if extension is None else extension["wait"]())
    await asyncio.sleep(_LAST_WORDS_SECONDS)
    raise SocketClosedError


async def send(socket: WebSocket, content: bytes | str) -> None:
    """Send a message; returns when there is room for more.

    Raises:
        SocketClosedError: the client has gone.
    """
    try:
        if isinstance(content, str):
            await socket.send_text(content)
        else:
            await socket.send_bytes(content)
    except (WebSocketDisconnect, RuntimeError) as error:  # RuntimeError: it was closed meanwhile
        raise SocketClosedError from error


async def close(socket: WebSocket, code: int) -> None:
    """Close a connection that was opened, unless the client has done so."""
    if socket.client_state is WebSocketState.CONNECTED:
        try:
            await socket.close(code)
        except (WebSocketDisconnect, RuntimeError):
            return


class Peer:
    """The other end of a WebSocket that we have opened.

    Args:
        opened: the library's.
        broken: makes the error for a connection that broke.
    """

    def __init__(
        self, opened: aiohttp.ClientWebSocketResponse, broken: Callable[[], Exception]
    ) -> None:
        self._opened = opened
        self._broken = broken

    @property
    def close_code(self) -> int | None:
        """Why it was closed."""
        return self._opened.close_code

    async def send(self, content: bytes | str) -> None:
        """Send a message; returns when there is room for more.

        What comes after the other end has gone is for nobody: ``receive`` tells that, after all
        that it said before.
        """
        with suppress(aiohttp.ClientError, ConnectionError):
            if isinstance(content, str):
                await self._opened.send_str(content)
            else:
                await self._opened.send_bytes(content)

    async def receive(self) -> bytes | str | None:
        """Return the next message, None when it was closed."""
        came = await self._opened.receive()
        if came.type is aiohttp.WSMsgType.ERROR:
            raise self._broken() from came.data
        known = {aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT}
        content: bytes | str | None = came.data if came.type in known else None
        return content


async def join(client: WebSocket, other: OpenSocket) -> int:
    """Carry messages both ways, each once the one before was taken; return how to end the client's.

    What the other end raises comes out.

    Raises:
        SocketClosedError: the client has closed it.
    """

    async def towards_client() -> None:
        while (message := await other.receive()) is not None:
            await send(client, message)

    async def towards_other() -> None:
        while True:
            await other.send(await received(client))

    await until_one_ends(output=towards_client(), input=towards_other(), left=left(client))
    return code_after(other.close_code)


_UNSAID = {1005, 1006, 1015}
"""What a code is that nobody sent: these may not be (RFC 6455, section 7.4.1)."""


def code_after(code: int | None) -> int:
    """Return how to end a connection whose other end was closed with this code, or with none."""
    return GOING_AWAY if code is None or code in _UNSAID else code
