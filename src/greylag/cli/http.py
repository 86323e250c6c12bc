"""HTTP as the client needs it: JSON answers, byte streams, and every failure as a ``CliError``."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from greylag import sse
from greylag.cli.api_types import StreamEvent
from greylag.cli.errors import CliError, Problem, ServerUnreachableError, refusal

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
# The server sends a heartbeat every 15 s (300 s at most); a stream silent for longer is dead.
SILENCE_SECONDS = 320.0
MAX_PROBLEM_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the parts of its path under /api (not yet percent-encoded), and the rest."""

    method: str
    path: tuple[str, ...]
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    root: str = "/api"


@dataclass(frozen=True, slots=True)
class Answer:
    """A success: its status and its JSON (``None`` when it has none)."""

    status: int
    body: Any


class Http:
    """One server, over kept connections. Use it as a context manager.

    ``server`` is its address (http or https), ``token`` what it demands, if anything.
    """

    def __init__(self, server: str, token: str | None) -> None:
        self._server = server.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._open: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # Proxies of the environment are meant for other hosts: most forget to except loopback.
        local = URL(self._server).host in {"localhost", "127.0.0.1", "::1"}
        self._open = aiohttp.ClientSession(headers=self._headers, trust_env=not local)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._open is not None:
            await self._open.close()

    async def call(self, request: Request, within: float = ANSWER_SECONDS) -> Answer:
        """Send a request and return its answer, which must begin within so many seconds.

        Raises a ``RefusedError`` for a problem document, ``ServerUnreachableError`` else.
        """
        response = await self._send(request, within)
        async with response:
            with self._translated():
                raw = await response.read()
        if not raw:
            return Answer(response.status, None)
        try:
            return Answer(response.status, json.loads(raw))
        except ValueError as error:
            raise self._stranger() from error

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a stream of bytes; leaving closes the connection at once. Raises like ``call``."""
        response = await self._send(request, SILENCE_SECONDS)
        try:
            yield self._chunks(response)
        finally:
            response.close()

    @asynccontextmanager
    async def events(self, request: Request) -> AsyncIterator[AsyncIterator[StreamEvent]]:
        """Open a stream of server-sent events. Raises like ``call``."""
        async with self.stream(request) as chunks:
            yield self._events(chunks)

    async def _send(self, request: Request, within: float) -> aiohttp.ClientResponse:
        if self._open is None:
            raise RuntimeError("Http must be entered before it is used")
        parts = "".join("/" + quote(part, safe="") for part in request.path)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=within)
        with self._translated():
            response = await self._open.request(
                request.method,
                URL(f"{self._server}{request.root}{parts}", encoded=True).with_query(request.query),
                json=request.body,
                headers=request.headers,
                timeout=timeout,
                # A redirect would carry the token elsewhere; the API sends none.
                allow_redirects=False,
            )
        if response.status < 300:  # noqa: PLR2004 - HTTP: success ends here
            return response
        raise await self._problem(response)

    async def _problem(self, response: aiohttp.ClientResponse) -> CliError:
        async with response:
            with self._translated():
                raw = await response.content.read(MAX_PROBLEM_BYTES)
        try:
            found = json.loads(raw)
            problem = Problem(
                status=response.status,
                code=str(found["code"]),
                detail=str(found.get("detail") or found["title"]),
                hint=str(found.get("hint") or ""),
                request_id=str(found.get("request_id") or ""),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._stranger(f" (HTTP {response.status})")
        return refusal(problem)

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        while True:
            with self._translated():
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
            raise self._stranger() from error

    def _event(self, frame: sse.Frame) -> StreamEvent:
        try:
            data = json.loads(frame.data)
            content = data["content"]
            return StreamEvent(frame.id, str(data["type"]), content)
        except (ValueError, KeyError, TypeError) as error:
            raise self._stranger() from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except aiohttp.ClientConnectorError as error:
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

    def _stranger(self, more: str = "") -> ServerUnreachableError:
        return ServerUnreachableError(
            f"{self._server} answers, but not as Greylag does{more}.",
            "Check the address: --server or GREYLAG_SERVER.",
            connected=True,
        )
