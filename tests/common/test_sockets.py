"""WebSockets joined: what one side says last is told, whatever the other does meanwhile."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import pytest
from aiohttp import web
from tests.agentd.conftest import serve

from greylag.common import sockets

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from greylag.common.agent_api import OpenSocket

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

    def __init__(self, lost: asyncio.Event | None = None) -> None:
        self.heard: list[str] = []
        self.scope = {"extensions": {sockets.LEFT: {"wait": (lost or asyncio.Event()).wait}}}

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


class _Blocked:
    """An agent that takes nothing and says nothing."""

    close_code = None

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def send(self, _: bytes | str) -> None:
        self.asked.set()
        await asyncio.Event().wait()

    async def receive(self) -> bytes | str | None:
        await asyncio.Event().wait()
        return None


async def test_a_client_that_left_is_noticed_though_the_other_side_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sockets, "_LAST_WORDS_SECONDS", 0)
    lost, other = asyncio.Event(), _Blocked()
    client = cast("WebSocket", _Client(lost))
    joining = asyncio.create_task(sockets.join(client, cast("OpenSocket", other)))
    async with asyncio.timeout(20):
        await other.asked.wait()
        lost.set()
        with pytest.raises(sockets.SocketClosedError):
            await joining
