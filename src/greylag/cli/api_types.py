"""The JSON of the HTTP API as the client meets it; its OpenAPI description has the rest."""

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Decision = Literal["allow_once", "reject_once"]
Action = Literal["activate", "deactivate"]


class ErrorJson(TypedDict):
    """Why a project's status is ``error``."""

    code: str
    message: str
    hint: str


class ProjectJson(TypedDict):
    """A project. Times are RFC 3339 in UTC."""

    id: str
    user_id: str
    project_id: str
    name: str
    metadata: dict[str, Any]
    status: str
    desired: str
    endpoint: str | None
    error: ErrorJson | None
    error_message: str | None
    namespace: str
    deployment: str
    service: str
    ingress: str | None
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


class PlatformJson(TypedDict):
    """What an installation is; ``notice`` and ``demonstration`` are sentences for people."""

    version: str
    cluster: str
    store: str
    notice: str | None
    demonstration: str | None


class SessionJson(TypedDict):
    """One of the agent's conversations."""

    session_id: str
    created_at: str
    updated_at: str
    message_count: int


class MessageJson(TypedDict):
    """One message of a session's history; ``timestamp`` in Unix seconds."""

    role: str
    content: str
    timestamp: int | None
    message_index: int


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
