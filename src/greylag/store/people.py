"""What all stores share of people: what is written of each, and what was read a moment ago."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any, cast

import structlog
from pydantic import TypeAdapter, ValidationError

from greylag.common.typed import parse_json
from greylag.domain.audit import AuditEvent
from greylag.domain.users import (
    ApiToken,
    DeviceLogin,
    Member,
    NotificationTarget,
    PushKey,
    Session,
    Share,
    User,
    UserSecret,
)
from greylag.ports import (
    EXPORTED_KINDS,
    RECENT_SECONDS,
    AnyKept,
    Clock,
    Finding,
    Kept,
    PeopleStore,
    RecordUnreadableError,
    StoredPerson,
)
from greylag.store.records import MALFORMED

NAMES: Mapping[type, str] = {
    User: "users",
    Session: "sessions",
    ApiToken: "tokens",
    Member: "members",
    DeviceLogin: "device_logins",
    Share: "shares",
    UserSecret: "secrets",
    NotificationTarget: "notifications",
    PushKey: "push_keys",
}
"""What each kind is called in a store."""

OF_PROJECTS: tuple[type[Member], type[Share]] = (Member, Share)
"""What goes with the record of a project, which each names by ``record_id``."""

EXPORTED: Mapping[str, type[AnyKept]] = {
    name: kind for kind, name in NAMES.items() if name in EXPORTED_KINDS
}

_MOST_RECENT = 20_000
_BY_SECRET = frozenset[type]({Session, ApiToken, DeviceLogin})
"""What strangers may ask for any number of that there are not: those take no other's place."""
_log = structlog.get_logger(__name__)

_Read = dict[tuple[type, str], tuple[float, Any]]


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast("type[Any]", kind))


def to_body(one: AnyKept) -> dict[str, Any]:
    """Return all of ``one`` as JSON has it, in its next version."""
    body: dict[str, Any] = _adapter(cast("Hashable", type(one))).dump_python(
        replace(one, version=one.version + 1), mode="json"
    )
    return body


def from_body(kind: type[Kept], key: str, body: Mapping[str, Any] | str | bytes) -> Kept:
    """Return what ``to_body`` has written under ``key``, as it is or as JSON; members that this
    version does not know are left out.

    Raises:
        RecordUnreadableError: something else has written it, or a newer version; what stands in it
            is not repeated. ``key`` may be empty.
    """
    try:
        said = body if isinstance(body, Mapping) else parse_json(body)
        found: Kept = _adapter(cast("Hashable", kind)).validate_python(dict(said))
    except MALFORMED as error:
        which = f"The record {key!r}" if key else "A record"
        raise RecordUnreadableError(
            f"{which} of {NAMES[kind]} cannot be read ({_why(error)})."
        ) from error
    return found


def _why(error: Exception) -> str:
    """Return what is wrong, without what stands there: it may be secret."""
    if not isinstance(error, ValidationError):
        return type(error).__name__
    faults = error.errors(include_input=False, include_context=False, include_url=False)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in faults)


def readable(
    kind: type[Kept],
    label: str | None,
    rows: Iterable[tuple[str, Mapping[str, Any] | str]],
    *,
    strict: bool,
) -> list[Kept]:
    """Return what of these keys and bodies ``PeopleStore.labelled`` returns.

    Raises:
        RecordUnreadableError: as that says.
    """
    found: list[Kept] = []
    for key, body in rows:
        try:
            found.append(from_body(kind, key, body))
        except RecordUnreadableError as error:
            if strict or (kind is User and label is not None):
                raise
            _log.warning("record_passed_over", error=str(error))
    return found


def expires_at(one: AnyKept) -> datetime | None:
    """Return when it may be forgotten."""
    return one.expires_at if isinstance(one, Session | ApiToken | DeviceLogin | Share) else None


def to_stored(name: str, key: str, body: Mapping[str, Any] | str) -> StoredPerson | Finding:
    """Return what an export holds of something that is kept, or what is wrong with it."""
    try:
        one = from_body(EXPORTED[name], key, body)
    except RecordUnreadableError as error:
        return Finding(
            f"{name} {key}",
            str(error),
            "Correct what the sentence names, or remove the record; no export holds it until then.",
        )
    return StoredPerson(name, to_body(one))


def from_stored(stored: StoredPerson) -> AnyKept:
    """Return what an export holds, as it is first written.

    Raises:
        RecordUnreadableError: this version cannot read it.
    """
    return replace(from_body(EXPORTED[stored.kind], "", stored.body), version=0)


class RecentPeople:
    """Implements ``greylag.ports.PeopleStore`` over another one, and reads nothing twice within
    half a second: so a request costs no question to the store, and what another process has
    changed still counts within a second.
    """

    def __init__(self, store: PeopleStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._found: _Read = {}
        self._missed: _Read = {}
        self._users: tuple[float, Sequence[Any]] = (float("-inf"), ())

    async def find(self, kind: type[Kept], key: str) -> Kept | None:
        """Return what is kept under ``key``; see the port."""
        now = self._clock.monotonic()
        until, found = self._found.get((kind, key)) or self._missed.get((kind, key), (now, None))
        if now >= until:
            found = await self._store.find(kind, key)
            self._forget(kind, key)
            kept = self._missed if found is None and kind in _BY_SECRET else self._found
            if len(kept) >= _MOST_RECENT:
                del kept[next(iter(kept))]  # the one read longest ago
            kept[kind, key] = now + RECENT_SECONDS, found
        recent: Kept | None = found
        return recent

    async def labelled(
        self, kind: type[Kept], label: str | None = None, *, strict: bool = False
    ) -> Sequence[Kept]:
        """Return all that have this label; see the port."""
        if kind is not User or label is not None or strict:
            return await self._store.labelled(kind, label, strict=strict)
        # Each look of each open page asks who there is.
        now = self._clock.monotonic()
        if now >= self._users[0]:
            self._users = now + RECENT_SECONDS, await self._store.labelled(User)
        return self._users[1]

    async def put(self, one: AnyKept, now: datetime, *, audit: AuditEvent | None = None) -> bool:
        """Write one; see the port."""
        try:
            return await self._store.put(one, now, audit=audit)
        finally:
            self._note_change(type(one), one.key)

    async def remove(
        self,
        kind: type[Kept],
        key: str,
        *,
        only: Mapping[str, str] | None = None,
        audit: AuditEvent | None = None,
    ) -> bool:
        """Remove one; see the port."""
        try:
            return await self._store.remove(kind, key, only=only, audit=audit)
        finally:
            self._note_change(kind, key)

    def _note_change(self, kind: type, key: str) -> None:
        self._forget(kind, key)
        if kind is User:
            self._users = float("-inf"), ()

    def _forget(self, kind: type, key: str) -> None:
        self._found.pop((kind, key), None)
        self._missed.pop((kind, key), None)
