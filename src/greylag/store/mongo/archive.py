"""A MongoDB store as a whole, for export, import and ``greylag doctor``."""

import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from bson import json_util
from bson.codec_options import DatetimeConversion
from bson.json_util import CANONICAL_JSON_OPTIONS
from pymongo import DeleteMany, InsertOne
from pymongo.errors import BulkWriteError

from greylag.common.typed import check_types
from greylag.domain.audit import AuditBounds, AuditEvent
from greylag.domain.errors import ConfigError
from greylag.domain.project import ProjectRecord, ProjectRef
from greylag.ports import (
    NO_EXPORT,
    AuditFilter,
    Fill,
    Finding,
    NumberedEntry,
    Origin,
    RecordUnreadableError,
    Stored,
    StoredEntry,
    StoredKey,
    StoredPerson,
    StoredProject,
    StoreInUseError,
    StoreMissingError,
)
from greylag.store.mongo import connection, indexes
from greylag.store.mongo.audit_trail import AuditTrail
from greylag.store.mongo.connection import (
    Client,
    Collection,
    Database,
    MongoLimits,
    asking,
    repeated,
)
from greylag.store.mongo.documents import (
    Document,
    document_of,
    from_document,
    key_document,
    new_tail,
    pack,
    tail_of,
    to_document,
    to_event,
    unpack,
)
from greylag.store.people import EXPORTED, from_stored, to_stored
from greylag.store.records import (
    IMPORTED,
    LOG_LENGTH,
    MALFORMED,
    import_revokes_until,
    unreadable,
)

_SECONDS = 60.0
"""How long one batch may take."""

_AT_ONCE = 50
_DUPLICATE = 11000
_MARK = {"_id": "copy"}
_OURS = {"claimable_at", "unsettled", "revision", "news", "tail"}
_EXTRA_OPTIONS = CANONICAL_JSON_OPTIONS.with_options(
    tz_aware=True, tzinfo=UTC, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)


class MongoArchive:
    """Implements ``greylag.ports.Archive``; ``await MongoArchive.open(...)`` makes one."""

    keeps_extra = True

    def __init__(self, client: Client, database: Database, place: str) -> None:
        self._client = client
        self._database = database
        self._projects = self._database[indexes.PROJECTS]
        self._trail = AuditTrail(client, self._database, _SECONDS)
        self.place = place

    @classmethod
    async def open(
        cls, uri: str, name: str, *, place: str, limits: MongoLimits, write: bool
    ) -> "MongoArchive":
        """Open the database ``name`` of the server that ``uri`` names; ``place`` is for people.

        Raises:
            StoreMissingError: without ``write``, the database holds nothing at all.
            ConfigError: a URI or name that cannot be used; a newer Greylag has written the
                database; without ``write``, no Greylag was ever started on it.
            StoreUnavailableError: the server cannot be reached.
        """
        client = connection.connect(uri, limits)
        try:
            database = connection.database(client, name)
            with asking(limits.operation):
                await connection.has_change_streams(client)
                if not write:
                    await _check_there(database, place)
                await indexes.check_form(database)
            return cls(client, database, place)
        except BaseException:
            await client.close()
            raise

    async def read(self) -> AsyncIterator[Sequence[StoredProject | Finding]]:
        """Yield all projects; see the port."""
        cursor = self._projects.find({}, sort=[("_id", 1)], batch_size=_AT_ONCE)
        try:
            while True:
                with asking(_SECONDS):
                    batch = await self._stored(await cursor.to_list(_AT_ONCE))
                if not batch:
                    return
                yield batch
        finally:
            await cursor.close()

    async def count(self) -> int:
        """Return how many records there are; see the port."""
        with asking(_SECONDS):
            return await self._projects.count_documents({})

    async def people(self) -> AsyncIterator[Sequence[StoredPerson | Finding]]:
        """Yield users, tokens and members; see the port."""
        for name in EXPORTED:
            collection = self._database[indexes.PEOPLE[name]]
            async with collection.find({}, sort=[("_id", 1)], batch_size=_AT_ONCE) as cursor:
                while True:
                    with asking(_SECONDS):
                        batch = await cursor.to_list(_AT_ONCE)
                    if not batch:
                        break
                    yield [to_stored(name, str(raw["_id"]), raw) for raw in batch]

    async def count_people(self) -> int:
        """Return how many of them there are; see the port."""
        with asking(_SECONDS):
            return sum(
                [await self._database[indexes.PEOPLE[n]].count_documents({}) for n in EXPORTED]
            )

    async def at_work(self, now: datetime) -> ProjectRef | None:
        """Return a project under a lease; see the port."""
        with asking(_SECONDS):
            raw = await self._projects.find_one({"lease.until": {"$gt": now}})
        return None if raw is None else ProjectRef(str(raw["user_id"]), str(raw["project_id"]))

    async def instance(self) -> str | None:
        """Return this Greylag's id, if any process has asked for it yet; see the port."""
        with asking(_SECONDS):
            found = await self._database[indexes.INSTANCE].find_one({"_id": "instance"})
        return None if found is None else str(found["id"])

    async def incomplete(self) -> bool:
        """Tell whether an import has not ended; see the port."""
        with asking(_SECONDS):
            return await indexes.is_incomplete(self._database)

    async def audit_bounds(self) -> AuditBounds:
        """Return where the audit trail begins and ends; see the port."""
        with asking(_SECONDS):
            return AuditBounds() if await self._brought_trail() else await self._trail.bounds()

    async def audit_entries(
        self, asked: AuditFilter, limit: int, *, before: int | None = None, after: int = 0
    ) -> Sequence[NumberedEntry]:
        """Return entries of the audit trail; see the port."""
        with asking(_SECONDS):
            return await self._trail.read(asked, limit, before, after)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Keep nobody away: a server has no such thing; see the port."""
        yield

    @asynccontextmanager
    async def replacing(
        self, origin: Origin = NO_EXPORT, at: datetime | None = None
    ) -> AsyncIterator[Fill]:
        """Mark the store as incomplete, empty it, and take the mark away at the end."""
        marks = self._database[indexes.INCOMPLETE]
        mark = _MARK | {"source": "an import", "run": secrets.token_hex(8)}
        with asking(_SECONDS):
            # What an import has brought that was cut off is not the store's own.
            if origin.trail is None and await self._brought_trail():
                origin = replace(origin, trail=AuditBounds())
            mark["trail"] = "brought" if origin.trail is not None else ""
            await marks.replace_one(_MARK, mark, upsert=True)
        async with self._writing(mark):
            await self._empty(origin, at)

        async def fill(records: Sequence[Stored | AuditEvent]) -> None:
            with asking(_SECONDS):
                await self._check_ours(mark, wrote=False)
            async with self._writing(mark):
                await self._fill(records)

        yield fill
        with asking(_SECONDS):
            if not (await marks.delete_one(mark)).deleted_count:
                await self._check_ours(mark, wrote=False)

    async def _empty(self, origin: Origin, at: datetime | None) -> None:
        await indexes.mark_form(self._database)
        if origin.trail is not None:
            await self._trail.clear(origin.trail)
        of_people = indexes.PEOPLE.values() if origin.people else ()
        ours = (indexes.PROJECTS, indexes.EVENTS, indexes.KEYS, indexes.TRANSCRIPTS)
        for name in (*ours, *of_people):
            await repeated(partial(self._database[name].delete_many, {}))
        await indexes.ensure(self._database)
        if origin.instance is not None:
            await self._database[indexes.INSTANCE].replace_one(
                {"_id": "instance"}, {"id": origin.instance}, upsert=True
            )
        if at is not None:
            await self._database[indexes.REVOCATIONS].replace_one(
                {"_id": IMPORTED}, {"until": import_revokes_until(at)}, upsert=True
            )

    @asynccontextmanager
    async def _writing(self, mark: Document) -> AsyncIterator[None]:
        """Write in the ``async with`` block as the import that has this mark; see ``_check_ours``.

        What fails may have written, too, and its time may be up.
        """
        try:
            with asking(_SECONDS):
                yield
        finally:
            with asking(_SECONDS):
                await self._check_ours(mark, wrote=True)

    async def _check_ours(self, mark: Document, *, wrote: bool) -> None:
        """Raise unless the mark is still that of this import.

        What it ``wrote`` since it last was may have changed what another import, which has begun
        meanwhile, has filled in: so that one is not to be taken for whole either.
        """
        marks = self._database[indexes.INCOMPLETE]
        if await marks.find_one(mark) is not None:
            return
        if wrote:
            await marks.replace_one(_MARK, mark | {"run": secrets.token_hex(8)}, upsert=True)
        raise StoreInUseError(f"Another import into {self.place} has begun meanwhile.")

    async def _brought_trail(self) -> bool:
        mark = await self._database[indexes.INCOMPLETE].find_one(_MARK)
        return bool(mark and mark.get("trail"))

    async def findings(self) -> Sequence[Finding]:
        """Return which indexes are missing or wrong; see the port."""
        with asking(_SECONDS):
            return await indexes.findings(self._database)

    async def close(self) -> None:
        """Disconnect; see the port."""
        await self._client.close()

    async def _stored(self, raws: list[Document]) -> list[StoredProject | Finding]:
        """Return what is kept of these documents."""
        those = {"record_id": {"$in": [raw["_id"] for raw in raws]}}
        older: dict[Any, list[Document]] = {}
        for fields in await self._database[indexes.EVENTS].find(those).to_list():
            older.setdefault(fields["record_id"], []).append(fields)
        keys: dict[Any, list[Document]] = {}
        for fields in await self._database[indexes.KEYS].find(those).to_list():
            keys.setdefault(fields["record_id"], []).append(fields)
        return [
            stored_project(raw, older.get(raw["_id"], []), keys.get(raw["_id"], [])) for raw in raws
        ]

    async def _fill(self, records: Sequence[Stored | AuditEvent]) -> None:
        projects = [one for one in records if isinstance(one, StoredProject)]
        documents = [project_document(stored) for stored in projects]
        keys = [key_document(stored.project.id, key) for stored in projects for key in stored.keys]
        environment = ("environment_user", "project_id")
        await _insert(self._projects, documents, ("user_id", "project_id"), environment)
        await _insert(self._database[indexes.KEYS], keys)
        for name, collection in indexes.PEOPLE.items():
            people = [
                document_of(from_stored(one))
                for one in records
                if isinstance(one, StoredPerson) and one.kind == name
            ]
            await _insert(self._database[collection], people)
        entries = [
            {**one.body, "_id": one.number} for one in records if isinstance(one, StoredEntry)
        ]
        await _insert(self._database[indexes.AUDIT], entries)
        for one in records:
            if isinstance(one, AuditEvent):
                await self._trail.append(one)


async def _check_there(database: Database, place: str) -> None:
    """Raise unless Greylag was on this database: a server answers for any name, with nothing."""
    # Every start makes the indexes of this collection; others come back as programs go on.
    names = await database.list_collection_names()
    if indexes.PROJECTS not in names:
        # What others keep there, or came back, says that it is the wrong one, or lost its records.
        raise (ConfigError if names else StoreMissingError)(
            f"{place} holds no records of Greylag.",
            hint="Check MONGODB_URI and MONGODB_DB. A new database is made ready when `greylag "
            "serve` or `worker` starts on it.",
        )


async def _insert(
    collection: Collection, documents: list[Document], *unique: tuple[str, ...]
) -> None:
    """Insert documents, each instead of any with the same ``_id`` or the same fields of a set that
    is ``unique``.
    """
    if not documents:
        return
    try:
        await collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        codes = {one["code"] for one in (error.details or {}).get("writeErrors", [])}
        if codes != {_DUPLICATE}:
            raise
    else:
        return
    writes: list[DeleteMany | InsertOne[Document]] = []
    for document in documents:
        writes.append(DeleteMany({"_id": document["_id"]}))
        writes += [DeleteMany({name: document[name] for name in names}) for names in unique]
        writes.append(InsertOne(document))
    await repeated(lambda: collection.bulk_write(writes))


def stored_project(
    raw: Document, older: Sequence[Document], keys: Sequence[Document]
) -> StoredProject | Finding:
    """Return what a document holds, with the events that stand elsewhere (``older``) and its keys;
    or what is wrong with it.
    """
    try:
        record = from_document(raw)
        # What was moved out of the tail may stand there still, and newer events may have come.
        numbered = {fields["seq"]: fields for fields in [*older, *tail_of(raw)]}
        last = record.project.last_seq
        kept = range(last - LOG_LENGTH + 1, last + 1)
        stored = StoredProject(
            project=record.project,
            claims=record.claims,
            events=[to_event(numbered[seq]) for seq in sorted(numbered) if seq in kept],
            keys=[
                StoredKey(
                    fields["_id"]["user_id"],
                    fields["_id"]["key"],
                    fields["fingerprint"],
                    fields["expires_at"],
                )
                for fields in sorted(keys, key=lambda one: str(one["_id"]["key"]))
            ],
            extra=_extra(raw, record),
        )
        check_types(stored)
    except (*MALFORMED, RecordUnreadableError) as error:
        return unreadable(raw["_id"], raw.get("user_id"), raw.get("project_id"), error)
    return stored


def project_document(stored: StoredProject) -> Document:
    """Return the document of a project that arrives, its log with it."""
    document = to_document(ProjectRecord(stored.project, stored.claims))
    extra: Document = json_util.loads(json.dumps(dict(stored.extra)), json_options=_EXTRA_OPTIONS)
    # The whole log goes with the record, so that both arrive in one step; its next event moves it
    # to where older events are kept.
    return document | extra | {"revision": 1, "tail": new_tail(stored.events)}


def _extra(raw: Document, record: ProjectRecord) -> Mapping[str, Any]:
    """Return what others keep in a document, as Extended JSON."""
    ours = _OURS | set(to_document(record))
    extra = {name: value for name, value in raw.items() if name not in ours}
    metadata = raw.get("metadata")
    if "metadata" in raw and (metadata is None or pack(unpack(metadata)) != metadata):
        # It is richer than what we read of it.
        extra["metadata"] = metadata
    found: dict[str, Any] = json.loads(json_util.dumps(extra, json_options=_EXTRA_OPTIONS))
    return found
