"""WebSockets as agentd and the web both use them: messages both ways, until one side ends."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn

import aiohttp
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

NORMAL, GOING_AWAY, WRONG, FAILED = 1000, 1001, 1008, 1011
"""Why a connection is closed (RFC 6455, section 7.4.1)."""


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


async def until_one_ends(**both: Coroutine[Any, Any, None]) -> None:
    """Run all at once until one of them has ended, by an error too; the others are cancelled."""
    tasks = [asyncio.create_task(one, name=name) for name, one in both.items()]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()
