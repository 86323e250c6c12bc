"""Listening: on which addresses, and what a taken port says."""

import asyncio
import errno
import socket

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from greylag.common.server import HttpServer, address_of, listen

needs_ipv6 = pytest.mark.skipif(
    not socket.has_dualstack_ipv6(), reason="this machine has no IPv6: it is NOT tested"
)


def reached(host: str, listener: socket.socket) -> bool:
    with socket.create_connection((host, listener.getsockname()[1]), timeout=10):
        return True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_name_or_an_address_is_listened_on_and_told_as_a_url(host: str) -> None:
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) in {f"http://127.0.0.1:{port}", f"http://[::1]:{port}"}
        assert reached(host, listener)


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_may_stand_in_brackets_and_is_told_in_brackets(host: str) -> None:
    with listen(host, 0) as listener:
        assert address_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"
        assert reached("::1", listener)


@needs_ipv6
def test_no_host_means_all_addresses_of_both_families() -> None:
    with listen("", 0) as listener:
        assert reached("127.0.0.1", listener)
        assert reached("::1", listener)


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_taken_port_is_told_at_once(host: str) -> None:
    with listen(host, 0) as first, pytest.raises(OSError, match="in use") as refused:
        listen(host, first.getsockname()[1])
    assert refused.value.errno == errno.EADDRINUSE


def test_a_host_that_is_none_is_an_os_error() -> None:
    with pytest.raises(OSError, match=r"."):
        listen("no such host.invalid", 0)


async def test_it_says_when_it_serves_and_lets_open_answers_end() -> None:
    asked, go_on, started = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(_: Request) -> PlainTextResponse:
        asked.set()
        await go_on.wait()
        return PlainTextResponse("whole")

    app = Starlette(routes=[Route("/", answer)])
    server = HttpServer(app, ends_within=30, started=started.set)
    with listen("127.0.0.1", 0) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        await started.wait()
        async with aiohttp.ClientSession() as client:
            asking = asyncio.create_task(client.get(address_of(listener)))
            await asked.wait()
            server.finish()
            go_on.set()
            assert await (await asking).text() == "whole"
        await serving
