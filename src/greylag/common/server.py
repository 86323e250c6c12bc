"""The HTTP server that every program of ours runs: on a socket that it is given, within limits.

What a client may cost is bounded while it sends, before any layer above sees a request: the bytes
and number of its headers, the time it takes, and how many connections there are. A stream that is
being answered is never cut for its age.
"""

import asyncio
import contextlib
import ipaddress
import json
import os
import resource
import select
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.http11 import Request

from greylag.common.net import is_loopback, unmapped
from greylag.common.sockets import FINISHES, LEFT

_BACKLOG = 2048
_LOOK_SECONDS = 0.3
_REFUSAL_SECONDS = 1
_FEWEST_CONNECTIONS = 16
_MOST_PARTS = 1024
_HANG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP
MOST_MESSAGE = 64 * 1024
_OTHER_FILES = 64
_ALL_ADDRESSES = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared, not listened on


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, so that a taken port is told before anything is started.

    Args:
        host: the address or name to listen on; "", "0.0.0.0" or "::" for all addresses, of both
            families, as a pod may have those of one alone.
        port: the TCP port, 0 for any free one.

    Raises:
        OSError: the address cannot be had.
    """
    both = False
    if host.strip("[]") in _ALL_ADDRESSES:
        both = socket.has_dualstack_ipv6()
        family: int = socket.AF_INET6 if both else socket.AF_INET
        address: Any = ("", port)
    else:
        # The whole address: an IPv6 one may be of one interface only.
        family, _, _, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    try:
        return socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        # Python's words repeat the address as it has it.
        number = error.errno or 0
        raise OSError(number, os.strerror(number)) from error


def addresses_of(listener: socket.socket) -> list[str]:
    """Return the ``http`` URLs at which a listening socket can be opened, this machine's own first.

    One that listens on all addresses is found at loopback, and at each of the machine's.
    """
    host, port = listener.getsockname()[:2]
    hosts = [host]
    if ipaddress.ip_address(host).is_unspecified:
        dual = listener.family is socket.AF_INET6 and not listener.getsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
        )
        families = {listener.family} | ({socket.AF_INET} if dual else set())
        loopback = "127.0.0.1" if socket.AF_INET in families else "::1"
        hosts = [loopback, *_own_addresses(families)]
    return [f"http://[{one}]:{port}" if ":" in one else f"http://{one}:{port}" for one in hosts]


def _own_addresses(families: Collection[socket.AddressFamily]) -> list[str]:
    """Return the addresses of this machine that others can use, of interfaces that are up."""
    import psutil  # noqa: PLC0415 - only where all addresses are meant

    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = [
        one.address
        for name, addresses in psutil.net_if_addrs().items()
        for one in addresses
        if name in up and one.family in families
    ]
    return [
        one
        for one in found
        if "%" not in one
        and not (ipaddress.ip_address(one).is_loopback or ipaddress.ip_address(one).is_link_local)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What clients may cost a server. Seconds are held to about a third of one.

    Attributes:
        header_bytes: of one request, its address and trailers included.
        headers: how many one request may have.
        header_seconds: from the connection, or the last answer, until the next headers are whole.
        body_seconds: between two pieces of a body that is waited for.
        unread_seconds: that an answer may lie without its reader taking any of it.
        drain_seconds: that a body may go on after its answer, and a refusal wait to be read.
        connections: open at once; at most what the process's file descriptors allow.
        per_address: of them from one client address (for IPv6: one /64); ``None``: no limit.
            Loopback and ``proxies`` speak for many clients, and have none.
        proxies: the networks of proxies.
        pipelined: requests sent ahead on one connection.
        message_bytes: of one message of a WebSocket.
    """

    header_bytes: int = 65_536
    headers: int = 256
    header_seconds: float = 15.0
    body_seconds: float = 30.0
    unread_seconds: float = 300.0
    drain_seconds: float = 5.0
    connections: int = 1024
    per_address: int | None = None
    proxies: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network] = ()
    pipelined: int = 16
    message_bytes: int = MOST_MESSAGE


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a client is sent away, before its request has come to any route."""

    status: HTTPStatus
    code: str
    detail: str
    hint: str

    def document(self, extra: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Return the whole answer: a problem document, after which the connection ends."""
        # Of the form of all others, so that one reader will do; no log line is of this one.
        document = {
            "type": f"urn:greylag:error:{self.code}",
            "title": self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "hint": self.hint,
            "request_id": "",
        }
        body = json.dumps(document).encode()
        retry = b"retry-after: 5\r\n" if self.status in _RETRIED else b""
        lines = b"".join(b"%s: %s\r\n" % header for header in extra)
        return (
            b"HTTP/1.1 %d %s\r\n" % (self.status, self.status.phrase.encode())
            + lines
            + b"content-type: application/problem+json\r\ncache-control: no-store\r\n"
            + b"content-length: %d\r\n%sconnection: close\r\n\r\n%s" % (len(body), retry, body)
        )


_RETRIED = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
_MALFORMED = _Refusal(
    HTTPStatus.BAD_REQUEST,
    "malformed_request",
    "This is no HTTP request.",
    "Send HTTP/1.1, without TLS: that ends at a proxy, if there is one.",
)
_HEADERS_TOO_LARGE = _Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "headers_too_large",
    "The request has more or longer headers than are taken.",
    "Send fewer or shorter headers, or a shorter address.",
)
_NO_HANDSHAKE = _Refusal(
    HTTPStatus.BAD_REQUEST,
    "malformed_request",
    "A request for a WebSocket has no body, at most 128 headers, and lines of up to 8 KiB.",
    "Send the handshake so.",
)
_TOO_SLOW = _Refusal(
    HTTPStatus.REQUEST_TIMEOUT,
    "request_too_slow",
    "The request did not come in time.",
    "Send it again, without a pause in it.",
)
_TOO_MANY_AHEAD = _Refusal(
    HTTPStatus.TOO_MANY_REQUESTS,
    "too_many_requests",
    "Too many requests were sent ahead.",
    "Wait for answers before sending more.",
)
_TOO_MANY_OF_ONE = _Refusal(
    HTTPStatus.TOO_MANY_REQUESTS,
    "too_many_connections",
    "This client has as many connections as one may have.",
    "Close some, or try again in a few seconds.",
)
_FULL = _Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "too_many_connections",
    "The server has as many connections as it takes.",
    "Try again in a few seconds.",
)
_ENDING = _Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "server_ending",
    "The server ended before this was answered; it may have been done, or go on.",
    "Look whether it was done, and else try again in a few seconds.",
)


class _RefusedRequestError(Exception):
    """Ends the parsing of a request."""

    def __init__(self, refusal: _Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


class _Connections(ServerState):
    """The open connections of one server, whatever they are doing."""

    def __init__(self, limits: ServerLimits) -> None:
        super().__init__()
        self.limits = limits
        self._dated_at = 0
        self._date: list[tuple[bytes, bytes]] = []
        self.of_address: Counter[str] = Counter()
        self.refused = 0
        self.news = asyncio.Event()
        """Set when there is a connection again, and when the server is to end."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Answering may take a file of its own, such as a connection to an agent.
        possible = max(_FEWEST_CONNECTIONS, (files - _OTHER_FILES) // 2)
        self.most = limits.connections
        if files != resource.RLIM_INFINITY:
            self.most = min(self.most, possible)

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The header Date, as of now: what uvicorn writes here is as old as the last look."""
        now = int(time.time())
        if now != self._dated_at:
            self._dated_at, self._date = now, [(b"date", formatdate(now, usegmt=True).encode())]
        return self._date

    @default_headers.setter
    def default_headers(self, _: list[tuple[bytes, bytes]]) -> None:
        pass

    def admit(self, came: "_LimitedProtocol") -> _Refusal | None:
        """Count a connection that is among ``connections`` already; return why it may not stay."""
        if len(self.connections) == 1:
            self.news.set()
        if came.counted is not None:
            self.of_address[came.counted] += 1
            most = self.limits.per_address
            if most is not None and self.of_address[came.counted] > most:
                return _TOO_MANY_OF_ONE
        # Those that were refused are on their way out, and are limited by themselves.
        if len(self.connections) - self.refused > self.most and not self._make_room(came):
            return _FULL
        return None

    def leave(self, gone: "_LimitedProtocol") -> None:
        """Count a connection no more."""
        address, gone.counted = gone.counted, None
        if address is not None:
            self.of_address[address] -= 1
            if not self.of_address[address]:
                del self.of_address[address]

    def _make_room(self, came: "_LimitedProtocol") -> bool:
        """End the connection that has waited longest for a request, so that requests win."""
        idle = [one for one in self.limited() if one is not came and one.is_waiting]
        if not idle:
            return False
        min(idle, key=lambda one: one.waits_since).give_way()
        return True

    def limited(self) -> list["_LimitedProtocol"]:
        """Return the connections."""
        return [one for one in self.connections if isinstance(one, _LimitedProtocol)]


class _LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with an end to all that a client can draw out.

    It is looked at now and then (``look``) instead of keeping timers: one walk over all connections
    costs less than a timer that each request sets and takes back.
    """

    server_state: _Connections
    counted: str | None = None
    waits_since = 0.0
    _running: RequestResponseCycle | None = None  # what is being answered; ``cycle`` came last
    _refused = False
    _ends_at: float | None = None
    _heard_at = 0.0
    _unparsed = 0  # bytes since the parser last came to the end of headers or to a piece of a body
    _head = 0
    _unread = 0
    _unread_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Take a connection, or send it away."""
        super().connection_made(transport)
        self.client = _unmapped(self.client)
        self.waits_since = self._heard_at = self.loop.time()
        self.counted = _counted_as(self.client, self.server_state.limits)
        refusal = self.server_state.admit(self)
        if refusal is not None:
            self._refuse(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.server_state.leave(self)
        if self._refused:
            self.server_state.refused -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, as far as it stays within the limits."""
        self._unset_keepalive_if_required()
        if self._refused:
            return
        self._heard_at = self.loop.time()
        self._unparsed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            return  # any other is answered as if it had not been asked for
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause.refusal if isinstance(cause, _RefusedRequestError) else _MALFORMED)
            return
        if self._unparsed > self.server_state.limits.header_bytes:
            self._refuse(_HEADERS_TOO_LARGE)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection on; nothing may be answered on it besides."""
        if self._running is not None and not self._running.response_complete:
            self._refuse(_TOO_MANY_AHEAD)
            return
        left = partial(self.server_state.leave, self)
        self.ws_protocol_class = partial(_LimitedWebSocket, left)  # type: ignore[assignment]  # called only
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        """Begin to count a request's headers."""
        self._head = 0
        super().on_message_begin()
        finishes = asyncio.Event()
        self.scope["extensions"] = {FINISHES: {"set": finishes.set, "is_set": finishes.is_set}}

    def on_url(self, url: bytes) -> None:
        """Count a piece of the address."""
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer after the body."""
        self._count(name, value)
        if len(self.headers) >= self.server_state.limits.headers:
            raise _RefusedRequestError(_HEADERS_TOO_LARGE)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Let the request be answered."""
        self._unparsed = 0
        if len(self.pipeline) >= self.server_state.limits.pipelined:
            raise _RefusedRequestError(_TOO_MANY_AHEAD)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is whole."""
        self._unparsed = 0
        self._ends_at = None
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Wait for the next request; a body that nobody reads may go on for a moment only."""
        self.waits_since = self.loop.time()
        if self._running is not None and self._running.more_body:
            self._ends_at = self.waits_since + self.server_state.limits.drain_seconds
        super().on_response_complete()

    def shutdown(self) -> None:
        """End with the server; a refusal does not keep it."""
        if self._refused:
            self.transport.abort()
        else:
            super().shutdown()

    def end_stream(self) -> None:
        """End an answer that goes on without a length: its client goes on with it elsewhere."""
        running = self._running
        if running is None or not (running.response_started and running.chunked_encoding):
            return
        said: Any = running.scope["extensions"][FINISHES]
        if said["is_set"]():
            return
        if self.transport.is_closing():
            self.transport.abort()  # since the last look its last words were not taken
        else:
            self.transport.close()

    def end(self) -> None:
        """Refuse what is not answered yet, and cut what is being answered."""
        if self.transport.is_closing():
            self.transport.abort()  # its last words are not taken
        elif not self._refused:
            self._refuse(_ENDING)

    @property
    def is_waiting(self) -> bool:
        """Whether nothing is being answered or sent: the next headers are not whole."""
        idle = self._running is None or self._running.response_complete
        return idle and not self._refused and not self.transport.get_write_buffer_size()

    def give_way(self) -> None:
        """Leave the place to another connection."""
        if self._unparsed or self._running is None:
            self._refuse(_FULL)
        else:
            self.transport.abort()  # between two requests: nothing may be said unasked

    def look(self, now: float) -> None:
        """End what has been drawn out for too long."""
        limits = self.server_state.limits
        if (self._ends_at is not None and now >= self._ends_at) or self._is_stalled(now):
            self.transport.abort()
        elif self.is_waiting:
            if now - self.waits_since < limits.header_seconds or self._ends_at is not None:
                return
            if self._unparsed:
                self._refuse(_TOO_SLOW)
            else:
                self.transport.close()  # nothing was asked
        elif self._running is not None and self._is_awaiting_body(self._running):
            if self.flow.read_paused:
                self._heard_at = now  # it is we who do not read
            elif now - self._heard_at >= limits.body_seconds:
                self._refuse(_TOO_SLOW)

    def _is_awaiting_body(self, cycle: RequestResponseCycle) -> bool:
        return cycle.more_body and not cycle.response_complete and not self._refused

    def _is_stalled(self, now: float) -> bool:
        """Tell whether the reader has taken nothing for too long of what lies ready."""
        size = self.transport.get_write_buffer_size()
        if not size or size != self._unread:
            self._unread, self._unread_since = size, now
        return now - self._unread_since >= self.server_state.limits.unread_seconds

    def _count(self, *pieces: bytes) -> None:
        self._head += sum(map(len, pieces))
        if self._head > self.server_state.limits.header_bytes:
            raise _RefusedRequestError(_HEADERS_TOO_LARGE)

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer and end; what is being answered already ends without that."""
        if self.transport.is_closing():
            return
        state = self.server_state
        self._refused = True
        state.refused += 1
        state.leave(self)
        began = self._running
        for cycle in [self._running, *(waiting for waiting, _ in self.pipeline)]:
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        half_sent = began is not None and began.response_started and not began.response_complete
        if half_sent or state.refused > state.most // 4:
            self.transport.abort()
            return
        self.flow.resume_reading()
        self.transport.write(refusal.document(state.default_headers))
        # Closed at once, what lies unread would take the answer away from the client too.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._ends_at = self.loop.time() + state.limits.drain_seconds


TUNNEL = "greylag.tunnel"
"""The ASGI extension of an accepted WebSocket by whose ``take`` it is had as ``Stream``."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
"""What one end of a connection says, and what is said to it, as bytes."""


class _LimitedWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's protocol for WebSockets, counted as the connection that it came by.

    It reads no message before the last one was taken, sends none before there is room, and closes
    when a ping is not answered within 40 seconds. None of that counts once it was taken as bytes.
    """

    def __init__(self, left: Callable[[], None], **given: Any) -> None:
        super().__init__(**given)
        self._left = left
        self._lost = asyncio.Event()
        self._taken = False
        self._finishes = asyncio.Event()
        self._hung_up = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection over."""
        super().connection_made(transport)
        self.client = _unmapped(self.client)

    def handle_connect(self, event: Request) -> None:
        """Let the application begin, which may take the connection over."""
        super().handle_connect(event)
        if not self.close_sent:
            self.scope["extensions"] |= {
                TUNNEL: {"take": self._take},
                LEFT: {"wait": self._lost.wait},
                FINISHES: {"set": self._finishes.set},
            }

    def _take(self) -> Stream:
        """Return the connection as the bytes of its frames, right after it was accepted; nothing
        else may be sent or received by this WebSocket from then on.
        """
        self._taken = True
        self.stop_keepalive()
        reader = asyncio.StreamReader(MOST_MESSAGE, self.loop)
        protocol = _Taken(reader, self.connection_lost, self.loop)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if self.read_paused:  # it spoke before it was accepted, and those bytes are gone
            self.transport.abort()
        return reader, asyncio.StreamWriter(self.transport, protocol, reader, self.loop)

    def shutdown(self) -> None:
        """End with the server, unless this one is let to finish."""
        if not self._finishes.is_set():
            self.end()

    def end(self) -> None:
        """End now."""
        if self._taken or self.transport.is_closing():  # then its last words are not taken
            self.transport.abort()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._left()
        self._lost.set()
        super().connection_lost(exc)

    async def receive(self) -> Any:
        """Give the application what came next."""
        self._hung_up = False
        return await super().receive()

    def look(self) -> None:
        """End the connection whose client has gone while the application takes no message."""
        unheard = self.read_paused and not self._taken and _is_hung_up(self.transport)
        if unheard and self._hung_up:  # for the second time: the last words may just be on the way
            self.transport.abort()
        self._hung_up = unheard

    def data_received(self, data: bytes) -> None:
        """Take what came; a request that the library can only drop is refused."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(_NO_HANDSHAKE.document(self.default_headers))
            self.transport.close()

    async def send(self, message: Any) -> None:
        """Send what the application does; a refusal that is whole is a handshake that has ended.

        uvicorn takes it for none, and logs each as a fault of the application.
        """
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def handle_cont(self, event: Frame) -> None:
        """Take a further part of a message, of which there may be so many, empty ones too."""
        if len(self.frames) < _MOST_PARTS:
            super().handle_cont(event)
        else:
            self.transport.abort()

    def handle_ping(self) -> None:
        """Answer a ping, unless whoever sends them takes no answers: those would pile up."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.transport.abort()


class _Taken(asyncio.StreamReaderProtocol):
    """The bytes of a WebSocket that is its application's; ``lost`` is told of its end."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        lost: Callable[[Exception | None], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(reader, loop=loop)
        self._lost = lost

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._lost(exc)


def _is_hung_up(transport: asyncio.Transport) -> bool:
    """Tell whether the other side has ended a connection, though what it said is not read yet."""
    connection = transport.get_extra_info("socket")
    if transport.is_closing() or connection is None or connection.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), _HANG_UP)
    return bool(poll.poll(0))


def _unmapped(client: tuple[str, int] | None) -> tuple[str, int] | None:
    return None if client is None else (unmapped(client[0]), client[1])


def _counted_as(client: tuple[str, int] | None, limits: ServerLimits) -> str | None:
    """Return what a client's connections are counted by; ``None``: they are not."""
    if client is None or is_loopback(client[0]):
        return None
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0])
    except ValueError:
        return client[0]
    if any(address in network for network in limits.proxies):
        return None
    if isinstance(address, ipaddress.IPv6Address):
        # Whoever has one address of such a network has all of it.
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class HttpServer(uvicorn.Server):
    """Serves one ASGI application; ``serve([socket])`` runs it, ``finish`` ends it.

    It never raises a signal again as uvicorn's own does: a program's last writes are still to come.

    Args:
        app: what answers.
        ends_within: seconds that streams, which are answers without a length, get after ``finish``.
        finishes_within: seconds that all else gets, such as uploads, downloads, and WebSockets and
            streams of which ``sockets.finishes`` was said; by default as streams.
        limits: what clients may cost.
        signals: those that end it; none: they are left to the program.
        started: called once requests are answered.
    """

    def __init__(  # noqa: PLR0913 - one argument per option
        self,
        app: ASGIApp,
        *,
        ends_within: int,
        finishes_within: int | None = None,
        limits: ServerLimits | None = None,
        signals: Sequence[signal.Signals] = (),
        started: Callable[[], None] | None = None,
    ) -> None:
        limits = limits or ServerLimits()
        self._ends_within = ends_within
        self._finishes_within = ends_within if finishes_within is None else finishes_within
        self._ending_since: float | None = None
        super().__init__(
            uvicorn.Config(
                app,
                http=_LimitedProtocol,
                ws=WebSocketsSansIOProtocol,
                ws_max_size=limits.message_bytes,
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                log_level="warning",
                server_header=False,
                # A proxy's word for the client's address is taken only where one is configured.
                proxy_headers=False,
                timeout_graceful_shutdown=self._finishes_within + _REFUSAL_SECONDS,
            )
        )
        self._connections = _Connections(limits)
        self.server_state = self._connections
        self._signals = signals
        self._announce_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets)
        if self._announce_started is not None:
            self._announce_started()

    async def main_loop(self) -> None:
        """Look at the connections now and then, until the end is to begin.

        uvicorn's own wakes ten times a second, in each environment, for nobody.
        """
        while not self.should_exit:
            self.look(asyncio.get_running_loop().time())
            pause = _LOOK_SECONDS if self._connections.connections else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._connections.news.wait()
            self._connections.news.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what is being answered end, each in its time."""
        self._ending_since = asyncio.get_running_loop().time()
        looking = asyncio.create_task(self._look_on(), name="look at connections that end")
        try:
            await super().shutdown(sockets)
        finally:
            looking.cancel()

    async def _look_on(self) -> None:
        while True:
            self.look(asyncio.get_running_loop().time())
            await asyncio.sleep(_LOOK_SECONDS)

    def look(self, now: float) -> None:
        """End the connections that are past a limit at ``now``, on the loop's clock, and those of
        WebSockets whose clients have gone.
        """
        if self._ending_since is not None:
            self._end_answers(now - self._ending_since)
        for connection in self._connections.limited():
            connection.look(now)
        for one in list(self._connections.connections):
            if isinstance(one, _LimitedWebSocket):
                one.look()

    def _end_answers(self, after: float) -> None:
        """End those that have had their time, so many seconds after the end has begun."""
        if after >= self._ends_within:
            for connection in self._connections.limited():
                connection.end_stream()
        if after >= self._finishes_within or self.force_exit:
            for one in list(self._connections.connections):
                if isinstance(one, _LimitedProtocol | _LimitedWebSocket):
                    one.end()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Finish on one of the signals; uvicorn's own would raise it again after that."""
        loop = asyncio.get_running_loop()
        for number in self._signals:
            loop.add_signal_handler(number, self.finish)
        try:
            yield
        finally:
            for number in self._signals:
                loop.remove_signal_handler(number)

    def finish(self) -> None:
        """Stop serving: ``serve`` returns when open answers have ended, or at their limit; asked
        for a second time, at once.
        """
        self.force_exit = self.should_exit
        self.should_exit = True
        self._connections.news.set()
        if self._ending_since is not None:
            self._end_answers(asyncio.get_running_loop().time() - self._ending_since)
