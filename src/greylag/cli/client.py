"""The calls of our own HTTP API, and its JSON with types; how they may fail is in ``transport``."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from greylag.cli.transport import LONGEST_WAIT, Content, EventStreaming, Http, Request
from greylag.common.agent_api import KEPT_AT, MOST_TURNS, ChatMessage, FileEntry, Session, Turn

PAGE_LENGTH = "200"
# The server answers a little after a wait ends.
WAIT_MARGIN = 30

StateChange = Literal["activate", "deactivate"]


class ProjectJson(TypedDict):
    """A project. Times are RFC 3339 in UTC."""

    id: str
    user_id: str
    project_id: str
    name: str
    metadata: dict[str, Any]
    source: dict[str, dict[str, Any]] | None
    status: str
    desired: str
    endpoint: str | None
    error: dict[str, str] | None
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


class ApiClient(Http):
    """One server's API: its verbs for what a command asks once, and the calls that take more."""

    async def users(self) -> list[dict[str, str]]:
        """Return the users: the ``id`` and ``display_name`` of each."""
        found: list[dict[str, str]] = (await self.get("users"))["users"]
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
        left: ProjectJson = await self.call(request, wish.answer_within)
        return left or None

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

    async def turns(self, place: ProjectPlace, session_id: str) -> list[Turn]:
        """Return a conversation's newest turns, newest first."""
        path, query = (*place.path, "sessions", session_id, "turns"), {"limit": str(MOST_TURNS)}
        return self.shaped(Turn, (await self.get(*path, query=query))["turns"])

    def logs(
        self, place: ProjectPlace, *, follow: bool, tail: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the environment's log: its last ``tail`` lines, then what comes."""
        query = {"follow": "true" if follow else "false", "tail": str(tail)}
        return self.stream(Request("GET", (*place.path, "logs"), query))

    def events(self, place: ProjectPlace, after: int = 0, *, follow: bool = True) -> EventStreaming:
        """Open the activation log from the event after number ``after``; to ``follow``: live."""
        query = {"after": str(after), "follow": str(follow).lower()}
        return self.sent_events(Request("GET", (*place.path, "events"), query))

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
