"""What all stores share of people: what is written of each, and what was read a moment ago."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any, cast

from pydantic import TypeAdapter

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
    StoredPerson,
)

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

EXPORTED: Mapping[str, type[AnyKept]] = {
    name: kind for kind, name in NAMES.items() if name in EXPORTED_KINDS
}

_MOST_RECENT = 20_000
_BY_SECRET = frozenset[type]({Session, ApiToken, DeviceLogin})
"""What strangers may ask for any number of that there are not: those take no other's place."""
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


def from_body(kind: type[Kept], body: Mapping[str, Any]) -> Kept:
    """Return what ``to_body`` has written; members that this version does not know are left out."""
    found: Kept = _adapter(cast("Hashable", kind)).validate_python(dict(body))
    return found


def expires_at(one: AnyKept) -> datetime | None:
    """Return when it may be forgotten."""
    return one.expires_at if isinstance(one, Session | ApiToken | DeviceLogin | Share) else None


def to_stored(name: str, key: str, body: Mapping[str, Any] | str) -> StoredPerson | Finding:
    """Return what an export holds of something that is kept, or what is wrong with it."""
    try:
        one = _exported(name, json.loads(body) if isinstance(body, str) else body)
    except ValueError as error:
        return Finding(
            f"{name} {key}",
            f"The record {key!r} of {name} cannot be read ({type(error).__name__}: {error}).",
            "Correct what the sentence names, or remove the record; no export holds it until then.",
        )
    return StoredPerson(name, to_body(one))


def from_stored(stored: StoredPerson) -> AnyKept:
    """Return what an export holds, as it is first written."""
    return replace(_exported(stored.kind, stored.body), version=0)


def _exported(name: str, body: Mapping[str, Any]) -> AnyKept:
    return from_body(EXPORTED[name], body)


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

    async def labelled(self, kind: type[Kept], label: str | None = None) -> Sequence[Kept]:
        """Return all that have this label; see the port."""
        return await self._store.labelled(kind, label)

    async def put(self, one: AnyKept, now: datetime, *, audit: AuditEvent | None = None) -> bool:
        """Write one; see the port."""
        try:
            return await self._store.put(one, now, audit=audit)
        finally:
            self._forget(type(one), one.key)

    async def remove(self, kind: type[Kept], key: str, *, audit: AuditEvent | None = None) -> bool:
        """Remove one; see the port."""
        try:
            return await self._store.remove(kind, key, audit=audit)
        finally:
            self._forget(kind, key)

    def _forget(self, kind: type, key: str) -> None:
        self._found.pop((kind, key), None)
        self._missed.pop((kind, key), None)
