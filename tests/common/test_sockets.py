"""WebSockets joined: what one side says last is told, whatever the other does meanwhile."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import aiohttp
from aiohttp import web
from tests.agentd.conftest import serve

from greylag.common import sockets

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

LAST_WORDS = ["one", "two", "the exit code"]


async def _ending(request: web.Request) -> web.WebSocketResponse:
    """Say the last words, and close."""
    socket = web.WebSocketResponse(timeout=0.01)  # it waits for no answer to its end
    await socket.prepare(request)
    for words in LAST_WORDS:
        await socket.send_str(words)
    await socket.close()
    return socket


class _Client:
    """A client that types all the time, and reads slowly."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"type": "websocket.receive", "text": "typed"}

    async def send_text(self, text: str) -> None:
        await asyncio.sleep(0.01)
        self.heard.append(text)


async def test_who_types_on_as_the_other_side_ends_hears_its_last_words() -> None:
    app = web.Application()
    app.router.add_get("/", _ending)
    async with serve(app) as address, aiohttp.ClientSession() as http:
        opened = await http.ws_connect(address)
        async with asyncio.timeout(20):
            with suppress(aiohttp.ClientError):
                while True:  # until the connection is gone, with what it said not read yet
                    await opened.ping()
                    await asyncio.sleep(0.01)
        client = _Client()
        peer = sockets.Peer(opened, lambda: RuntimeError("The connection broke."))
        code = await sockets.join(cast("WebSocket", client), peer)
    assert client.heard == LAST_WORDS
    assert code in {sockets.NORMAL, sockets.GOING_AWAY}
