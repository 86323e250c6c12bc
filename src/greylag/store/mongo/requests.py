"""The requests' half of the MongoDB store: projects as they are made, read and wanted, people, a
collection for each kind, and the audit trail.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import structlog
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError

from greylag.domain.audit import AuditBounds, AuditEntry, AuditEvent
from greylag.domain.errors import ProjectExistsError
from greylag.domain.project import Event, Project, ProjectRecord, ProjectRef
from greylag.ports import (
    LONGEST_SIGNED,
    TRIMMED_AT_ONCE,
    AnyKept,
    AuditFilter,
    Created,
    IdempotencyKey,
    Kept,
    NumberedEntry,
    PageQuery,
    ProjectPage,
    RecordUnreadableError,
    StoredKey,
)
from greylag.store import records
from greylag.store.mongo.connection import Collection, WriteAttempts
from greylag.store.mongo.documents import (
    WITHOUT_TAIL,
    Document,
    document_of,
    from_document,
    id_of,
    key_document,
    to_document,
)
from greylag.store.mongo.indexes import PEOPLE
from greylag.store.mongo.writes import StoreParts, of_environment, of_owner
from greylag.store.people import NAMES, from_body, readable
from greylag.store.records import KEY_LIFETIME, millis

_AT_ONCE = 1000
_LARGEST = 2**31 - 2
_NEWEST_FIRST = [("created_at", -1), ("_id", -1)]

_log = structlog.get_logger(__name__)


class RequestMethods(StoreParts):
    """The methods of ``greylag.ports.ProjectStore`` that serve requests."""

    async def create(
        self,
        project: Project,
        key: IdempotencyKey | None = None,
        *,
        audit: AuditEvent | None = None,
    ) -> Created:
        """Insert a project; see the port. Once a project is forgotten, so is its key."""

        async def work() -> Created:
            attempts = WriteAttempts(self._seconds)
            if key is None:
                return await self._insert(records.new_record(project), attempts, audit)
            return await self._create_once(project, key, attempts, audit)

        with self._asking():
            return await self._shielded(work())

    async def created(self, owner: str, key: IdempotencyKey, now: datetime) -> Project | None:
        """Return what a key has created; see the port."""
        with self._asking():
            known = await self._keys.find_one({"_id": {"user_id": owner, "key": key.key}})
            if known is None or known["expires_at"] <= now:
                return None
            records.check_same(key, known["fingerprint"])
            return await self._made(known["record_id"], owner)

    async def get(self, owner: str, project_id: str) -> Project:
        """Return the project as it is now; see the port."""
        ref = ProjectRef(owner, project_id)
        with self._asking():
            return _there(await self._find(of_owner(ref)), ref).project

    async def page(self, owner: str, query: PageQuery) -> ProjectPage:
        """Return one page; see the port. What cannot be read is left out, and the log tells."""
        records.check_limit(query.limit)
        limit = min(query.limit, _LARGEST)
        matching = _matching(owner, query)
        passed_over = 0
        with self._asking():
            while True:
                found = await self._projects.find(
                    matching,
                    WITHOUT_TAIL,
                    sort=_NEWEST_FIRST,
                    skip=passed_over,
                    limit=limit + 1,
                    # All at once: the driver cannot try the second half of an answer again.
                    batch_size=min(limit + 1, _AT_ONCE),
                ).to_list()
                shown = list(_readable(found[:limit]))
                if shown or len(found) <= limit:
                    break
                passed_over += limit
        more = len(found) > limit
        return ProjectPage(shown, records.encode(records.position(shown[-1])) if more else None)

    async def has_projects(self, owner: str) -> bool:
        """Tell whether this owner has a project; see the port."""
        with self._asking():
            return await self._projects.find_one({"user_id": owner}, {"_id": True}) is not None

    async def change(
        self,
        ref: ProjectRef,
        rule: Callable[[ProjectRecord], ProjectRecord],
        audit: AuditEvent | None,
    ) -> Project:
        """Change a record; see the port."""
        with self._asking():
            changed = await self._change(
                of_owner(ref), lambda before: rule(_there(before, ref)), audit=audit
            )
        if changed.ref != ref:
            # What is written tells of the project as it is now: who had it looks, too.
            await self._tell(self._own.name(), "", None)
        return changed

    async def of_environment(self, ref: ProjectRef) -> Project:
        """Return the project that has this environment; see the port."""
        with self._asking():
            return _there(await self._find(of_environment(ref)), ref).project

    async def events(self, owner: str, project_id: str, after: int, limit: int) -> Sequence[Event]:
        """Return a part of the log; see the port."""
        ref = ProjectRef(owner, project_id)
        with self._asking():
            raw = await self._projects.find_one(of_owner(ref), {"last_seq": True, "tail": True})
            if raw is None:
                raise records.not_found(ref)
            return await self._log.read(raw, after, limit)

    async def revoke(
        self, name: str, until: datetime, now: datetime, *, audit: AuditEvent | None = None
    ) -> bool:
        """Keep the name of what must not count any more; see the port. The server forgets it."""
        del now

        async def write(session: AsyncClientSession | None) -> bool:
            await self._revocations.insert_one({"_id": name, "until": until}, session=session)
            return True

        with self._asking():
            try:
                return await self._audit.recorded(audit, write)
            except DuplicateKeyError:
                return False

    async def is_revoked(self, name: str, signed_at: datetime | None = None) -> bool:
        """Tell whether a name is kept; see the port."""
        these: list[Document] = [{"_id": name}]
        if signed_at is not None:
            runs_out = signed_at + LONGEST_SIGNED
            these.append({"_id": records.IMPORTED, "until": {"$gt": runs_out}})
        with self._asking():
            return await self._revocations.find_one({"$or": these}) is not None

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

    async def trim_audit(self, before: datetime, limit: int = TRIMMED_AT_ONCE) -> int:
        """Remove the oldest entries; see the port."""
        with self._asking():
            return await self._audit.trim(before, limit)

    def on_audit(self, told: Callable[[AuditEntry], None]) -> None:
        """Tell of each entry; see the port."""
        self._audit.told.append(told)

    def _people(self, kind: type) -> Collection:
        return self._database[PEOPLE[NAMES[kind]]]

    async def _create_once(
        self,
        project: Project,
        key: IdempotencyKey,
        attempts: WriteAttempts,
        audit: AuditEvent | None,
    ) -> Created:
        """Create the project that ``key`` stands for, unless it is there.

        A key is written before its project, with the project's id in it. Whoever comes with the
        same key then finds either the project, or that its creation was cut off, or is still on its
        way; it creates the project under that id, so that there can be only one.
        """
        record = records.new_record(project)
        taken = await self._take_key(project, key, attempts)
        if taken != id_of(project.id):
            earlier = await self._made(taken, project.user_id)
            if earlier is not None:
                return Created(earlier, new=False)
            record = _finishing(record, str(taken))
        try:
            return await self._insert(record, attempts, audit)
        except ProjectExistsError:
            place = {"user_id": project.user_id, "key": key.key}
            await self._keys.delete_one({"_id": place, "record_id": taken})
            raise

    async def _take_key(
        self, project: Project, key: IdempotencyKey, attempts: WriteAttempts
    ) -> Any:
        """Return the ``_id`` that ``key`` stands for: ``project``'s if it is new or has expired.

        Raises:
            IdempotencyConflictError: it came with another fingerprint.
        """
        expires = project.created_at + KEY_LIFETIME
        wanted = key_document(
            project.id, StoredKey(project.user_id, key.key, key.fingerprint, expires)
        )
        while True:
            try:
                await self._keys.insert_one(wanted)
            except DuplicateKeyError:
                known = await self._keys.find_one({"_id": wanted["_id"]})
            else:
                return wanted["record_id"]
            if known is not None and known["expires_at"] > project.created_at:
                records.check_same(key, known["fingerprint"])
                return known["record_id"]
            if known is not None:
                same = {"_id": known["_id"], "record_id": known["record_id"]}
                if (await self._keys.replace_one(same, wanted)).matched_count:
                    return wanted["record_id"]
            await attempts.pause()

    async def _made(self, record_id: Any, owner: str) -> Project | None:
        found = await self._find({"_id": record_id})
        return None if found is None else records.check_still_theirs(found.project, owner)

    async def _insert(
        self, record: ProjectRecord, attempts: WriteAttempts, audit: AuditEvent | None
    ) -> Created:
        news = self._own.name()
        document = to_document(record) | {"revision": 1, "news": news}
        ref = record.project.ref

        async def write(session: AsyncClientSession | None) -> bool:
            await self._projects.insert_one(document, session=session)
            return True

        while True:
            try:
                await self._audit.recorded(audit, write)
            except DuplicateKeyError:
                there = await self._find({"_id": document["_id"]}) or await self._find(
                    of_owner(ref)
                )
            else:
                await self._tell(news, record.project.id, ref)
                return Created(record.project, new=True)
            if there is not None and there.project.id == record.project.id:
                # Somebody with the same key was faster.
                return Created(there.project, new=False)
            if there is not None:
                raise records.exists(ref)
            if await self._find(of_environment(record.project.made_for)) is not None:
                raise records.environment_taken(record.project.made_for)
            await attempts.pause()

    async def _find(self, query: Document) -> ProjectRecord | None:
        raw = await self._projects.find_one(query, WITHOUT_TAIL)
        return None if raw is None else from_document(raw)


def _finishing(record: ProjectRecord, record_id: str) -> ProjectRecord:
    """Return the record under the id that somebody with the same key chose before.

    A project of that id may have been there and gone, with claims that somebody still believes in,
    so its claims begin where no count of them comes.
    """
    project = replace(record.project, id=record_id)
    return replace(record, project=project, claims=millis(project.created_at))


def _there(record: ProjectRecord | None, ref: ProjectRef) -> ProjectRecord:
    if record is None:
        raise records.not_found(ref)
    return record


def _matching(owner: str, query: PageQuery) -> Document:
    matching: Document = {"user_id": owner}
    if query.status is not None:
        matching["status"] = query.status.value
    if query.cursor is not None:
        place = records.decode(query.cursor)
        created, last = records.from_millis(place.created), id_of(place.record_id)
        # The first condition follows from the others, and lets the index begin in the right place.
        matching["created_at"] = {"$lte": created}
        matching["$or"] = [
            {"created_at": {"$lt": created}},
            {"created_at": created, "_id": {"$lt": last}},
        ]
        if not isinstance(last, str):
            # Ids of others, which are text, come after all of ours, and compare with none.
            matching["$or"].append({"created_at": created, "_id": {"$type": "string"}})
    return matching


def _readable(found: Sequence[Document]) -> Iterator[Project]:
    for raw in found:
        try:
            yield from_document(raw).project
        except RecordUnreadableError as error:
            _log.warning("record_passed_over", error=str(error))
