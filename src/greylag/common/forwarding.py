"""Handing a whole HTTP request on to another server, and its answer back, in constant memory.

Both sides are read and written by HTTP libraries: no byte of a head passes without having been
parsed. What is about one connection is never passed on. A WebSocket is opened so on both sides;
past that the bytes of its frames are handed on as they come, whatever its messages' sizes.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import cast

import aiohttp
from starlette.datastructures import Headers as RawHeaders
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri
from yarl import URL

from greylag.common import net
from greylag.common.agent_api import (
    APART,
    THEIRS,
    ForwardedAnswer,
    ForwardedRequest,
    ForwardedSocket,
)
from greylag.common.concurrent import cancel_all, until_one_ends
from greylag.common.server import TUNNEL, Stream

Headers = list[tuple[bytes, bytes]]
Opening = Callable[[ForwardedRequest], AbstractAsyncContextManager[ForwardedAnswer]]
Carrying = Callable[[int], None]
"""Is told the size of each piece that is carried."""

CONNECT_SECONDS = 10.0
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""What is handed on; TRACE would tell headers that are not the client's to see."""
HANDSHAKE = (
    b"sec-websocket-accept",
    b"sec-websocket-extensions",
    b"sec-websocket-key",
    b"sec-websocket-protocol",
    b"sec-websocket-version",
)
"""The headers of a WebSocket's own, which each connection has of its own."""
DEFAULTS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""The headers that the HTTP library adds where none are given; nothing handed on wants them."""
TOLD_BY_PROXIES = (
    b"forwarded",
    b"x-forwarded-host",
    b"x-forwarded-port",
    b"x-forwarded-proto",
    b"x-forwarded-scheme",
    b"x-forwarded-ssl",
    b"x-forwarded-uri",
)
"""The headers by which proxies, the API server among them, say by what name they were asked."""
_OF_THE_BODY = (b"content-encoding", b"content-length")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_HANDSHAKE_SECONDS = 30.0
_UNREAD_SECONDS = 300.0
"""How long a side of a WebSocket may take nothing of what lies ready for it."""
_PARTING_SECONDS = 10.0
"""How long a WebSocket's other side may go on when one has ended."""
_HEAD_END = b"\r\n\r\n"
_READ = 64 * 1024
_KEPT_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""How a side that vanished is noticed, in seconds; not every system has each."""
_PATIENCE = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)


class UnansweredError(Exception):
    """Nobody answers what was handed on, or not as HTTP has it; the message says why."""


class RefusedSocketError(UnansweredError):
    """What was asked for a WebSocket gives another answer, of this status and with these headers
    (by their names in small letters).
    """

    def __init__(self, status: int, headers: Headers) -> None:
        super().__init__(f"the request for a WebSocket is answered by HTTP {status}")
        self.status = status
        self.headers = headers


class BrokenOffError(Exception):
    """One side ended before a request or an answer was whole."""


def end_to_end(headers: Iterable[tuple[bytes, bytes]], *without: bytes) -> Headers:
    """Return the headers that pass: well formed, not about one connection, none of ``without``."""
    given = RawHeaders(raw=[(name.lower(), value) for name, value in headers])
    passed = net.end_to_end(given, {name.decode() for name in without})
    encoded = ((name.encode("latin-1"), value.encode("latin-1")) for name, value in passed)
    return [(n, v) for n, v in encoded if _NAME.fullmatch(n) and not _CONTROL.search(v)]


def set_apart(headers: Headers) -> Headers:
    """Return an answer's headers under names at which nothing between looks: the API server's proxy
    leads links of pages and redirects to itself, takes CORS away and adds headers of its own. What
    is about the body, which others may encode, stays as it is. ``put_back`` undoes it.
    """
    kept = [one for one in headers if one[0] in _OF_THE_BODY]
    theirs = [(THEIRS.encode() + n, value) for n, value in headers if n not in _OF_THE_BODY]
    told = [(b"content-type", b"application/octet-stream"), (APART.encode(), b"1")]
    return [*kept, *theirs, *told]


def put_back(headers: Headers) -> Headers:
    """Return an answer's headers as they were set apart; where they were not, as they came."""
    if not any(name == APART.encode() for name, _ in headers):
        return headers
    begin = THEIRS.encode()
    theirs = [(n.removeprefix(begin), value) for n, value in headers if n.startswith(begin)]
    kept = [one for one in headers if one[0] in _OF_THE_BODY]
    return [*kept, *end_to_end(theirs, *_OF_THE_BODY)]


async def forward(  # noqa: PLR0913, PLR0917 - an ASGI call, and where it goes
    scope: Scope, receive: Receive, send: Send, target: str, headers: Headers, opening: Opening
) -> None:
    """Answer a request with what ``opening`` says to it, until that ends or the client leaves.

    What ``opening`` raises on entering comes out; past the answer's head it just ends, so that no
    client takes a part for the whole.

    Args:
        scope: the request's.
        receive: the same.
        send: the same.
        target: path and query as they are sent on.
        headers: the same.
        opening: hands the request on.
    """
    length = dict(scope["headers"]).get(b"content-length")
    body = None
    sent = [one for one in headers if one[0] not in {b"expect", b"content-length"}]
    if length is not None and int(length):
        body = _Body(receive)
        sent.append((b"content-length", length))
    elif any(name == b"transfer-encoding" for name, _ in scope["headers"]):
        body = _Body(receive)
    chunks = None if body is None else body.chunks()
    async with opening(ForwardedRequest(scope["method"], target, sent, chunks)) as answer:
        whole = None if body is None else body.whole
        await until_one_ends(answer=_answer(answer, send), left=_left(receive, whole))


async def _answer(answer: ForwardedAnswer, send: Send) -> None:
    start = {"type": "http.response.start", "status": answer.status, "headers": answer.headers}
    await send(start)
    try:
        async for chunk in answer.body:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except BrokenOffError:
        return
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Body:
    """A request's body; ``whole`` once all of it has come."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.whole = asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield it as it comes."""
        while not self.whole.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise BrokenOffError("The request's body broke off.")
            if not message.get("more_body", False):
                self.whole.set()
            yield message.get("body", b"")


async def _left(receive: Receive, whole: asyncio.Event | None) -> None:
    """Return when the client has left; a body is nobody else's to receive."""
    if whole is not None:
        await whole.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def asked(
    http: aiohttp.ClientSession, base: str, request: ForwardedRequest
) -> AsyncIterator[ForwardedAnswer]:
    """Send a request to the server at ``base``, and give its answer.

    Raises:
        UnansweredError: on entering.
        BrokenOffError: on reading: the answer breaks off.
    """
    try:
        response = await http.request(
            request.method,
            # Encoded already: the library's own tidying would resolve dots.
            URL(base + request.target, encoded=True),
            headers=_texts(request.headers),
            skip_auto_headers=DEFAULTS,
            data=request.body,
            timeout=_PATIENCE,
            allow_redirects=False,
        )
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise UnansweredError(str(error) or type(error).__name__) from error
    try:
        # Each server says its own date, and how long an answer is that came in chunks is not known.
        chunked = {b"content-length"} if "transfer-encoding" in response.headers else set()
        headers = end_to_end(response.raw_headers, b"date", *chunked)
        yield ForwardedAnswer(response.status, headers, _chunks(response))
    finally:
        response.close()


@asynccontextmanager
async def socket_opened(
    connecting: Awaitable[Stream], url: str, headers: Headers, protocols: Iterable[str]
) -> AsyncIterator[ForwardedSocket]:
    """Open a WebSocket to another server.

    Args:
        connecting: connects to it.
        url: its http or https address, as it is sent on.
        headers: the same.
        protocols: the subprotocols that are offered.

    Raises:
        UnansweredError: on entering: it cannot be had.
        RefusedSocketError: on entering: it is refused.
    """
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            stream = await connecting
    except OSError as error:  # TimeoutError is one
        raise UnansweredError(str(error) or type(error).__name__) from error
    try:
        yield ForwardedSocket(*stream, await _shaken(stream, url, headers, protocols))
    finally:
        stream[1].transport.abort()


async def _shaken(
    stream: Stream, url: str, headers: Headers, protocols: Iterable[str]
) -> str | None:
    """Have a handshake as a client; return the subprotocol that was chosen."""
    reader, writer = stream
    origin, _, target = url.removeprefix("http").partition("://")[2].partition("/")
    offered = [Subprotocol(one) for one in protocols]
    client = ClientProtocol(parse_uri(f"ws://{origin}/"), subprotocols=offered or None)
    request = client.connect()
    request.path = f"/{target}"  # as it is: the library's own reading would leave parts out
    for name, value in _texts(headers):
        request.headers[name] = value
    client.send_request(request)
    try:
        writer.writelines(client.data_to_send())
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            await writer.drain()
            # No more than the head: the bytes after it are not the library's to read, unless it
            # refuses, in its own words.
            client.receive_data(await reader.readuntil(_HEAD_END))
            while client.state is State.CONNECTING and client.handshake_exc is None:
                if said := await reader.read(_READ):
                    client.receive_data(said)
                else:
                    client.receive_eof()
    except (OSError, EOFError, asyncio.LimitOverrunError) as error:
        raise UnansweredError(str(error) or type(error).__name__) from error
    refused = client.handshake_exc
    if isinstance(refused, InvalidStatus):
        given = [(n.lower(), value) for n, value in refused.response.headers.raw_items()]
        names = [(n.encode("latin-1"), value.encode("latin-1")) for n, value in given]
        raise RefusedSocketError(refused.response.status_code, names) from refused
    if client.state is not State.OPEN:
        raise UnansweredError(str(refused)) from refused
    return client.subprotocol


async def hand_on(
    client: WebSocket,
    opening: AbstractAsyncContextManager[ForwardedSocket],
    carrying: Carrying = lambda _size: None,
) -> None:
    """Join a client's WebSocket to another; the subprotocol is what the other end chose. One that
    another server than ``HttpServer`` has taken is refused.

    Args:
        client: the client's.
        opening: opens the other.
        carrying: is told of what either side says.
    """
    tunnel = client.scope.get("extensions", {}).get(TUNNEL)
    if tunnel is None:
        await client.close()
        return
    async with opening as other:
        await client.accept(other.protocol)
        stream = cast("Stream", tunnel["take"]())
        try:
            await _joined(stream, (other.reader, other.writer), carrying)
        finally:
            stream[1].transport.abort()


async def _joined(one: Stream, other: Stream, carrying: Carrying) -> None:
    """Carry bytes both ways to the end of both; a side has a while to answer the other's end."""
    for _, writer in (one, other):
        _keep_alive(writer)
    ways = [
        asyncio.create_task(_carried(one[0], other[1], carrying), name="towards the application"),
        asyncio.create_task(_carried(other[0], one[1], carrying), name="towards the client"),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(ways, timeout=_PARTING_SECONDS)
    finally:
        await cancel_all(ways)
    for way in ways:
        if not way.cancelled():
            way.result()


async def _carried(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, carrying: Carrying
) -> None:
    """Carry bytes one way to their end; a side that breaks, or takes nothing, breaks the other."""
    try:
        while data := await source.read(_READ):
            carrying(len(data))
            target.write(data)
            async with asyncio.timeout(_UNREAD_SECONDS):
                await target.drain()
        if target.can_write_eof():
            target.write_eof()
    except (OSError, RuntimeError):  # RuntimeError: uvloop, on a closed connection
        target.transport.abort()


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Have a side that vanished without a word noticed, which may say nothing for as long as it
    likes: no ping of ours can be put between frames of theirs.
    """
    connection = writer.get_extra_info("socket")
    if connection is None or connection.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEPT_ALIVE.items():
            if (option := getattr(socket, name, None)) is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _texts(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        while chunk := await response.content.readany():
            yield chunk
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BrokenOffError("The answer broke off.") from error
