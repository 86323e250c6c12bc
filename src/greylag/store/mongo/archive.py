"""A MongoDB store as a whole, to be moved or checked."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from bson import ObjectId
from pymongo import ReplaceOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from greylag.domain.project import ProjectRef
from greylag.ports import Bundle, Flaw, Held, Sheet, StoreUnreadableError
from greylag.store import sheets
from greylag.store.mongo import archive_flaws, client, indexes
from greylag.store.mongo.bundles import OPTIONS, from_bundle, key_document, to_bundle
from greylag.store.mongo.claims import Projects
from greylag.store.mongo.client import Client, Documents, Limits, asking, repeated
from greylag.store.mongo.documents import Document, key

COPYING = "greylag_copying"

_SECONDS = 60.0
"""How long one sheet may take."""

_MARK = {"_id": "copy"}
_PLACE = {"_id": True, "last_seq": True}
_OBJECT_IDS, _TEXTS, _OTHERS = "o", "s", "x"
"""Sheets go by kinds of ``_id``, since a comparison finds only what is of its own kind."""

_DUPLICATE = 11000


class MongoArchive:
    """Implements ``greylag.ports.Archive``; ``await MongoArchive.open(...)`` makes one."""

    kind = "mongodb"

    def __init__(self, connected: Client, database: Documents, place: str) -> None:
        self._client = connected
        self._database = database.with_options(codec_options=OPTIONS)
        self._projects = self._database[indexes.PROJECTS]
        self.place = place

    @classmethod
    async def open(cls, uri: str, name: str, *, place: str, limits: Limits) -> "MongoArchive":
        """Open the database ``name`` of the server that ``uri`` names; ``place`` is for people.

        Raises ``StoreUnavailableError`` when it cannot be reached, ``ConfigError`` for a URI or
        name that cannot be used.
        """
        connected = client.connect(uri, limits)
        try:
            with asking(limits.operation):
                await client.has_change_streams(connected)
            return cls(connected, client.database(connected, name), place)
        except BaseException:
            await connected.close()
            raise

    async def sheet(self, after: str | None, limit: int) -> Sheet:
        """Return the records that follow ``after``; see the port."""
        kind, _, last = (after or _OBJECT_IDS).partition(":")
        with asking(_SECONDS):
            places = await self._projects.find(
                _following(kind, last), _PLACE, sort=[("_id", 1)], limit=limit, batch_size=limit
            ).to_list()
            taken = places[: sheets.fitting(place.get("last_seq", 0) for place in places)]
            read = await self._read([place["_id"] for place in taken])
        more = len(places) == limit or len(taken) < len(places)
        return Sheet(
            bundles=[one for one in read if isinstance(one, Bundle)],
            unreadable=[one for one in read if isinstance(one, Flaw)],
            after=f"{kind}:{taken[-1]['_id']}" if more and kind != _OTHERS else _next_kind(kind),
        )

    async def find(self, record_ids: Sequence[str]) -> Mapping[str, Bundle]:
        """Return those of these records that are there; see the port."""
        with asking(_SECONDS):
            read = await self._read([key(record_id) for record_id in record_ids])
        found: dict[str, Bundle] = {}
        for one in read:
            if isinstance(one, Flaw):
                raise StoreUnreadableError(one.sentence)
            found[one.project.id] = one
        return found

    async def count(self) -> int:
        """Return how many records there are; see the port."""
        with asking(_SECONDS):
            return await self._projects.count_documents({})

    async def held(self, now: datetime) -> Held | None:
        """Return a lease that has not run out; see the port."""
        with asking(_SECONDS):
            raw = await self._projects.find_one(
                {"lease.until": {"$gt": now}},
                {"user_id": True, "project_id": True, "lease": True},
                sort=[("lease.until", -1)],
            )
        if raw is None:
            return None
        ref = ProjectRef(str(raw.get("user_id")), str(raw.get("project_id")))
        return Held(ref, str(raw["lease"].get("worker")), raw["lease"]["until"])

    async def unfinished(self) -> str | None:
        """Return where an unfinished copy is from; see the port."""
        with asking(_SECONDS):
            mark = await self._database[COPYING].find_one(_MARK)
        return None if mark is None else str(mark["source"])

    async def begin(self, source: str) -> bool:
        """Mark the store as being filled, and make its indexes; see the port."""
        known = await self.unfinished()
        if known is None and await self.count() == 0:
            with asking(_SECONDS):
                try:
                    await self._database[COPYING].insert_one({**_MARK, "source": source})
                except DuplicateKeyError:
                    # Somebody else has just begun; from the same source, that is as good.
                    known = await self.unfinished()
                else:
                    known = source
        if known != source:
            return False
        with asking(_SECONDS):
            await indexes.ensure(self._database)
        return True

    async def write(self, bundles: Sequence[Bundle]) -> None:
        """Put these records there; see the port."""
        if not bundles:
            return
        with asking(_SECONDS):
            await self._put(bundles)
            await self._put_keys(bundles)

    async def finish(self) -> None:
        """Take the mark away; see the port."""
        with asking(_SECONDS):
            await self._database[COPYING].drop()

    async def flaws(self) -> Sequence[Flaw]:
        """Return what is wrong with the database as such; see the port."""
        source = await self.unfinished()
        found = [] if source is None else [sheets.unfinished_copy(source)]
        with asking(_SECONDS):
            return [*found, *await archive_flaws.flaws(self._database)]

    async def close(self) -> None:
        """Disconnect; see the port."""
        await self._client.close()

    async def _read(self, ids: list[Any]) -> list[Bundle | Flaw]:
        those = {"record_id": {"$in": ids}}
        found = await self._projects.find({"_id": {"$in": ids}}, sort=[("_id", 1)]).to_list()
        older: dict[Any, list[Document]] = {}
        for fields in await self._database[indexes.EVENTS].find(those).to_list():
            older.setdefault(fields["record_id"], []).append(fields)
        keys: dict[Any, list[Document]] = {}
        for fields in await self._database[indexes.KEYS].find(those).to_list():
            keys.setdefault(fields["record_id"], []).append(fields)
        return [
            to_bundle(raw, older.get(raw["_id"], []), keys.get(raw["_id"], [])) for raw in found
        ]

    async def _put(self, bundles: Sequence[Bundle]) -> None:
        documents = [from_bundle(bundle) for bundle in bundles]
        try:
            await _insert_or_replace(self._projects, documents)
        except BulkWriteError as error:
            for document in _refused(error, documents):
                raise sheets.taken_by_another(
                    document["user_id"], document["project_id"]
                ) from error
            raise

    async def _put_keys(self, bundles: Sequence[Bundle]) -> None:
        keys = self._database[indexes.KEYS]
        ids = [key(bundle.project.id) for bundle in bundles]
        await repeated(lambda: keys.delete_many({"record_id": {"$in": ids}}))
        wanted = [
            key_document(kept, record_id)
            for bundle, record_id in zip(bundles, ids, strict=True)
            for kept in bundle.keys
        ]
        if wanted:
            await _insert_or_replace(keys, wanted)


async def _insert_or_replace(collection: Projects, documents: list[Document]) -> None:
    """Put documents there; one whose ``_id`` is there gives way."""
    try:
        await collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        there = _refused(error, documents)
        if not there:
            raise
        await collection.bulk_write(
            [ReplaceOne({"_id": one["_id"]}, one, upsert=True) for one in there], ordered=False
        )


def _refused(error: BulkWriteError, documents: list[Document]) -> list[Document]:
    """Return the documents that were refused because another is there."""
    errors = (error.details or {}).get("writeErrors", [])
    return [documents[one["index"]] for one in errors if one["code"] == _DUPLICATE]


def _following(kind: str, last: str) -> Document:
    """Return the query for what follows ``last`` (empty: the first) among one kind of ``_id``."""
    match kind:
        case "o":
            return {"_id": {"$gt": ObjectId(last)} if last else {"$type": "objectId"}}
        case "s":
            return {"_id": {"$gt": last} if last else {"$type": "string"}}
        case _:
            return {"_id": {"$not": {"$type": ["objectId", "string"]}}}


def _next_kind(kind: str) -> str | None:
    return {_OBJECT_IDS: _TEXTS, _TEXTS: _OTHERS}.get(kind)
