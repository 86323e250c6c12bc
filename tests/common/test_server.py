"""Listening: on which addresses, and what a taken port says. Serving: what a client may cost."""

import asyncio
import errno
import itertools
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from greylag.agentd.main import http_server
from greylag.common.net import network_of
from greylag.common.server import TUNNEL, HttpServer, ServerLimits, addresses_of, listen
from greylag.common.sockets import LEFT, finishes
from greylag.web.schemas import ProblemDocument

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
        found = addresses_of(listener)
        assert found in ([f"http://127.0.0.1:{port}"], [f"http://[::1]:{port}"])
        assert reached(host, listener)


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_may_stand_in_brackets_and_is_told_in_brackets(host: str) -> None:
    with listen(host, 0) as listener:
        assert addresses_of(listener) == [f"http://[::1]:{listener.getsockname()[1]}"]
        assert reached("::1", listener)


@needs_ipv6
@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "[::]"])  # noqa: S104 - that is the point
def test_no_host_means_all_addresses_of_both_families(host: str) -> None:
    with listen(host, 0) as listener:
        assert reached("127.0.0.1", listener)
        assert reached("::1", listener)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])  # noqa: S104 - that is what is tested
def test_all_addresses_are_told_as_ones_that_can_be_opened(host: str) -> None:
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        first, *others = addresses_of(listener)
        assert first in {f"http://127.0.0.1:{port}", f"http://[::1]:{port}"}
        for one in (first, *others):
            assert reached(urlsplit(one).hostname or "", listener)


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_taken_port_is_told_at_once(host: str) -> None:
    with listen(host, 0) as first, pytest.raises(OSError, match="in use") as refused:
        listen(host, first.getsockname()[1])
    assert refused.value.errno == errno.EADDRINUSE
    assert refused.value.strerror == os.strerror(errno.EADDRINUSE)


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
            asking = asyncio.create_task(client.get(addresses_of(listener)[0]))
            await asked.wait()
            server.finish()
            go_on.set()
            assert await (await asking).text() == "whole"
        await serving


async def test_a_server_without_connections_rests_and_tells_the_time_when_one_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("greylag.common.server._LOOK_SECONDS", 0.0)
    looks = 0
    async with bounded() as one:

        def look(_: float) -> None:
            nonlocal looks
            looks += 1

        monkeypatch.setattr(one.server, "look", look)
        await one.heard(0)
        for now in (1_700_000_000, 1_700_003_600):
            # At once, however long ago the last look was.
            monkeypatch.setattr("greylag.common.server.time.time", lambda now=now: now)
            rested = looks
            await one.heard(0)
            assert looks == rested
            reader, writer = await one.ask(GET + b"\r\n")
            assert formatdate(now, usegmt=True).encode() in await reader.readuntil(b"\r\n\r\n")
            await one.heard(1)
            assert looks > rested + 1
            writer.close()
            await one.heard(0)


async def test_a_server_that_ends_cuts_streams_and_lets_uploads_come_to_their_end() -> None:
    async with bounded(finishes_within=60) as one:
        stream, _ = await one.ask(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n")
        await stream.readuntil(b"begun ")
        upload, sending = await one.ask(PUT + b"content-length: 2\r\n\r\n1")
        await one.asked.wait()
        await one.end_begins()
        one.pass_time(2)
        assert b"ended" not in await stream.read()
        one.pass_time(20)
        sending.write(b"2")
        assert (await upload.read()).endswith(b"\r\n\r\n2")


async def test_a_server_that_ends_closes_websockets_and_lets_those_finish_that_do() -> None:
    async with bounded(finishes_within=60) as one:
        lasting, _ = await one.ask(SOCKET + b"\r\n")
        finishing, saying = await one.ask(SOCKET.replace(b"/socket", b"/finishes") + b"\r\n")
        for reader in (lasting, finishing):
            await reader.readuntil(b"\r\n\r\n")
        await one.end_begins()
        restarting = b"\x88\x02" + (1012).to_bytes(2, "big")
        assert await lasting.read() == restarting
        one.pass_time(59)
        saying.write(b"\x82\x82" + bytes(4) + b"on")
        assert await finishing.readexactly(4) == b"\x82\x02on"
        one.pass_time(61)
        assert await finishing.read() == restarting


async def test_a_server_that_ends_lets_finish_what_has_no_length_and_an_end_of_its_own() -> None:
    async with bounded(finishes_within=60) as one:
        archive, _ = await one.ask(b"GET /archive HTTP/1.1\r\nhost: a\r\n\r\n")
        await archive.readuntil(b"begun ")
        await one.end_begins()
        one.pass_time(59)
        one.go_on.set()
        assert b"ended" in await archive.read()


async def test_a_websocket_whose_last_words_are_not_taken_breaks_no_server_s_end() -> None:
    async with bounded(finishes_within=60) as one:
        deaf = socket.create_connection(("127.0.0.1", one.port))
        with closing(deaf):
            deaf.sendall(SOCKET.replace(b"/socket", b"/flooded") + b"\r\n")
            await one.stalled()
            deaf.sendall(b"\x88\x82\0\0\0\0\x03\xe8")
            upload, sending = await one.ask(PUT + b"content-length: 2\r\n\r\n1")
            await one.asked.wait()
            await one.end_begins()
            one.pass_time(2)
            sending.write(b"2")
            assert (await upload.read()).endswith(b"\r\n\r\n2")


@pytest.mark.parametrize("twice", [False, True])
async def test_a_server_whose_end_cannot_wait_says_so_to_whoever_waits(*, twice: bool) -> None:
    async with bounded(finishes_within=60) as one:
        reader, _ = await one.ask(PUT + b"content-length: 2\r\n\r\n1")
        await one.asked.wait()
        await one.end_begins()
        if twice:
            one.server.finish()
        else:
            one.pass_time(61)
        assert await refused(reader) == (503, "server_ending")
        assert one.left.is_set()


# What a client may cost. Time passes as the tests say, by ``look``.

GET = b"GET / HTTP/1.1\r\nhost: a\r\n"
PUT = b"PUT /read HTTP/1.1\r\nhost: a\r\n"
UPGRADE = (
    b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SOCKET = b"GET /socket HTTP/1.1\r\nhost: a\r\n" + UPGRADE
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Bounded:
    """A server, and what its application has seen."""

    limits: ServerLimits | None
    finishes_within: int | None = None
    left: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    produced: int = 0

    def __post_init__(self) -> None:
        routes = [
            Route("/", self._hello),
            Route("/who", self._who),
            Route("/read", self._read, methods=["PUT"]),
            Route("/ignore", self._hello, methods=["PUT"]),
            Route("/wait", self._wait),
            Route("/archive", self._archive),
            Route("/flood", self._flood),
            WebSocketRoute("/socket", self._echo),
            WebSocketRoute("/who", self._greet),
            WebSocketRoute("/taken", self._taken),
            WebSocketRoute("/deaf", self._deaf),
            WebSocketRoute("/finishes", self._finishes),
            WebSocketRoute("/flooded", self._flooded),
        ]
        app = Starlette(routes=routes)
        self.server = (
            http_server(app)
            if self.limits is None
            else HttpServer(
                app, ends_within=1, finishes_within=self.finishes_within, limits=self.limits
            )
        )
        self._open = AsyncExitStack()
        self.port = 0

    async def _hello(self, _: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    async def _who(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.scope["client"][0])

    async def _greet(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(socket.scope["client"][0])

    async def _read(self, request: Request) -> PlainTextResponse:
        self.asked.set()
        try:
            return PlainTextResponse(str(len(await request.body())))
        except ClientDisconnect:
            self.left.set()
            raise

    async def _wait(self, _: Request) -> StreamingResponse:
        async def words() -> AsyncIterator[bytes]:
            yield b"begun "
            await self.go_on.wait()
            yield b"ended"

        return StreamingResponse(words())

    async def _archive(self, request: Request) -> StreamingResponse:
        finishes(request.scope)
        return await self._wait(request)

    async def _flooded(self, socket: WebSocket) -> None:
        await socket.accept()
        with suppress(WebSocketDisconnect):
            while True:
                self.produced += 1
                await socket.send_bytes(bytes(65_536))

    async def _echo(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send_bytes(await socket.receive_bytes())
        except WebSocketDisconnect:
            self.left.set()

    async def _finishes(self, socket: WebSocket) -> None:
        finishes(socket.scope)
        await self._echo(socket)

    async def _taken(self, socket: WebSocket) -> None:
        await socket.accept()
        reader, writer = socket.scope["extensions"][TUNNEL]["take"]()
        while data := await reader.read(100):
            writer.write(data.upper())
        writer.close()
        self.left.set()

    async def _deaf(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.receive_bytes()
        self.asked.set()
        await socket.scope["extensions"][LEFT]["wait"]()
        self.left.set()

    async def _flood(self, _: Request) -> StreamingResponse:
        async def blocks() -> AsyncIterator[bytes]:
            try:
                while True:
                    self.produced += 1
                    yield bytes(65_536)
                    await asyncio.sleep(0)
            finally:
                self.left.set()

        return StreamingResponse(blocks())

    async def connect(self, host: str = "127.0.0.1") -> Connection:
        """Open a connection that the test's end closes."""
        reader, writer = await asyncio.open_connection(host, self.port)
        self._open.callback(writer.close)
        return reader, writer

    async def ask(self, sent: bytes, host: str = "127.0.0.1") -> Connection:
        """Open a connection and send something on it."""
        reader, writer = await self.connect(host)
        writer.write(sent)
        await writer.drain()
        return reader, writer

    async def heard(self, count: int) -> None:
        """Wait until the server has so many connections, and has read what came on them."""
        while len(self.server.server_state.connections) != count:  # noqa: ASYNC110 - the server tells of none
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)

    async def stalled(self) -> None:
        """Wait until no more is taken of what the application produces."""
        before = 0
        while before != self.produced:
            before = self.produced
            for _ in range(100):
                await asyncio.sleep(0)

    async def end_begins(self) -> None:
        """Ask for the server's end, and wait until it has begun."""
        self.server.finish()
        while self.server.servers[0].is_serving():  # noqa: ASYNC110 - the server tells of it to nobody
            await asyncio.sleep(0)

    def pass_time(self, seconds: float) -> None:
        """Let the server look at its connections as if so much time had passed."""
        self.server.look(asyncio.get_running_loop().time() + seconds)

    async def close(self) -> None:
        await self._open.aclose()


@asynccontextmanager
async def bounded(
    limits: ServerLimits | None = ServerLimits(),  # noqa: B008 - it is frozen
    host: str = "127.0.0.1",
    finishes_within: int | None = None,
) -> AsyncIterator[Bounded]:
    """Serve with these limits; with agentd's own when there are none."""
    one = Bounded(limits, finishes_within)
    with listen(host, 0) as listener:
        one.port = listener.getsockname()[1]
        serving = asyncio.create_task(one.server.serve([listener]))
        try:
            yield one
        finally:
            one.go_on.set()
            await one.close()
            one.server.finish()
            await serving


async def refused(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Return status and code of an answer that ends its connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"connection: close" in head
    body = json.loads(await reader.read())
    assert body["status"] == int(head.split()[1])
    return body["status"], body["code"]


@pytest.mark.parametrize(
    "begin",
    [
        GET + b"x: ",
        b"GET /",
        b"GET / HTTP/1.1\r\n",
        b"PUT /read HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: ",
    ],
)
async def test_headers_without_an_end_are_refused_while_they_come(begin: bytes) -> None:
    async with bounded() as one:
        reader, writer = await one.ask(begin)
        answered = asyncio.create_task(refused(reader))
        sent = 0
        while not answered.done() and sent < 4_000_000:
            writer.write(b"y" * 8192)
            sent += 8192
            await writer.drain()
            await asyncio.sleep(0)
        assert await answered == (431, "headers_too_large")
        assert sent < 1_000_000


async def test_headers_without_number_are_refused_before_they_are_whole() -> None:
    async with bounded() as one:
        reader, _ = await one.ask(GET + b"a:b\r\n" * 300)
        assert await refused(reader) == (431, "headers_too_large")


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\r\n\r\n", GET + b"a:b\r\n" * 300])
async def test_a_refusal_is_a_problem_document_of_the_form_of_all_others(sent: bytes) -> None:
    async with bounded() as one:
        reader, _ = await one.ask(sent)
        await reader.readuntil(b"\r\n\r\n")
        problem = ProblemDocument.model_validate_json(await reader.read())
        assert problem.type == f"urn:greylag:error:{problem.code}"
        assert problem.hint


async def test_large_headers_within_the_limits_are_answered() -> None:
    async with bounded() as one:
        reader, _ = await one.ask(GET + b"x: " + b"y" * 60_000 + b"\r\n\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")


async def test_headers_that_are_not_whole_in_time_are_refused() -> None:
    async with bounded() as one:
        reader, writer = await one.ask(GET)
        await one.heard(1)
        one.pass_time(14)
        writer.write(b"x: y\r\n")  # a drop now and then does not help
        await writer.drain()
        await one.heard(1)
        one.pass_time(15)
        assert await refused(reader) == (408, "request_too_slow")


async def test_a_connection_that_says_nothing_just_ends() -> None:
    async with bounded() as one:
        reader, _ = await one.connect()
        await one.heard(1)
        one.pass_time(15)
        assert await reader.read() == b""


async def test_a_body_that_stops_is_refused_and_its_handler_is_told() -> None:
    async with bounded() as one:
        reader, writer = await one.ask(PUT + b"content-length: 9\r\n\r\n")
        await one.asked.wait()
        one.pass_time(29)
        writer.write(b"abc")
        await writer.drain()
        await one.heard(1)
        one.pass_time(29)
        assert not one.left.is_set()
        one.pass_time(31)
        assert await refused(reader) == (408, "request_too_slow")
        await one.left.wait()


async def test_a_body_that_nobody_reads_may_go_on_for_a_moment_only() -> None:
    async with bounded() as one:
        head = b"PUT /ignore HTTP/1.1\r\nhost: a\r\ncontent-length: 900000\r\n\r\n"
        reader, writer = await one.ask(head)
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
        writer.write(b"some of it")
        await writer.drain()
        await one.heard(1)
        one.pass_time(6)
        await one.heard(0)


async def test_a_body_that_comes_after_its_answer_leaves_the_connection_usable() -> None:
    async with bounded() as one:
        head = b"PUT /ignore HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n"
        reader, writer = await one.ask(head)
        await reader.readuntil(b"hello")
        writer.write(b"abc" + GET + b"\r\n")
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
        one.pass_time(6)
        writer.write(GET + b"\r\n")
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")


async def test_a_stream_is_not_cut_for_its_age() -> None:
    async with bounded() as one:
        reader, writer = await one.ask(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n")
        await reader.readuntil(b"begun ")
        writer.write(b"GET /")  # nor for a next request that is begun meanwhile
        await one.heard(1)
        one.pass_time(1_000_000)
        one.go_on.set()
        assert b"ended" in await reader.readuntil(b"0\r\n\r\n")


async def test_a_reader_that_takes_nothing_holds_little_and_not_for_ever() -> None:
    async with bounded() as one:
        await one.ask(b"GET /flood HTTP/1.1\r\nhost: a\r\n\r\n")
        before = -1
        while before != one.produced:
            before = one.produced
            for _ in range(200):
                await asyncio.sleep(0)
        # What the system keeps for a socket, and one block that waits here.
        (connection,) = one.server.server_state.connections
        assert connection.transport.get_write_buffer_size() <= 3 * 65_536
        one.pass_time(0)
        one.pass_time(299)
        assert not one.left.is_set()
        one.pass_time(301)
        await one.left.wait()


async def test_requests_sent_ahead_without_number_end_the_connection() -> None:
    async with bounded() as one:
        reader, _ = await one.ask(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n" * 1000)
        assert await refused(reader) == (429, "too_many_requests")


async def test_half_open_requests_give_way_to_whole_ones() -> None:
    async with bounded(ServerLimits(connections=16)) as one:
        readers = [(await one.ask(GET))[0] for _ in range(16)]
        await one.heard(16)
        for _ in range(20):
            reader, writer = await one.ask(GET + b"connection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
        told = [asyncio.create_task(refused(reader)) for reader in readers]
        done, others = await asyncio.wait(told, return_when=asyncio.FIRST_COMPLETED)
        assert {await one for one in done} == {(503, "too_many_connections")}
        for other in others:
            other.cancel()


async def test_a_server_whose_connections_all_are_answered_refuses_more() -> None:
    async with bounded(ServerLimits(connections=16)) as one:
        for _ in range(16):
            reader, _ = await one.ask(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n")
            await reader.readuntil(b"begun ")
        reader, _ = await one.ask(GET + b"\r\n")
        assert await refused(reader) == (503, "too_many_connections")


async def test_agentd_s_own_server_has_its_limits_too() -> None:
    async with asyncio.timeout(10), bounded(None) as one:
        reader, _ = await one.ask(GET + b"a:b\r\n" * 300)
        assert await refused(reader) == (431, "headers_too_large")
    async with bounded(None) as one:
        half = [await one.ask(GET) for _ in range(3)]
        await one.heard(3)
        one.pass_time(20)
        assert {await refused(reader) for reader, _ in half} == {(408, "request_too_slow")}


def _own_address() -> str | None:
    families = itertools.chain.from_iterable(psutil.net_if_addrs().values())
    found = (one.address for one in families if one.family is socket.AF_INET)
    return next((address for address in found if not address.startswith("127.")), None)


OWN = _own_address()


@pytest.mark.skipif(OWN is None, reason="this machine has loopback only: it is NOT tested")
@pytest.mark.parametrize("proxied", [False, True])
async def test_one_client_address_has_so_many_connections(*, proxied: bool) -> None:
    assert OWN is not None
    proxies = [network_of(OWN)] if proxied else []
    async with bounded(ServerLimits(per_address=3, proxies=proxies), host="") as one:
        held = [await one.connect(OWN) for _ in range(3)]
        await one.heard(3)
        reader, _ = await one.ask(GET + b"\r\n", OWN)
        if proxied:
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
            return
        assert await refused(reader) == (429, "too_many_connections")
        for _ in range(4):  # loopback is not counted
            reader, _ = await one.ask(GET + b"\r\n")
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
        held[0][1].close()
        while True:
            reader, writer = await one.ask(GET + b"connection: close\r\n\r\n", OWN)
            answer = await reader.read()
            writer.close()
            if answer.startswith(b"HTTP/1.1 200"):
                break


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
async def test_a_client_s_address_is_the_same_whatever_is_listened_on(host: str) -> None:
    async with bounded(host=host) as one:
        reader, _ = await one.ask(GET.replace(b"/", b"/who", 1) + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(9) == b"127.0.0.1"
        reader, _ = await one.ask(SOCKET.replace(b"/socket", b"/who") + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(11) == b"\x81\x09127.0.0.1"


# WebSockets.


@pytest.mark.skipif(OWN is None, reason="this machine has loopback only: it is NOT tested")
async def test_a_websocket_is_counted_until_it_ends() -> None:
    assert OWN is not None
    async with bounded(ServerLimits(per_address=3), host="") as one:
        held = [await one.ask(SOCKET + b"\r\n", OWN) for _ in range(3)]
        for reader, _ in held:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        reader, writer = await one.ask(SOCKET + b"\r\n", OWN)
        assert await refused(reader) == (429, "too_many_connections")
        writer.close()
        held[0][1].close()
        await one.heard(2)
        reader, _ = await one.ask(SOCKET + b"\r\n", OWN)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (SOCKET + b"content-length: 5\r\n\r\nhello", (400, "malformed_request")),
        (SOCKET + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", (400, "malformed_request")),
        (SOCKET + b"cookie: " + b"x" * 9000 + b"\r\n\r\n", (400, "malformed_request")),
        (SOCKET + b"".join(b"a: b\r\n" for _ in range(150)) + b"\r\n", (400, "malformed_request")),
        (b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n" + SOCKET + b"\r\n", (429, "too_many_requests")),
    ],
)
async def test_a_handshake_that_is_none_ends_its_connection(
    sent: bytes, told: tuple[int, str]
) -> None:
    async with bounded() as one:
        reader, _ = await one.ask(sent)
        assert await refused(reader) == told
        one.pass_time(6)
        await one.heard(0)


async def test_a_websocket_that_was_taken_is_bytes_and_ends_with_the_server() -> None:
    async with bounded() as one:
        taken = SOCKET.replace(b"/socket", b"/taken") + b"\r\n"
        reader, writer = await one.ask(taken)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        for data in (b"\x89\xfd any", b"bytes"):
            writer.write(data)
            assert await reader.readexactly(len(data)) == data.upper()
        writer.write_eof()
        assert await reader.read() == b""
        await one.heard(0)
        assert one.left.is_set()
        reader, writer = await one.ask(taken)
        await reader.readuntil(b"\r\n\r\n")
        one.server.finish()
        with suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_a_client_that_left_is_noticed_though_its_messages_are_not_received() -> None:
    message = b"\x82\x84" + bytes(4) + b"some"
    async with bounded() as one:
        reader, writer = await one.ask(SOCKET.replace(b"/socket", b"/deaf") + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(20):
            writer.write(message * 1000)
            await one.asked.wait()
            for _ in range(5):
                one.pass_time(0)
            assert not one.left.is_set()
            writer.close()
            await writer.wait_closed()
            while not one.left.is_set():
                one.pass_time(0)
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "frames",
    [
        b"\x89\xfd" + bytes(4) + bytes(125),  # pings, whose answers nobody reads
        b"\x00\x80" + bytes(4),  # parts of a message, all of them empty
    ],
)
async def test_frames_that_cost_the_server_more_than_the_client_are_cut_off(frames: bytes) -> None:
    async with bounded() as one:
        reader, writer = await one.ask(SOCKET + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x02\x80" + bytes(4) if frames[0] == 0 else b"")
        cut = False
        while not cut:
            writer.write(frames * 5000)
            try:
                await writer.drain()
            except ConnectionError:
                cut = True
