"""Users, sessions, tokens and members in MongoDB, a collection for each, and the audit trail."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError

from greylag.domain.audit import AuditBounds, AuditEntry, AuditEvent
from greylag.ports import AnyKept, AuditFilter, Kept, NumberedEntry
from greylag.store.mongo.connection import Collection
from greylag.store.mongo.indexes import PEOPLE
from greylag.store.mongo.writes import StoreParts
from greylag.store.people import NAMES, expires_at, from_body, readable, to_body

if TYPE_CHECKING:
    from greylag.store.mongo.documents import Document

_AT_ONCE = 1000


class PeopleMethods(StoreParts):
    """The methods of ``greylag.ports.PeopleStore`` and ``AuditStore``."""

    async def find(self, kind: type[Kept], key: str) -> Kept | None:
        """Return what is kept under ``key``; see the port."""
        with self._asking():
            raw = await self._people(kind).find_one({"_id": key})
        return None if raw is None else from_body(kind, key, raw)

    async def labelled(
        self, kind: type[Kept], label: str | None = None, *, strict: bool = False
    ) -> Sequence[Kept]:
        """Return all that have this label; see the port."""
        matching: Document = {} if label is None else {"labels": label}
        with self._asking():
            found = self._people(kind).find(matching, sort=[("_id", 1)], batch_size=_AT_ONCE)
            raws = await found.to_list()
        return readable(kind, label, ((str(raw["_id"]), raw) for raw in raws), strict=strict)

    async def put(self, one: AnyKept, now: datetime, *, audit: AuditEvent | None = None) -> bool:
        """Write one; see the port. The server forgets what has run out."""
        del now
        collection, document = self._people(type(one)), document_of(one)

        async def write(session: AsyncClientSession | None) -> bool:
            if one.version:
                same = {"_id": one.key, "version": one.version}
                done = await collection.replace_one(same, document, session=session)
                return done.matched_count > 0
            await collection.insert_one(document, session=session)
            return True

        with self._asking():
            try:
                return await self._audit.recorded(audit, write)
            except DuplicateKeyError:
                return False

    async def remove(
        self,
        kind: type[Kept],
        key: str,
        *,
        only: Mapping[str, str] | None = None,
        audit: AuditEvent | None = None,
    ) -> bool:
        """Remove one; see the port."""
        which: Document = {**(only or {}), "_id": key}

        async def write(session: AsyncClientSession | None) -> bool:
            done = await self._people(kind).delete_one(which, session=session)
            return done.deleted_count > 0

        with self._asking():
            return await self._audit.recorded(audit, write)

    async def append_audit(self, event: AuditEvent) -> AuditEntry:
        """Append an entry; see the port."""
        with self._asking():
            return await self._shielded(self._audit.append(event))

    async def audit_entries(
        self, asked: AuditFilter, limit: int, *, before: int | None = None, after: int = 0
    ) -> Sequence[NumberedEntry]:
        """Return entries; see the port."""
        with self._asking():
            return await self._audit.read(asked, limit, before, after)

    async def audit_bounds(self) -> AuditBounds:
        """Return where the chain begins and ends; see the port."""
        with self._asking():
            return await self._audit.bounds()

    async def trim_audit(self, before: datetime) -> int:
        """Remove the oldest entries; see the port."""
        with self._asking():
            return await self._audit.trim(before)

    def on_audit(self, told: Callable[[AuditEntry], None]) -> None:
        """Tell of each entry; see the port."""
        self._audit.told.append(told)

    def _people(self, kind: type) -> Collection:
        return self._database[PEOPLE[NAMES[kind]]]


def document_of(one: AnyKept) -> "Document":
    """Return what is written of one."""
    document = to_body(one) | {"_id": one.key, "labels": list(one.labels)}
    until = expires_at(one)
    return document if until is None else document | {"purge_at": until}
