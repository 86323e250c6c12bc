"""What is asked of a port of the environment, over the real agentd, execd and an application."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from tests.agentd.api.test_terminal_routes import connected, site, until
from tests.agentd.doubles import Api
from yarl import URL

from greylag.common import forwarding

SERVED = Path(__file__).parent / "data" / "served.py"


@asynccontextmanager
async def application(folder: Path, **changes: Any) -> AsyncIterator[tuple[Api, int]]:
    """Run agentd, execd, and the application in the environment; give its port."""
    async with site(folder, **changes) as api, connected(api, "/api/v1/commands") as command:
        await command.send_json({"run": {"argv": [sys.executable, str(SERVED)]}})
        yield api, int((await until(command, b"\n")).replace(b"\1", b""))


async def test_what_is_asked_comes_as_it_was_asked(tmp_path: Path) -> None:
    async with application(tmp_path) as (api, port):
        status, listed = await api.json("GET", "/api/v1/ports")
        assert status == 200
        assert {"port": port} in [{"port": one["port"]} for one in listed["ports"]]
        preview = f"/api/v1/preview/{port}"
        sent = {"x-greylag-forwarded-authorization": "Basic eDp5", "accept": "a/b", "x-own": "1"}
        sent |= {"connection": "x-hop", "x-hop": "1"}
        for method, target, length in (
            ("GET", "/a%2Fb/../c?x=%20&y", 0),
            ("POST", "//x", 70_000),
            ("DELETE", "/", 0),
            ("OPTIONS", "/", 0),
        ):
            url = URL(api.base + preview + target, encoded=True)
            body = b"z" * length if length else None
            async with api.http.request(method, url, headers=sent, data=body) as answer:
                told = json.loads(await answer.read())
                assert answer.status == 200
            assert (told["method"], told["target"], told["length"]) == (method, target, length)
            headers = dict(told["headers"])
            assert headers["host"] == f"localhost:{port}"
            assert (headers["authorization"], headers["x-own"]) == ("Basic eDp5", "1")
            assert "x-hop" not in headers

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(10):
                yield b"piece"

        async with api.http.put(api.base + preview, data=pieces()) as answer:
            assert json.loads(await answer.read())["length"] == 50
        by_a_proxy = {"x-forwarded-host": "a", "x-forwarded-uri": "/b", "x-greylag-apart": "1"}
        came_by = {"x-forwarded-for": "192.0.2.1, 10.0.0.1,10.0.0.2"}
        async with api.http.get(f"{api.base}{preview}/", headers=by_a_proxy | came_by) as answer:
            told = dict(json.loads(await answer.read())["headers"])
            assert not by_a_proxy.keys() & told.keys()
            assert told["x-forwarded-for"] == "192.0.2.1"
            assert answer.headers.getall("x-greylag-theirs-set-cookie")[0].startswith("one=1")
            assert "set-cookie" not in answer.headers
        async with api.http.head(f"{api.base}{preview}/") as answer:
            assert int(answer.headers["content-length"]) > 0


async def test_an_answer_streams_and_ends_with_its_reader(tmp_path: Path) -> None:
    async with application(tmp_path) as (api, port):
        preview = f"{api.base}/api/v1/preview/{port}"
        # Of this test's own: the same program may run for another at the same time.
        (process,) = [
            one
            for one in psutil.Process().children(recursive=True)
            if str(SERVED) in one.as_dict(["cmdline"], ad_value=())["cmdline"]
        ]

        def streams() -> int:
            found = process.net_connections("tcp")
            return sum(one.status == psutil.CONN_ESTABLISHED for one in found)

        async with api.http.get(f"{preview}/stream") as answer:
            assert await answer.content.readline() == b"data: begun\n"
            assert streams() == 1
        async with asyncio.timeout(20):
            while streams():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.02)
        with pytest.raises(aiohttp.ClientError):
            async with api.http.get(f"{preview}/stream?break=1") as answer:
                await answer.read()
        async with api.http.get(f"{preview}/big") as answer:
            assert len(await answer.read()) == 50_000_000
        async with api.http.get(f"{preview}/away", allow_redirects=False) as answer:
            assert answer.status == 302


async def exchange_large_messages(opened: aiohttp.ClientWebSocketResponse) -> None:
    """Have messages of many sizes echoed: each whole, of its kind, and in order."""
    sizes = (0, 5, 65_535, 65_536, 70_000, 5_000_000, 20_000_000)
    messages = [kind for size in sizes for kind in ("ä" * (size // 2), os.urandom(size))]

    async def ask() -> None:
        for one in messages:
            await (opened.send_str(one) if isinstance(one, str) else opened.send_bytes(one))

    asking = asyncio.create_task(ask(), name="ask")
    for one in messages:
        came = await opened.receive(60)
        assert came.data == one, (came.type, len(one))
    await asking


async def check_that_a_slow_reader_holds_the_application_back(
    opened: aiohttp.ClientWebSocketResponse, said: Callable[[], Awaitable[int]]
) -> None:
    """Read nothing of the 100 MB that the application says, and say as much to it: both have to
    wait, as nothing on the way keeps more than the kernel's windows.
    """
    most, seen = 64_000_000, 0
    with suppress(TimeoutError):
        while seen < most:
            async with asyncio.timeout(1):
                await opened.send_bytes(bytes(1_000_000))
            seen += 1_000_000
    assert seen < most
    before, now = -1, await said()
    while now != before:
        await asyncio.sleep(0.5)
        before, now = now, await said()
    assert 0 < now < most
    for _ in range(100):
        assert len(await opened.receive_bytes(timeout=20)) == 1_000_000


async def test_sockets_pass_with_their_subprotocol_and_end(tmp_path: Path) -> None:
    async with application(tmp_path) as (api, port):
        url = f"{api.base}/api/v1/preview/{port}/socket"
        offered = ("other", "vite-hmr")
        async with api.http.ws_connect(url, protocols=offered, max_msg_size=0) as opened:
            assert opened.protocol == "vite-hmr"
            await exchange_large_messages(opened)
            await opened.send_str("bye")
            assert await opened.receive_str() == "bye"
            await opened.receive()
            assert opened.close_code == 4321


@pytest.mark.parametrize("path", ["lying", "away", "any"])
async def test_only_an_application_that_agrees_to_a_socket_is_given_one(
    tmp_path: Path, path: str
) -> None:
    async with application(tmp_path) as (api, port):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await api.http.ws_connect(f"{api.base}/api/v1/preview/{port}/{path}")
        assert refused.value.status == 502


async def test_who_takes_nothing_of_what_is_said_to_it_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "_UNREAD_SECONDS", 0.2)
    async with application(tmp_path) as (api, port):
        url = f"{api.base}/api/v1/preview/{port}"
        async with api.http.ws_connect(f"{url}/talking", max_msg_size=0) as opened:
            before, said = -1, 0
            while said != before:
                await asyncio.sleep(0.4)
                async with api.http.get(f"{url}/said") as answer:
                    before, said = said, int(await answer.read())
            while (await opened.receive(20)).type is aiohttp.WSMsgType.BINARY:
                pass
            assert opened.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE


async def test_what_cannot_be_handed_on_is_told_by_agentd_itself(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        async with site(tmp_path) as api:
            own = int(api.base.rpartition(":")[2])
            for port in (own, foreign.getsockname()[1], 1, 99_999):
                async with api.http.get(f"{api.base}/api/v1/preview/{port}/") as answer:
                    assert answer.status == 502
                    assert answer.headers["x-greylag-not-forwarded"] == "not_answered"
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await api.http.ws_connect(f"{api.base}/api/v1/preview/{port}/")
                assert refused.value.status == 502
            async with api.http.get(f"{api.base}/api/v1/preview/x") as answer:
                assert answer.status == 400
