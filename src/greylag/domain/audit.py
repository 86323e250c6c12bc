"""The audit trail: who changed what, and whom what was refused, as a chain of entries.

Each entry has a number, one more than the one before, and a hash over all that it says and over the
hash of the one before. So a change of an entry, or one that is taken out, shows in what follows.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from greylag.common.clock import rfc3339
from greylag.domain.errors import GreylagError
from greylag.domain.project import ProjectRef
from greylag.domain.users import Principal


class AuditAction(StrEnum):
    """What is done that is more, or more exactly told, than one of ``users.Action``."""

    REQUEST = "request"
    PROJECT_CREATE = "projects.create"
    PROJECT_EDIT = "projects.edit"
    ENVIRONMENT_REFRESH = "environment.refresh"
    ENVIRONMENT_ADOPT = "environment.adopt"
    ENVIRONMENT_DELETE = "environment.delete"
    RECORDS_IMPORT = "records.import"
    PREVIEW_LINK = "previews.link"
    PREVIEW_OPEN = "previews.open"
    PREVIEW_END = "previews.end"
    MEMBER_SET = "members.set"
    MEMBER_REMOVE = "members.remove"
    LOOK_START = "looks.start"
    LOOK_END = "looks.end"
    USER_CREATE = "users.create"
    USER_EDIT = "users.edit"
    USER_REMOVE = "users.remove"
    SESSION_START = "sessions.start"
    SESSION_END = "sessions.end"
    LOGIN_ANSWER = "logins.answer"
    SECRET_SET = "secrets.set"  # noqa: S105 - what is done, no secret
    SECRET_REMOVE = "secrets.remove"  # noqa: S105 - the same
    NOTIFICATION_ADD = "notifications.add"
    NOTIFICATION_TEST = "notifications.test"
    NOTIFICATION_REMOVE = "notifications.remove"
    TOKEN_CREATE = "tokens.create"  # noqa: S105 - what is done, no token
    TOKEN_REVOKE = "tokens.revoke"  # noqa: S105 - the same


class Result(StrEnum):
    """What came of it.

    ``BEGUN``: it was about to be done where nothing can be written in one step with it; another
    entry of the same request tells how it ended, unless Greylag itself ended before. ``UNCHANGED``:
    it had begun, and nothing was to be changed any more.
    """

    DONE = "done"
    BEGUN = "begun"
    REFUSED = "refused"
    FAILED = "failed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did something.

    Attributes:
        name: for people.
        kind: what they are; ``system`` is Greylag itself, ``provider`` the identity provider.
        user: the id of a user.
        via: the session or token, by its id.
        address: where the request came from.
    """

    name: str
    kind: Literal["operator", "user", "anonymous", "provider", "system"]
    user: str | None = None
    via: str = ""
    address: str = ""

    @classmethod
    def of(cls, principal: Principal) -> "Actor":
        """Return who a principal is."""
        kind: Literal["operator", "user"] = "operator" if principal.user_id is None else "user"
        return cls(principal.name, kind, principal.user_id, principal.via, principal.address)


SYSTEM = Actor("greylag", "system")


def anonymous(address: str) -> Actor:
    """Return somebody of whom only the address is known."""
    return Actor("", "anonymous", address=address)


def name_of(what: str | ProjectRef) -> str:
    """Return what entries call a user, by their id, or a project."""
    if isinstance(what, ProjectRef):
        return f"project/{what.user_id}/{what.project_id}"
    return f"user/{what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """What an entry says, before it has its place in the chain.

    Attributes:
        at: when.
        actor: who.
        action: one of ``users.Action`` or ``AuditAction``.
        object: a path, as ``project/ada/notes`` or ``user/ada``, and below a project the agent's.
        result: what came of it.
        code: of a refusal or failure, the error's.
        request_id: the request's, "" where there was none.
        changed: names and new values; never a message, a secret or what a file holds.
        count: how many equal ones within a minute the entry stands for.
    """

    at: datetime
    actor: Actor
    action: str
    object: str
    result: Result = Result.DONE
    code: str = ""
    request_id: str = ""
    changed: Mapping[str, Any] = field(default_factory=dict)
    count: int = 1


@dataclass(frozen=True, slots=True)
class Link:
    """A place in the chain: an entry's number and hash."""

    number: int
    hash: str


START = Link(0, "0" * 64)
"""What the first entry of all follows."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An event in its place: after the entry whose hash is ``previous``."""

    number: int
    event: AuditEvent
    previous: str
    hash: str

    @property
    def link(self) -> Link:
        """Its place."""
        return Link(self.number, self.hash)


@dataclass(frozen=True, slots=True)
class AuditBounds:
    """What a store holds: entries after ``start``, which were trimmed, up to ``end``."""

    start: Link = START
    end: Link = START


def chained(event: AuditEvent, last: Link) -> AuditEntry:
    """Return the entry that tells of ``event`` after ``last``."""
    unhashed = AuditEntry(last.number + 1, event, last.hash, "")
    return AuditEntry(unhashed.number, event, last.hash, hash_of(to_json(unhashed)))


def to_json(entry: AuditEntry) -> dict[str, Any]:
    """Return the entry as stores, the API and copies have it."""
    event = entry.event
    return {
        "number": entry.number,
        "at": rfc3339(event.at),
        "actor": asdict(event.actor),
        "action": event.action,
        "object": event.object,
        "result": event.result.value,
        "code": event.code,
        "request_id": event.request_id,
        "changed": dict(event.changed),
        "count": event.count,
        "previous": entry.previous,
        "hash": entry.hash,
    }


def hash_of(told: Mapping[str, Any]) -> str:
    """Return the hash that an entry in JSON must have: over all its other members."""
    hashed = {name: value for name, value in told.items() if name != "hash"}
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class ChainBrokenError(GreylagError):
    """The audit trail is not as it was written."""

    code = "audit_broken"
    hint = "Compare it with the copy that you keep elsewhere, from this number on."


class ChainCheck:
    """Follows a chain from ``start``, entry by entry in JSON, to ``end``."""

    def __init__(self, start: Link = START) -> None:
        self.last = start

    def follow(self, told: Iterable[Mapping[str, Any]]) -> None:
        """Check the next entries.

        Raises:
            ChainBrokenError: one is missing or was changed; it names the first number.
        """
        for one in told:
            number = self.last.number + 1
            if one.get("number") != number:
                raise ChainBrokenError(f"The entry {number} is missing.")
            if "left_out" in one:
                raise ChainBrokenError(f"The entry {number} was too large for this copy.")
            if one.get("hash") != hash_of(one):
                raise ChainBrokenError(f"The entry {number} was changed.")
            if one.get("previous") != self.last.hash:
                raise ChainBrokenError(f"The entry {number} does not follow the one before it.")
            self.last = Link(number, one["hash"])

    def end(self, end: Link) -> None:
        """Check that the chain does not end too early.

        Raises:
            ChainBrokenError: entries at the end are missing.
        """
        if self.last.number < end.number:
            raise ChainBrokenError(f"The entry {self.last.number + 1} is missing.")
