"""Users, sessions, tokens and members in MongoDB: a collection for each kind."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from pymongo.errors import DuplicateKeyError

from greylag.ports import AnyKept, Kept
from greylag.store.mongo.connection import Collection
from greylag.store.mongo.indexes import PEOPLE
from greylag.store.mongo.writes import StoreParts
from greylag.store.people import NAMES, expires_at, from_body, to_body

if TYPE_CHECKING:
    from greylag.store.mongo.documents import Document

_AT_ONCE = 1000


class PeopleMethods(StoreParts):
    """The methods of ``greylag.ports.PeopleStore``."""

    async def find(self, kind: type[Kept], key: str) -> Kept | None:
        """Return what is kept under ``key``; see the port."""
        with self._asking():
            raw = await self._people(kind).find_one({"_id": key})
        return None if raw is None else from_body(kind, raw)

    async def labelled(self, kind: type[Kept], label: str | None = None) -> Sequence[Kept]:
        """Return all that have this label; see the port."""
        matching: Document = {} if label is None else {"labels": label}
        with self._asking():
            found = self._people(kind).find(matching, sort=[("_id", 1)], batch_size=_AT_ONCE)
            return [from_body(kind, raw) for raw in await found.to_list()]

    async def put(self, one: AnyKept, now: datetime) -> bool:
        """Write one; see the port. The server forgets what has run out."""
        del now
        collection, document = self._people(type(one)), document_of(one)
        with self._asking():
            if one.version:
                same = {"_id": one.key, "version": one.version}
                return (await collection.replace_one(same, document)).matched_count > 0
            try:
                await collection.insert_one(document)
            except DuplicateKeyError:
                return False
            return True

    async def remove(self, kind: type[Kept], key: str) -> bool:
        """Remove one; see the port."""
        with self._asking():
            return (await self._people(kind).delete_one({"_id": key})).deleted_count > 0

    def _people(self, kind: type[AnyKept]) -> Collection:
        return self._database[PEOPLE[NAMES[kind]]]


def document_of(one: AnyKept) -> "Document":
    """Return what is written of one."""
    document = to_body(one) | {"_id": one.key, "labels": list(one.labels)}
    until = expires_at(one)
    return document if until is None else document | {"purge_at": until}
