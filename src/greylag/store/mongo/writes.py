"""What both halves of the MongoDB store share: its collections, how a record is changed, its log.

A change reads the record, decides by the rules of ``records``, and writes if nobody was faster;
else it begins anew.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pymongo import ReplaceOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError

from greylag.domain.audit import AuditEvent
from greylag.domain.errors import GreylagError, StoreUnavailableError
from greylag.domain.project import Event, Project, ProjectRecord, ProjectRef
from greylag.store.changes import ChangeHub
from greylag.store.mongo import indexes
from greylag.store.mongo.audit_trail import AuditTrail
from greylag.store.mongo.changes import ChangeFollower, OwnChanges, StreamFollower
from greylag.store.mongo.connection import (
    Client,
    Collection,
    Database,
    MongoLimits,
    WriteAttempts,
    asking,
    repeated,
)
from greylag.store.mongo.documents import (
    WITHOUT_TAIL,
    Document,
    difference,
    from_document,
    revision_of,
    tail_of,
    to_event,
)
from greylag.store.records import LOG_LENGTH, exists, reading_log

T = TypeVar("T")


class StoreParts:
    """The parts of one store on one connection; nothing is asked of the server yet."""

    def __init__(self, client: Client, database: Database, limits: MongoLimits) -> None:
        self._client = client
        self._database = database
        self._projects = database[indexes.PROJECTS]
        self._keys = database[indexes.KEYS]
        self._revocations = database[indexes.REVOCATIONS]
        self._transcripts = database[indexes.TRANSCRIPTS]
        self._log = ActivationLog(database[indexes.EVENTS])
        self._audit = AuditTrail(client, database, limits.operation)
        self._seconds = limits.operation
        self._hub = ChangeHub()
        self._own = OwnChanges(self._hub)
        self._follower: ChangeFollower = StreamFollower(database, self._hub, self._own)
        self._begun: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._wanting: GreylagError | None = None

    @contextmanager
    def _asking(self, seconds: float | None = None) -> Iterator[None]:
        """Bound all that the ``with`` block asks of the server; see ``connection.asking``.

        Raises:
            StoreUnavailableError: the store is closed, or not ready yet.
        """
        if self._closed:
            raise StoreUnavailableError("The store has been closed.")
        if self._wanting is not None:
            info = self._wanting.info
            raise StoreUnavailableError(info.message, hint=info.hint) from self._wanting
        with asking(seconds or self._seconds):
            yield

    async def _change(
        self,
        query: Document,
        change: Callable[[ProjectRecord | None], ProjectRecord],
        *,
        fence: Mapping[str, Any] | None = None,
        quiet: bool = False,
        audit: AuditEvent | None = None,
    ) -> Project:
        """Make of the record that ``query`` finds what ``change`` makes of it, and return it.

        Args:
            query: finds the record.
            change: may be called more than once, and refuses by raising.
            fence: what the document must match besides when it is written.
            quiet: nobody is told of it.
            audit: what the audit trail is told of it.
        """
        attempts = WriteAttempts(self._seconds)
        while True:
            raw = await self._projects.find_one(query, WITHOUT_TAIL)
            before = None if raw is None else from_document(raw)
            after = change(before)
            if raw is None or before is None or after is before:
                return after.project
            try:
                written = await self._put(raw, before, after, fence=fence, quiet=quiet, audit=audit)
            except DuplicateKeyError as error:
                raise exists(after.project.ref) from error
            if written:
                return after.project
            await attempts.pause()

    async def _put(  # noqa: PLR0913 - all that makes one write
        self,
        raw: Document,
        before: ProjectRecord,
        after: ProjectRecord,
        *,
        fence: Mapping[str, Any] | None = None,
        quiet: bool = False,
        more: Mapping[str, Any] | None = None,
        audit: AuditEvent | None = None,
    ) -> bool:
        """Write ``after`` and the fields ``more`` over ``raw``, which was read as ``before``.

        Returns:
            False, with nothing written, when the document was written since it was read, or does
            not match ``fence``.
        """
        update = difference(raw, before, after)
        changed = update.get("$set", {}) | {"revision": revision_of(raw) + 1} | (more or {})
        news = None if quiet else self._own.name()
        if news is not None:
            changed["news"] = news
        unread = {"_id": raw["_id"], "revision": raw.get("revision"), **(fence or {})}

        async def write(session: AsyncClientSession | None) -> bool:
            update["$set"] = changed
            done = await self._projects.update_one(unread, update, session=session)
            return done.matched_count > 0

        async def work() -> bool:
            written = await self._audit.recorded(audit, write)
            if written and news is not None:
                await self._tell(news, after.project.id, after.project.ref)
            return written

        return await self._shielded(work())

    async def _tell(self, news: str, record_id: str, ref: ProjectRef | None) -> None:
        """Tell of a write, to one project or (``"", None``) to many, to all processes."""
        self._own.tell(news, record_id, ref)
        await self._follower.note(news, record_id, ref)

    async def _shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what ``work`` returns; a caller that is cancelled leaves it to its end, so that
        what was written is told.
        """
        task = asyncio.create_task(work, name="store-write")
        self._begun.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._begun.discard(task)
        if not task.cancelled():
            # The caller has it too, unless it is gone; then nobody is left to be told.
            task.exception()


def of_owner(ref: ProjectRef) -> Document:
    """Return the query for one project of one user."""
    return {"user_id": ref.user_id, "project_id": ref.project_id}


def of_environment(ref: ProjectRef) -> Document:
    """Return the query for the project whose environment a cluster knows by ``ref``."""
    # Documents of before, and those of other programs, do not say it: it is their owner's.
    of_others = {"environment_user": ref.user_id, "project_id": ref.project_id}
    return {"$or": [of_others, {**of_owner(ref), "environment_user": {"$in": [None, ref.user_id]}}]}


_KEPT = timedelta(days=30)


class ActivationLog:
    """The older events of all projects, in a collection; the server removes them after a month.

    An outcome and its events must become visible together, and a server without a replica set has
    no transactions. So the events of the newest outcome stand in the project's own document
    (``tail``), written in the same atomic step; before the next ones take their place they are
    moved here. Whoever moves them writes the same, so it may be cut off and done again by anybody.
    """

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def move(self, raw: Mapping[str, Any]) -> None:
        """Move the tail of a project to the collection, and trim what is more than is kept."""
        with reading_log(raw["_id"]):
            tail = tail_of(raw)
            seqs = [to_event(fields).seq for fields in tail]
        if not tail:
            return
        # The age of events is measured by this machine's clock, like the server's work on it.
        purge_at = datetime.now(UTC) + _KEPT
        await self._collection.bulk_write(
            [
                ReplaceOne(
                    {"record_id": raw["_id"], "seq": seq},
                    {"record_id": raw["_id"], "purge_at": purge_at, **fields},
                    upsert=True,
                )
                for seq, fields in zip(seqs, tail, strict=True)
            ],
            ordered=False,
        )
        oldest = seqs[-1] - LOG_LENGTH
        if oldest > 0:
            trimmed = {"record_id": raw["_id"], "seq": {"$lte": oldest}}
            await repeated(lambda: self._collection.delete_many(trimmed))

    async def read(self, raw: Mapping[str, Any], after: int, limit: int) -> Sequence[Event]:
        """Return the events with ``seq > after``, oldest first, ``limit`` at most, of the project
        whose document, with its tail, is ``raw``.

        Raises:
            RecordUnreadableError: something else has written events there.
        """
        with reading_log(raw["_id"]):
            after = max(after, raw.get("last_seq", 0) - LOG_LENGTH)
            tail = [event for event in map(to_event, tail_of(raw)) if event.seq > after]
            first = tail[0].seq if tail else raw.get("last_seq", 0) + 1
        older: list[Document] = []
        if after + 1 < first and limit > 0:
            older = await self._collection.find(
                {"record_id": raw["_id"], "seq": {"$gt": after, "$lt": first}},
                sort=[("seq", 1)],
                limit=min(limit, LOG_LENGTH),
                batch_size=LOG_LENGTH,
            ).to_list()
        with reading_log(raw["_id"]):
            return [*map(to_event, older), *tail][:limit]

    async def remove(self, record_id: Any) -> None:
        """Remove all events of a record."""
        await repeated(lambda: self._collection.delete_many({"record_id": record_id}))
