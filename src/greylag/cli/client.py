"""A client of the HTTP API: its JSON, its calls with their types, and the HTTP below them.

Every call may raise a ``ServerRefusedError`` (the platform said no) or a ``ServerUnreachableError``
(nothing answers, or something else than Greylag).
"""

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NotRequired, Self, TypedDict
from urllib.parse import quote

import aiohttp
import click
from yarl import URL

from greylag.cli.errors import CliError, Problem, ServerUnreachableError, refusal
from greylag.common import sse
from greylag.common.agent_api import (
    KEPT_AT,
    ChatMessage,
    FileEntry,
    Session,
)
from greylag.common.net import Proxy, is_loopback, proxy_for, proxy_variables
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
PAGE_LENGTH = "200"
# The server caps a wait at an hour, and answers a little after it ends.
LONGEST_WAIT = 3600
WAIT_MARGIN = 30
PARTIAL = 206

StateChange = Literal["activate", "deactivate"]


class ErrorJson(TypedDict):
    """Why a project's status is ``error``."""

    code: str
    message: str
    hint: str


class GitSourceJson(TypedDict):
    """A repository that a project starts from."""

    url: str
    ref: str | None
    depth: int | None


class SourceJson(TypedDict):
    """What a project starts from."""

    git: GitSourceJson


class ProjectJson(TypedDict):
    """A project. Times are RFC 3339 in UTC."""

    id: str
    user_id: str
    project_id: str
    name: str
    metadata: dict[str, Any]
    source: SourceJson | None
    status: str
    desired: str
    endpoint: str | None
    error: ErrorJson | None
    error_message: str | None
    namespace: str
    deployment: str
    service: str
    ingress: str | None
    outdated: bool
    last_activated_at: str | None
    last_deactivated_at: str | None
    created_at: str
    updated_at: str
    generation: int
    observed_generation: int


class UserJson(TypedDict):
    """A user."""

    id: str
    display_name: str


class ModelInUseJson(TypedDict):
    """Which model provider environments are given, and what is wrong with it."""

    provider: str
    problem: str | None


class PlatformJson(TypedDict):
    """What an installation is; ``notice`` and ``demonstration`` are sentences for people."""

    version: str
    cluster: str
    store: str
    notice: str | None
    demonstration: str | None
    model: NotRequired[ModelInUseJson | None]


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
class ProjectPlace:
    """Which project of which user."""

    user_id: str
    project_id: str

    @property
    def path(self) -> tuple[str, ...]:
        """The parts of the project's address under /api."""
        return ("users", self.user_id, "projects", self.project_id)


@dataclass(frozen=True, slots=True)
class Wish:
    """How long to wait for a change of a project.

    ``wait`` is False to return at once, True for the server's own time, or a number of seconds.
    """

    wait: bool | int = True

    @property
    def prefer(self) -> dict[str, str]:
        """The header that says so (RFC 7240)."""
        if self.wait is True:
            return {}
        return {"Prefer": f"wait={self.wait}" if self.wait else "respond-async"}

    @property
    def answer_within(self) -> float:
        """How many seconds the answer may take."""
        return (LONGEST_WAIT if self.wait is True else self.wait) + WAIT_MARGIN


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message for the agent. The same ``message_id`` sent twice is one turn."""

    message: str
    message_id: str
    session_id: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the request's body."""
        session = {} if self.session_id is None else {"session_id": self.session_id}
        return {"message": self.message, "message_id": self.message_id, **session}


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

    async def call(self, request: Request, within: float = ANSWER_SECONDS) -> Any:
        """Send a request and return its answer's JSON (``None`` when it has none).

        It must begin within so many seconds.
        """
        return (await self.answered(request, within))[0]

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

    async def answered(
        self, request: Request, within: float = ANSWER_SECONDS
    ) -> tuple[Any, Mapping[str, str]]:
        """Return the same, and the answer's headers."""
        response = await self._send(request, within)
        async with response:
            with self.translated():
                raw = await response.read()
        try:
            return (parse_json(raw) if raw else None), response.headers
        except ValueError as error:
            raise self.stranger() from error

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
        proxy_auth = {} if self._proxy is None else self._proxy.auth_header()
        secure = self._server.startswith("https")
        tracing = never_redirected()
        async with self._session([tracing]) as session:
            try:
                with self.translated():
                    opened = await session.ws_connect(
                        self._url(request),
                        headers={} if secure else proxy_auth,
                        proxy_headers=proxy_auth if secure else None,
                        heartbeat=HEARTBEAT_SECONDS,
                        max_msg_size=MOST_MESSAGE,
                    )
            except ServerUnreachableError as error:
                if isinstance(error.__cause__, aiohttp.WSServerHandshakeError):
                    # The library does not tell what the refusal says.
                    (await self._send(replace(request, headers=UPGRADE), ANSWER_SECONDS)).close()
                raise
            try:
                yield ServerSocket(opened, self)
            finally:
                await opened.close()

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
        secure = self._server.startswith("https")
        proxy_auth = {} if self._proxy is None else self._proxy.auth_header()
        with self.translated():
            response = await self._open.request(
                request.method,
                self._url(request),
                json=request.body,
                data=request.content,
                headers={**request.headers, **({} if secure else proxy_auth)},
                proxy_headers=proxy_auth if secure else None,
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
                raw = await response.content.read(MAX_PROBLEM_BYTES)
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
            return self.stranger(f" (HTTP {response.status})")
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

    def stranger(self, more: str = "") -> ServerUnreachableError:
        """Return the error for an answer that is none of Greylag's."""
        return ServerUnreachableError(
            f"{self._server} answers, but not as Greylag does{more}.",
            "Check the address: --server or GREYLAG_SERVER.",
            connected=True,
        )


class ApiClient(Http):
    """One server's API: its verbs for what a command asks once, and the calls that take more."""

    async def users(self) -> list[UserJson]:
        """Return the users."""
        found: list[UserJson] = (await self.get("users"))["users"]
        return found

    async def tokens(self, user_id: str | None) -> list[dict[str, Any]]:
        """Return a user's tokens (``None``: our own), the newest first."""
        query, found = {"user": user_id} if user_id else {}, []
        while True:
            page = await self.get("tokens", query=query)
            found += page["tokens"]
            if (following := page.get("next_cursor")) is None:
                return found
            query["cursor"] = following

    @asynccontextmanager
    async def audit_lines(self, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open the audit trail, the oldest first: each entry a line of JSON."""
        asked = Request("GET", ("audit",), query, headers={"Accept": "application/jsonl"})
        async with self.stream(asked) as chunks:
            yield _lines(chunks)

    async def projects(self, user_id: str, status: str | None = None) -> AsyncIterator[ProjectJson]:
        """Yield a user's projects, newest first, page by page."""
        query = {"limit": PAGE_LENGTH} | ({"status": status} if status else {})
        while True:
            page = await self.get("users", user_id, "projects", query=query)
            for project in page["projects"]:
                yield project
            if page["next_cursor"] is None:
                return
            query["cursor"] = page["next_cursor"]

    async def project(self, place: ProjectPlace) -> ProjectJson:
        """Return one project."""
        found: ProjectJson = await self.get(*place.path)
        return found

    async def create(self, user_id: str, new: Mapping[str, Any], key: str) -> ProjectJson:
        """Create a project as the API takes it; ``key`` makes a repetition safe."""
        path, headers = ("users", user_id, "projects"), {"Idempotency-Key": key}
        created: ProjectJson = await self.call(Request("POST", path, body=new, headers=headers))
        return created

    async def change(self, place: ProjectPlace, action: StateChange, wish: Wish) -> ProjectJson:
        """Activate or deactivate a project."""
        request = Request("POST", (*place.path, action), headers=wish.prefer)
        changed: ProjectJson = await self.call(request, wish.answer_within)
        return changed

    async def delete_project(self, place: ProjectPlace, wish: Wish) -> ProjectJson | None:
        """Delete a project; ``None`` when it is gone, the project while that goes on."""
        request = Request("DELETE", place.path, headers=wish.prefer)
        left: ProjectJson | None = await self.call(request, wish.answer_within)
        return left

    async def sessions(self, place: ProjectPlace) -> tuple[list[Session], str | None]:
        """Return the conversations, newest first; and of when a copy told of them, if one did."""
        found, headers = await self.answered(Request("GET", (*place.path, "sessions")))
        return self.shaped(Session, found["sessions"]), headers.get(KEPT_AT)

    async def messages(
        self, place: ProjectPlace, session_id: str
    ) -> tuple[list[ChatMessage], str | None]:
        """Return a conversation's history, oldest first; and of when a copy told it, if one did."""
        path = (*place.path, "sessions", session_id, "messages")
        found, headers = await self.answered(Request("GET", path))
        return self.shaped(ChatMessage, found["messages"]), headers.get(KEPT_AT)

    def logs(
        self, place: ProjectPlace, *, follow: bool, tail: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the environment's log: its last ``tail`` lines, then what comes."""
        query = {"follow": "true" if follow else "false", "tail": str(tail)}
        return self.stream(Request("GET", (*place.path, "logs"), query))

    def events(self, place: ProjectPlace, after: int = 0) -> EventStreaming:
        """Open the activation log from the event after number ``after``, live."""
        return self.sent_events(Request("GET", (*place.path, "events"), {"after": str(after)}))

    def send(self, place: ProjectPlace, message: OutgoingMessage) -> EventStreaming:
        """Give the agent a message and open the turn that answers it."""
        return self.sent_events(Request("POST", (*place.path, "messages"), body=message.as_json()))

    def turn_events(self, place: ProjectPlace, turn_id: str, after: str | None) -> EventStreaming:
        """Open a turn again, from the event after id ``after`` (``None``: from its first)."""
        headers = {} if after is None else {"Last-Event-ID": after}
        return self.sent_events(
            Request("GET", (*place.path, "turns", turn_id, "events"), headers=headers)
        )

    async def file(self, place: ProjectPlace, path: str) -> FileEntry:
        """Return what is at a path of the workspace."""
        found = await self.get(*place.path, "files", query={"path": path, "limit": "1"})
        return self.shaped_one(FileEntry, found["entry"])

    async def folder(self, place: ProjectPlace, path: str) -> AsyncIterator[FileEntry]:
        """Yield what a folder of the workspace holds, by name, page by page."""
        query = {"path": path, "limit": "1000"}
        while True:
            page = await self.get(*place.path, "files", query=query)
            for entry in self.shaped(FileEntry, page["entries"]):
                yield entry
            if page["next"] is None:
                return
            query["after"] = page["next"]

    def read_file(
        self, place: ProjectPlace, entry: FileEntry, start: int = 0
    ) -> AbstractAsyncContextManager[Content]:
        """Open a file from a byte on; if it changed since, all of it."""
        ranged = {"Range": f"bytes={start}-", "If-Range": entry.etag} if start else {}
        path = (*place.path, "files", "content")
        return self.content(Request("GET", path, {"path": entry.path}, headers=ranged))

    async def write_file(
        self,
        place: ProjectPlace,
        path: str,
        content: AsyncIterator[bytes],
        about: Mapping[str, str],
    ) -> FileEntry:
        """Give a file of the workspace its content, and the ``mode`` and ``modified`` of it."""
        where = (*place.path, "files", "content")
        request = Request("PUT", where, {"path": path, **about}, content=content)
        return self.shaped_one(FileEntry, await self.call(request, LONGEST_WAIT))

    async def make_folder(self, place: ProjectPlace, path: str) -> FileEntry:
        """Make a folder in the workspace."""
        made = await self.post(*place.path, "files", "folder", body={"path": path})
        return self.shaped_one(FileEntry, made)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
