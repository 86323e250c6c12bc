"""Tunnels to ports of the environment whose servers are hostile: they end with our side."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from io import BytesIO
from typing import Any, cast

import pytest
from tests.cluster.environments import PATIENCE, until

from greylag.agentd.api import preview
from greylag.agentd.api.preview import Previews
from greylag.agentd.execution import Execution, joined
from greylag.agentd.problems import RequestError
from greylag.execd.protocol import Reader, Writer


class Ports:
    """Servers that read nothing, say nothing and close nothing."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []

    async def connect(self, _port: int) -> tuple[Reader, Writer]:
        ours, theirs = socket.socketpair()
        self.ends.append(theirs)
        return await asyncio.open_connection(sock=ours)


@asynccontextmanager
async def previews() -> AsyncIterator[tuple[Previews, Ports]]:
    ports = Ports()
    made = Previews(cast("Execution", ports))
    try:
        yield made, ports
    finally:
        await made.close()
        for end in ports.ends:
            end.close()


def tunnels() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "tunnel"]


@pytest.mark.parametrize("body", [b"", bytes(10_000_000)])
async def test_a_tunnel_to_a_port_that_does_nothing_ends_with_who_asked(body: bytes) -> None:
    async with previews() as (made, ports):
        asking = [asyncio.ensure_future(made.http.post("http://localhost:1/", data=BytesIO(body)))]
        await until(lambda: len(ports.ends) == 1, "it is not connected")
        asked = await asyncio.to_thread(ports.ends[0].recv, 10, socket.MSG_PEEK)
        assert asked.startswith(b"POST /")
        for one in asking:
            one.cancel()
        await asyncio.wait(asking)
        await until(lambda: not tunnels(), "a tunnel is left")


async def test_connections_are_joined_until_ours_ends_though_the_other_does_not() -> None:
    near, far = [socket.socketpair() for _ in range(2)]
    sides = [await asyncio.open_connection(sock=one) for one, _ in (near, far)]
    near[1].sendall(b"our last words")
    near[1].close()
    async with asyncio.timeout(PATIENCE):
        await joined(sides[0], sides[1])
    assert far[1].recv(100) == b"our last words"
    assert far[1].recv(100) == b""
    far[1].close()


async def test_who_is_cancelled_twice_leaves_no_connection_open() -> None:
    near, far = [socket.socketpair() for _ in range(2)]
    sides = [await asyncio.open_connection(sock=one) for one, _ in (near, far)]
    carrying = asyncio.create_task(joined(sides[0], sides[1]))
    await asyncio.sleep(0)
    carrying.cancel()
    while not sides[0][1].transport.is_closing():  # noqa: ASYNC110 - in the midst of its end
        await asyncio.sleep(0)
    carrying.cancel()
    await asyncio.wait({carrying}, timeout=PATIENCE)
    assert all(writer.transport.is_closing() for _, writer in sides)
    for _, end in (near, far):
        end.close()


async def test_strangers_have_some_of_the_places_and_the_others_of_them_wait_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preview, "_MOST_SHARED", 2)
    monkeypatch.setattr(preview, "_MOST_STRANGERS", 4)
    async with previews() as (made, _), AsyncExitStack() as held, asyncio.timeout(PATIENCE):
        first = made.place_for_stranger(socket=False)
        await first.__aenter__()
        await held.enter_async_context(made.place_for_stranger(socket=False))
        await held.enter_async_context(made.place_for_stranger(socket=True))
        waiting = asyncio.ensure_future(made.place_for_stranger(socket=False).__aenter__())
        await asyncio.sleep(0)
        for socket_ in (True, False):
            with pytest.raises(RequestError, match="as much open as may be"):
                await made.place_for_stranger(socket=socket_).__aenter__()
        assert not waiting.done()
        await first.__aexit__(None, None, None)
        await waiting
        monkeypatch.setattr(preview, "_PLACE_SECONDS", 0)
        with pytest.raises(RequestError, match="as much open as may be"):
            await made.place_for_stranger(socket=False).__aenter__()
        await held.enter_async_context(made.place_for_stranger(socket=True))
