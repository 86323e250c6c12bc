"""Handing a whole HTTP request on to another server, and its answer back, in constant memory.

Both sides are read and written by HTTP libraries: no byte of a head passes without having been
parsed. What is about one connection is never passed on.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aiohttp
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from yarl import URL

from greylag.common import sockets
from greylag.common.agent_api import ForwardedAnswer, ForwardedRequest
from greylag.common.concurrent import until_one_ends
from greylag.common.net import HOP_BY_HOP

Headers = list[tuple[bytes, bytes]]
Opening = Callable[[ForwardedRequest], AbstractAsyncContextManager[ForwardedAnswer]]

CONNECT_SECONDS = 10.0
HEARTBEAT_SECONDS = 30.0
MOST_MESSAGE = 4 * 1024 * 1024
"""How many bytes a WebSocket's message may have that an application sends."""
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
_HOP_BY_HOP = frozenset(name.encode() for name in HOP_BY_HOP)
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_PATIENCE = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
_DEFAULTS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class UnansweredError(Exception):
    """Nobody answers what was handed on, or not as HTTP has it; the message says why."""


class BrokenOffError(Exception):
    """One side ended before a request or an answer was whole."""


def end_to_end(headers: Iterable[tuple[bytes, bytes]], *without: bytes) -> Headers:
    """Return the headers that pass: well formed, not about one connection, none of ``without``."""
    given = [(name.lower(), value) for name, value in headers]
    named = b",".join(value for name, value in given if name == b"connection").split(b",")
    dropped = _HOP_BY_HOP | {one.strip().lower() for one in named} | set(without)
    return [
        (name, value)
        for name, value in given
        if name not in dropped and _NAME.fullmatch(name) and not _CONTROL.search(value)
    ]


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
            skip_auto_headers=_DEFAULTS,
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
    http: aiohttp.ClientSession, url: str, headers: Headers, protocols: Iterable[str]
) -> AsyncIterator[sockets.Peer]:
    """Open a WebSocket to another server.

    Raises:
        UnansweredError: on entering: it cannot be had.
        BrokenOffError: when it breaks.
    """
    try:
        opened = await http.ws_connect(
            URL(url, encoded=True),
            headers=_texts(headers),
            protocols=tuple(protocols),
            max_msg_size=MOST_MESSAGE,
            heartbeat=HEARTBEAT_SECONDS,
        )
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise UnansweredError(str(error) or type(error).__name__) from error
    try:
        yield sockets.Peer(opened, lambda: BrokenOffError("The connection broke."))
    finally:
        await opened.close()


async def hand_on(
    client: WebSocket, opening: AbstractAsyncContextManager[sockets.OpenedSocket]
) -> None:
    """Join a client's WebSocket to another; the subprotocol is what the other end chose."""
    async with opening as other:
        await client.accept(other.protocol)
        try:
            code = await sockets.join(client, other)
        except sockets.SocketClosedError:
            return
        except BrokenOffError:
            code = sockets.FAILED
        await sockets.close(client, code)


def _texts(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        while chunk := await response.content.readany():
            yield chunk
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BrokenOffError("The answer broke off.") from error
