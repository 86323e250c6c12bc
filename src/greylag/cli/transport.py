"""HTTP with one server: requests, streams, files and WebSockets.

All of it may raise a ``ServerRefusedError`` (the platform said no) or a ``ServerUnreachableError``
(nothing answers, or something else than Greylag).
"""

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import click
from yarl import URL

from greylag.cli.errors import (
    PASSING,
    CliError,
    Problem,
    ServerRefusedError,
    ServerUnreachableError,
    refusal,
)
from greylag.common import sse
from greylag.common.net import (
    Proxy,
    beginning,
    is_loopback,
    proxy_for,
    proxy_variables,
    why_refused,
)
from greylag.common.typed import T, parse_json, shaped

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
# The server sends a heartbeat every 15 s (300 s at most); a stream silent for longer is dead.
SILENCE_SECONDS = 320.0
HEARTBEAT_SECONDS = 30.0
MOST_MESSAGE = 1024 * 1024
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "Z3JleWxhZyBzaGVsbCAuLg==",
}
"""What a request has that asks for a WebSocket."""
MAX_PROBLEM_BYTES = 64 * 1024
# The server caps a wait at an hour.
LONGEST_WAIT = 3600
PARTIAL = 206


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a stream: the activation log's or a turn's. ``id`` is where to resume."""

    id: str | None
    type: str
    content: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return it as one line of ``--json`` output."""
        return {"id": self.id, "type": self.type, "content": self.content}

    def text(self, name: str) -> str:
        """Return a field of the content as text, empty when it has none."""
        value = self.content.get(name)
        return value if isinstance(value, str) else ""


EventStreaming = AbstractAsyncContextManager[AsyncIterator[StreamEvent]]
"""A stream of events while it is open; leaving closes its connection at once."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the parts of its path under /api (not yet percent-encoded), and the rest."""

    method: str
    path: tuple[str, ...]
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    root: str = "/api"
    content: AsyncIterator[bytes] | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes on their way here; not ``partial`` when it is all of it."""

    partial: bool
    chunks: AsyncIterator[bytes]


class _Answer(dict[str, Any]):
    """A JSON object of the server; asked for what it does not hold, it raises ``stranger``."""

    def __init__(self, told: Mapping[str, Any], stranger: ServerUnreachableError) -> None:
        super().__init__(told)
        self._stranger = stranger

    def __missing__(self, _key: str) -> Any:
        raise self._stranger


class ServerSocket:
    """An open WebSocket: bytes, and text that is JSON objects."""

    def __init__(self, opened: aiohttp.ClientWebSocketResponse, http: "Http") -> None:
        self._opened = opened
        self._http = http

    async def send(self, content: bytes | Mapping[str, Any]) -> None:
        """Send a message."""
        with self._http.translated():
            if isinstance(content, bytes):
                await self._opened.send_bytes(content)
            else:
                await self._opened.send_json(content)

    async def receive(self) -> bytes | dict[str, Any]:
        """Return the next message.

        Raises:
            ServerRefusedError: it tells an error.
            ServerUnreachableError: there is none any more.
        """
        came = await self._opened.receive()
        with self._http.translated():
            if came.type is aiohttp.WSMsgType.BINARY:
                data: bytes = came.data
                return data
            if came.type is not aiohttp.WSMsgType.TEXT:
                raise aiohttp.ClientConnectionError
        try:
            found: dict[str, Any] = dict(parse_json(came.data.encode()))
            told = found.get("error")
            if told is None:
                return found
            problem = Problem(0, str(told["code"]), str(told["message"]), str(told["hint"]))
        except (ValueError, KeyError, TypeError) as error:
            raise self._http.stranger() from error
        raise refusal(problem)


class Http:
    """One server, over kept connections. Use it as a context manager.

    ``server`` is its address (http or https), ``token`` what it demands, if anything.
    """

    def __init__(self, server: str, token: str | None) -> None:
        self._server = server.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._open: aiohttp.ClientSession | None = None
        self._proxy: Proxy | None = None

    async def __aenter__(self) -> Self:
        # Proxies of the environment are meant for other hosts: most forget to except loopback.
        address = URL(self._server)
        local = is_loopback(address.host or "")
        try:
            self._proxy = None if local else proxy_for(self._server, proxy_variables(os.environ))
        except ValueError as error:
            raise click.UsageError(f"A proxy that the environment names {error}.") from error
        self._open = self._session()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._open is not None:
            await self._open.close()

    def _session(self, tracing: list[aiohttp.TraceConfig] | None = None) -> aiohttp.ClientSession:
        proxy = None if self._proxy is None else self._proxy.url
        return aiohttp.ClientSession(
            headers=self._headers,
            proxy=proxy,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            trace_configs=tracing,
        )

    def _url(self, request: Request) -> URL:
        parts = "".join("/" + quote(part, safe="") for part in request.path)
        address = URL(f"{self._server}{request.root}{parts}", encoded=True)
        return address.with_query(request.query)

    def _headers_of(self, request: Request) -> dict[str, Any]:
        """Return a request's headers, and those for the proxy, which must not go on to an https
        server.
        """
        for_proxy = {} if self._proxy is None else self._proxy.auth_header()
        if self._server.startswith("https"):
            return {"headers": request.headers, "proxy_headers": for_proxy}
        return {"headers": {**request.headers, **for_proxy}}

    async def call(self, request: Request, within: float = ANSWER_SECONDS) -> Any:
        """Send a request and return its answer's JSON (an empty object when it has none).

        It must begin within so many seconds.
        """
        return (await self.answered(request, within))[0]

    async def answered(
        self, request: Request, within: float = ANSWER_SECONDS
    ) -> tuple[Any, Mapping[str, str]]:
        """Return the same, and the answer's headers."""
        response = await self._send(request, within)
        async with response:
            with self.translated():
                raw = await response.read()
        try:
            return self._told(parse_json(raw) if raw else {}), response.headers
        except ValueError as error:
            raise self.stranger() from error

    def _told(self, answer: Any) -> "_Answer":
        if not isinstance(answer, dict):
            raise self.stranger()
        return _Answer(answer, self.stranger())

    async def get(self, *path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return the JSON of what is at a path under /api, given as ``Request`` has it."""
        return await self.call(Request("GET", path, query or {}))

    async def post(
        self, *path: str, body: Mapping[str, Any] | None = None, within: float = ANSWER_SECONDS
    ) -> Any:
        """Post JSON to such a path, and return the answer's."""
        return await self.call(Request("POST", path, body=body), within)

    async def delete(
        self, *path: str, query: Mapping[str, str] | None = None, within: float = ANSWER_SECONDS
    ) -> None:
        """Delete what is at such a path."""
        await self.call(Request("DELETE", path, query or {}), within)

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a stream of bytes; leaving closes the connection at once."""
        async with self.content(request) as content:
            yield content.chunks

    @asynccontextmanager
    async def content(self, request: Request) -> AsyncIterator[Content]:
        """Open a file, or the part of it that the request's headers ask for."""
        response = await self._send(request, SILENCE_SECONDS)
        try:
            yield Content(response.status == PARTIAL, self._chunks(response))
        finally:
            response.close()

    @asynccontextmanager
    async def socket(self, *path: str) -> AsyncIterator[ServerSocket]:
        """Open a WebSocket; leaving closes it."""
        from greylag.common.sockets import never_redirected

        request = Request("GET", path)
        async with self._session([never_redirected()]) as session:
            try:
                with self.translated():
                    opened = await session.ws_connect(
                        self._url(request),
                        **self._headers_of(request),
                        heartbeat=HEARTBEAT_SECONDS,
                        max_msg_size=MOST_MESSAGE,
                    )
            except ServerUnreachableError as error:
                if isinstance(error.__cause__, aiohttp.WSServerHandshakeError):
                    await self._refused_socket(request)
                raise
            try:
                yield ServerSocket(opened, self)
            finally:
                await opened.close()

    async def _refused_socket(self, request: Request) -> None:
        """Raise what the refusal of a WebSocket says, which the library does not tell."""
        try:
            (await self._send(replace(request, headers=UPGRADE), ANSWER_SECONDS)).close()
        except ServerRefusedError as refused:
            if refused.problem.code != "not_found":
                raise
            # What asks for the same without an upgrade asks for nothing that there is.
            hint = "A proxy on the way must let WebSockets through: docs/proxies.md tells how."
            raise ServerRefusedError(replace(refused.problem, hint=hint)) from refused

    @asynccontextmanager
    async def sent_events(self, request: Request) -> AsyncIterator[AsyncIterator[StreamEvent]]:
        """Open a stream of server-sent events."""
        async with self.stream(request) as chunks:
            yield self._events(chunks)

    def shaped(self, kind: type[T], given: Iterable[Any]) -> list[T]:
        """Return what the server gave as dataclasses of the agent's API."""
        try:
            return [shaped(kind, one) for one in given]
        except TypeError as error:
            raise self.stranger() from error

    def shaped_one(self, kind: type[T], given: Any) -> T:
        """Return the same of one."""
        return self.shaped(kind, [given])[0]

    async def _send(self, request: Request, within: float) -> aiohttp.ClientResponse:
        if self._open is None:
            raise RuntimeError("Http must be entered before it is used")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=within)
        with self.translated():
            response = await self._open.request(
                request.method,
                self._url(request),
                json=request.body,
                data=request.content,
                **self._headers_of(request),
                timeout=timeout,
                # A redirect would carry the token elsewhere; the API sends none.
                allow_redirects=False,
            )
        if response.status < 300:  # noqa: PLR2004 - HTTP: success ends here
            return response
        raise await self._problem(response)

    async def _problem(self, response: aiohttp.ClientResponse) -> CliError:
        async with response:
            with self.translated():
                raw = await beginning(response.content, MAX_PROBLEM_BYTES)
        try:
            found = parse_json(raw)
            problem = Problem(
                status=response.status,
                code=str(found["code"]),
                detail=str(found.get("detail") or found["title"]),
                hint=str(found.get("hint") or ""),
                request_id=str(found.get("request_id") or ""),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return self.stranger(response.status, response.headers.get("Location"))
        return refusal(problem)

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        while True:
            with self.translated():
                chunk = await response.content.readany()
            if not chunk:
                return
            yield chunk

    async def _events(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[StreamEvent]:
        splitter = sse.FrameSplitter()
        async for chunk in chunks:
            for frame in self._frames(splitter, chunk):
                yield self._event(frame)

    def _frames(self, splitter: sse.FrameSplitter, chunk: bytes) -> Iterator[sse.Frame]:
        try:
            for raw in splitter.feed(chunk):
                frame = sse.parse(raw)
                if frame is not None:
                    yield frame
        except sse.FrameTooLargeError as error:
            raise self.stranger() from error

    def _event(self, frame: sse.Frame) -> StreamEvent:
        try:
            data = parse_json(frame.data)
            return StreamEvent(frame.id, str(data["type"]), dict(data["content"]))
        except (ValueError, KeyError, TypeError) as error:
            raise self.stranger() from error

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what goes wrong with a connection into errors of ours."""
        try:
            yield
        except aiohttp.ClientSSLError as error:
            raise ServerUnreachableError(
                f"There is no TLS with {self._server} that can be trusted: {why_refused(error)}.",
                "Check the address; SSL_CERT_FILE names the authorities that are trusted.",
                connected=False,
                passes=False,
            ) from error
        except (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError) as error:
            raise ServerUnreachableError(
                f"The proxy {self._proxy and self._proxy.url} does not lead to {self._server}.",
                "The environment names it: HTTPS_PROXY or HTTP_PROXY; NO_PROXY excepts a server.",
                connected=False,
            ) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise ServerUnreachableError(
                f"Nothing answers at {self._server}.",
                "Start it with `greylag up`, or name its address with --server or GREYLAG_SERVER.",
                connected=False,
            ) from error
        except TimeoutError as error:
            raise ServerUnreachableError(
                f"{self._server} did not answer in time.", "Try again.", connected=True
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerUnreachableError(
                f"The connection to {self._server} broke.",
                "What was asked for may have been done; look, and try again.",
                connected=True,
            ) from error

    def stranger(
        self, status: int | None = None, leads_to: str | None = None
    ) -> ServerUnreachableError:
        """Return the error for an answer that is none of Greylag's: its HTTP status, and where it
        leads to.
        """
        more = "" if status is None else f" (HTTP {status})"
        hint = "Check the address: --server or GREYLAG_SERVER."
        if leads_to:
            hint = f"It leads to {leads_to[:200]}; if that is right, name that server instead."
        elif status in PASSING:
            hint = "A proxy may answer in its place while it is down, or starts: try again."
        return ServerUnreachableError(
            f"{self._server} answers, but not as Greylag does{more}.",
            hint,
            connected=True,
            passes=status in PASSING,
        )
