"""The HTTP API as typed calls.

Every call may raise a ``RefusedError`` (the platform said no) or a ``ServerUnreachableError``.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Self

from greylag.cli.api_types import (
    Action,
    Decision,
    MessageJson,
    OutgoingMessage,
    PlatformJson,
    ProjectJson,
    ProjectPlace,
    SessionJson,
    StreamEvent,
    UserJson,
    Wish,
)
from greylag.cli.http import Http, Request

PAGE_LENGTH = "200"
# The server caps a wait at an hour, and answers a little after it ends.
LONGEST_WAIT = 3600
WAIT_MARGIN = 30


class ApiClient:
    """A client of one server. Use it as a context manager."""

    def __init__(self, server: str, token: str | None) -> None:
        self._http = Http(server, token)

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._http.__aexit__(*exception)

    async def platform(self) -> PlatformJson:
        """Return what this installation is."""
        found: PlatformJson = await self._get(("platform",))
        return found

    async def check_ready(self) -> None:
        """Return when the server can serve requests, else raise what is wrong."""
        await self._http.call(Request("GET", ("readyz",), root=""))

    async def users(self) -> list[UserJson]:
        """Return the users."""
        found: list[UserJson] = (await self._get(("users",)))["users"]
        return found

    async def projects(self, user_id: str, status: str | None = None) -> AsyncIterator[ProjectJson]:
        """Yield a user's projects, newest first, page by page."""
        query = {"limit": PAGE_LENGTH} | ({"status": status} if status else {})
        while True:
            page = await self._get(("users", user_id, "projects"), query)
            for project in page["projects"]:
                yield project
            if page["next_cursor"] is None:
                return
            query["cursor"] = page["next_cursor"]

    async def project(self, place: ProjectPlace) -> ProjectJson:
        """Return one project."""
        found: ProjectJson = await self._get(place.path)
        return found

    async def create(self, user_id: str, new: Mapping[str, Any], key: str) -> ProjectJson:
        """Create a project (name, project_id?, metadata?); ``key`` makes a repetition safe."""
        path = ("users", user_id, "projects")
        created: ProjectJson = await self._post(path, new, {"Idempotency-Key": key})
        return created

    async def rename(self, place: ProjectPlace, name: str) -> ProjectJson:
        """Give a project another name."""
        request = Request("PATCH", place.path, body={"name": name})
        renamed: ProjectJson = (await self._http.call(request)).body
        return renamed

    async def change(self, place: ProjectPlace, action: Action, wish: Wish) -> ProjectJson:
        """Activate or deactivate a project."""
        request = Request("POST", (*place.path, action), headers=wish.prefer)
        changed: ProjectJson = (await self._http.call(request, _patience(wish))).body
        return changed

    async def delete(self, place: ProjectPlace, wish: Wish) -> ProjectJson | None:
        """Delete a project; ``None`` when it is gone, the project while that goes on."""
        request = Request("DELETE", place.path, headers=wish.prefer)
        left: ProjectJson | None = (await self._http.call(request, _patience(wish))).body
        return left

    async def sessions(self, place: ProjectPlace) -> list[SessionJson]:
        """Return the conversations, newest first."""
        found: list[SessionJson] = (await self._get((*place.path, "sessions")))["sessions"]
        return found

    async def messages(self, place: ProjectPlace, session_id: str) -> list[MessageJson]:
        """Return a conversation's history, oldest first."""
        path = (*place.path, "sessions", session_id, "messages")
        found: list[MessageJson] = (await self._get(path))["messages"]
        return found

    async def delete_session(self, place: ProjectPlace, session_id: str) -> None:
        """End a conversation for good."""
        await self._http.call(Request("DELETE", (*place.path, "sessions", session_id)))

    def logs(
        self, place: ProjectPlace, *, follow: bool, tail: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the environment's log: its last ``tail`` lines, then what comes."""
        query = {"follow": "true" if follow else "false", "tail": str(tail)}
        return self._http.stream(Request("GET", (*place.path, "logs"), query))

    def events(
        self, place: ProjectPlace, after: int = 0
    ) -> AbstractAsyncContextManager[AsyncIterator[StreamEvent]]:
        """Open the activation log from the event after number ``after``, live."""
        query = {"after": str(after)}
        return self._http.events(Request("GET", (*place.path, "events"), query))

    def send(
        self, place: ProjectPlace, message: OutgoingMessage
    ) -> AbstractAsyncContextManager[AsyncIterator[StreamEvent]]:
        """Give the agent a message and open the turn that answers it."""
        request = Request("POST", (*place.path, "messages"), body=message.as_json())
        return self._http.events(request)

    def turn_events(
        self, place: ProjectPlace, turn_id: str, after: str | None
    ) -> AbstractAsyncContextManager[AsyncIterator[StreamEvent]]:
        """Open a turn again, from the event after id ``after`` (``None``: from its first)."""
        headers = {} if after is None else {"Last-Event-ID": after}
        return self._http.events(
            Request("GET", (*place.path, "turns", turn_id, "events"), headers=headers)
        )

    async def cancel_turn(self, place: ProjectPlace, turn_id: str) -> None:
        """Ask a turn to end."""
        await self._post((*place.path, "turns", turn_id, "cancel"))

    async def confirm(
        self, place: ProjectPlace, turn_id: str, confirmation_id: str, decision: Decision
    ) -> None:
        """Answer a turn's question whether a tool may run."""
        path = (*place.path, "turns", turn_id, "confirmations", confirmation_id)
        await self._post(path, {"decision": decision})

    async def _get(self, path: tuple[str, ...], query: Mapping[str, str] | None = None) -> Any:
        return (await self._http.call(Request("GET", path, query or {}))).body

    async def _post(
        self,
        path: tuple[str, ...],
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        return (await self._http.call(Request("POST", path, {}, body, headers or {}))).body


def _patience(wish: Wish) -> float:
    """Return how many seconds an answer may take."""
    if wish.wait is True:
        return LONGEST_WAIT + WAIT_MARGIN
    return wish.wait + WAIT_MARGIN
