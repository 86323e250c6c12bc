"""The store in one SQLite file: the embedded default.

Processes that share the file hear of each other's writes so: each write leaves a row in
``changes`` with the project it was about. ``PRAGMA data_version`` tells, for a few microseconds,
whether anybody has written at all; only then are the rows read.
"""

import asyncio
import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import structlog

from greylag.common.concurrent import cancel_all
from greylag.common.sqlite import SqlThread, transaction
from greylag.domain.audit import AuditBounds, AuditEntry, AuditEvent
from greylag.domain.errors import StoreUnavailableError
from greylag.domain.project import Event, Project, ProjectRecord, ProjectRef, Status
from greylag.ports import (
    TRIMMED_AT_ONCE,
    AnyKept,
    AuditFilter,
    Claim,
    Created,
    Duty,
    IdempotencyKey,
    Kept,
    NumberedEntry,
    Outcome,
    PageQuery,
    ProjectPage,
    ProjectStore,
    Subscription,
)
from greylag.store import records
from greylag.store.changes import ChangeHub
from greylag.store.sqlite import audit_trail, people, queries, schema
from greylag.store.sqlite.schema import translated

_KEPT = 10_000
_SECONDS_AFTER_FAILURE = 1.0

_log = structlog.get_logger(__name__)


def note(sql: sqlite3.Connection, source: str, refs: Iterable[ProjectRef | None]) -> None:
    """Add rows for changed projects (``None``: maybe any), inside the transaction of the change."""
    for ref in refs:
        sql.execute(
            "INSERT INTO changes (source, user_id, project_id) VALUES (?, ?, ?)",
            (source, *((None, None) if ref is None else (ref.user_id, ref.project_id))),
        )
        sql.execute("DELETE FROM changes WHERE n <= last_insert_rowid() - ?", (_KEPT,))


class SqliteFollower:
    """Tells ``hub`` what other processes write, while anybody listens.

    ``source`` is the name under which this process writes; its own rows are passed over, because
    the hub has heard of them already.
    """

    def __init__(self, thread: SqlThread, hub: ChangeHub, source: str, poll_seconds: float) -> None:
        self._thread = thread
        self._hub = hub
        self._source = source
        self._poll_seconds = poll_seconds
        self._version = -1
        self._last = 0
        self._failing = False

    async def start(self) -> None:
        """Take note of where the table ends now: what comes after will be told."""
        self._last = await self._thread.run(_newest)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._hub.wanted.wait()
            await asyncio.sleep(await self._look())

    async def _look(self) -> float:
        """Tell the hub what is new; return how many seconds to wait before the next look."""
        try:
            changed = await self._thread.run(self._read)
        except StoreUnavailableError as error:
            # Listeners look for themselves and meet the error where it can be answered.
            if not self._failing:
                _log.warning("changes_unreadable", error=str(error))
            self._failing = True
            self._hub.signal(None)
            return _SECONDS_AFTER_FAILURE
        self._failing = False
        for ref in changed:
            self._hub.signal(ref)
        return self._poll_seconds

    def _read(self, sql: sqlite3.Connection) -> set[ProjectRef | None]:
        version = sql.execute("PRAGMA data_version").fetchone()[0]
        if version == self._version:
            return set()
        found = sql.execute(
            "SELECT n, source, user_id, project_id FROM changes WHERE n > ? ORDER BY n",
            (self._last,),
        ).fetchall()
        changed: set[ProjectRef | None] = {
            None if row["user_id"] is None else ProjectRef(row["user_id"], row["project_id"])
            for row in found
            if row["source"] != self._source
        }
        # Rows that are gone before they were read may have been about any project.
        if found and found[0]["n"] != self._last + 1:
            changed = {None}
        # The version was read first: a write in between is found again by the next look.
        self._version = version
        self._last = found[-1]["n"] if found else self._last
        return changed


def _newest(sql: sqlite3.Connection) -> int:
    newest: int = sql.execute("SELECT coalesce(max(n), 0) FROM changes").fetchone()[0]
    return newest


T = TypeVar("T")


class Write:
    """A write in progress: its connection, and which projects it changes (``None``: maybe any)."""

    def __init__(self, sql: sqlite3.Connection) -> None:
        self.sql = sql
        self.changed: list[ProjectRef | None] = []
        self.appended: list[AuditEntry] = []

    def append(self, event: AuditEvent) -> AuditEntry:
        """Append an entry to the audit trail."""
        entry = audit_trail.append(self.sql, event)
        self.appended.append(entry)
        return entry

    def keep(self, record: ProjectRecord, before: ProjectRecord | None) -> Project:
        """Write ``record`` if it differs from ``before``, and tell of it; return its project."""
        if before is not None and record.project.ref != before.project.ref:
            queries.hand_over(self.sql, record)
            self.changed += [before.project.ref, record.project.ref]
        elif record is not before:
            queries.update(self.sql, record)
            self.changed.append(record.project.ref)
        return record.project


class SqliteStore(ProjectStore):
    """Implements ``greylag.ports.ProjectStore``; ``await SqliteStore.open(path)`` makes one.

    One thread writes, each call in one transaction; another reads beside it, in snapshots (WAL). A
    third searches the audit trail, which may take long once that has grown.
    Several processes may open the same file: they write one after the other, and hear of each
    other's changes within ``poll_seconds``.
    """

    def __init__(
        self, writer: SqlThread, reader: SqlThread, searcher: SqlThread, poll_seconds: float
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._searcher = searcher
        self._pages = queries.Pages()
        self._hub = ChangeHub()
        self._source = secrets.token_hex(8)
        self._loop = asyncio.get_running_loop()
        self._follower = SqliteFollower(reader, self._hub, self._source, poll_seconds)
        self._following: asyncio.Task[None] | None = None
        self._audit_told: list[Callable[[AuditEntry], None]] = []

    @classmethod
    async def open(cls, path: Path, *, poll_seconds: float = 0.1) -> "SqliteStore":
        """Open the file at ``path``, made if it is missing and brought to the newest tables.

        Raises:
            StoreUnavailableError: it cannot be used.
            StoreIncompleteError: an earlier Greylag's copy into it was cut off.
            ConfigError: the file is not for this Greylag.
        """
        writer = SqlThread(path, "store-writer", translated, strict_text=False)
        reader, searcher = (
            SqlThread(path, name, translated, read_only=True, strict_text=False)
            for name in ("store-reader", "store-searcher")
        )
        store = cls(writer, reader, searcher, poll_seconds)
        try:
            await writer.open()
            await writer.run(schema.migrate)
            await writer.run(schema.check_complete)
            await reader.open()
            await searcher.open()
            await store._follow()
        except BaseException:
            await store.close()
            raise
        return store

    async def create(
        self,
        project: Project,
        key: IdempotencyKey | None = None,
        *,
        audit: AuditEvent | None = None,
    ) -> Created:
        """Insert a project; see the port. Once a project is forgotten, so is its key."""

        def work(write: Write) -> Created:
            if key is not None:
                earlier = queries.created_before(
                    write.sql, project.user_id, key, project.created_at
                )
                if earlier is not None:
                    return Created(earlier, new=False)
            queries.insert(write.sql, project, key)
            write.changed.append(project.ref)
            return Created(queries.find(write.sql, project.ref).project, new=True)

        return await self._write(work, audit)

    async def created(self, owner: str, key: IdempotencyKey, now: datetime) -> Project | None:
        """Return what a key has created; see the port."""
        return await self._read(lambda sql: queries.created_before(sql, owner, key, now))

    async def get(self, owner: str, project_id: str) -> Project:
        """Return the project as it is now; see the port."""
        ref = ProjectRef(owner, project_id)
        return await self._read(lambda sql: queries.find(sql, ref).project)

    async def page(self, owner: str, query: PageQuery) -> ProjectPage:
        """Return one page; see the port."""
        return await self._read(lambda sql: self._pages.get(sql, owner, query))

    async def has_projects(self, owner: str) -> bool:
        """Tell whether this owner has a project; see the port."""
        return await self._read(lambda sql: queries.has_projects(sql, owner))

    async def change(
        self,
        ref: ProjectRef,
        rule: Callable[[ProjectRecord], ProjectRecord],
        audit: AuditEvent | None,
    ) -> Project:
        """Change a record; see the port."""

        def work(write: Write) -> Project:
            before = queries.find(write.sql, ref)
            return write.keep(rule(before), before)

        return await self._write(work, audit)

    async def of_environment(self, ref: ProjectRef) -> Project:
        """Return the project that has this environment; see the port."""
        found = await self._read(lambda sql: queries.of_environment(sql, ref))
        if found is None:
            raise records.not_found(ref)
        return found.project

    async def events(self, owner: str, project_id: str, after: int, limit: int) -> Sequence[Event]:
        """Return a part of the log; see the port."""
        ref = ProjectRef(owner, project_id)
        return await self._read(lambda sql: queries.events(sql, ref, after, limit))

    async def claim_due(self, worker: str, now: datetime, lease_seconds: float) -> Claim | None:
        """Claim the project that is next; see the port."""

        def work(write: Write) -> Claim | None:
            record = queries.claim(write.sql, worker, now, lease_seconds)
            return None if record is None else Claim(record.project)

        return await self._write(work)

    async def next_due(self) -> datetime | None:
        """Return when the next claim can succeed; see the port."""
        return await self._read(queries.next_due)

    async def count_by_status(self) -> Mapping[Status, int]:
        """Return how many projects there are in each status; see the port."""
        return await self._read(queries.count_by_status)

    async def renew(
        self, claim: Claim, now: datetime, lease_seconds: float, *, above: int = 0
    ) -> Claim:
        """Extend a lease; see the port."""

        def work(write: Write) -> Claim:
            before = queries.by_id(write.sql, claim.project.id)
            record = records.renewed(before, claim, now, lease_seconds, above)
            queries.update(write.sql, record)
            return Claim(record.project)

        return await self._write(work)

    async def record(
        self, claim: Claim, outcome: Outcome, now: datetime, *, release: bool
    ) -> Project:
        """Write what is; see the port."""

        def work(write: Write) -> Project:
            before = queries.by_id(write.sql, claim.project.id)
            record, new = records.recorded(before, claim, outcome, now, release=release)
            queries.add_events(write.sql, claim.project.id, new)
            return write.keep(record, before)

        return await self._write(work)

    async def forget(self, claim: Claim) -> None:
        """Remove a record and its log; see the port."""

        def work(write: Write) -> None:
            records.held(queries.by_id(write.sql, claim.project.id), claim)
            queries.delete(write.sql, claim.project.id)
            people.forget_project(write.sql, claim.project)
            write.changed.append(claim.project.ref)

        await self._write(work)

    async def transcript(self, owner: str, project_id: str, part: str) -> bytes | None:
        """Return a part of what was said; see the port."""
        ref = ProjectRef(owner, project_id)
        return await self._read(lambda sql: queries.transcript(sql, ref, part))

    async def keep_transcript(
        self, claim: Claim, parts: Mapping[str, bytes], *, only: Collection[str] | None = None
    ) -> None:
        """Keep parts of what was said; see the port."""

        def work(write: Write) -> None:
            records.held(queries.by_id(write.sql, claim.project.id), claim)
            queries.keep_transcript(write.sql, claim.project.id, parts, only)

        await self._write(work)

    async def poke(self, ref: ProjectRef, now: datetime) -> None:
        """Make one project due; see the port."""

        def work(write: Write) -> None:
            queries.poke(write.sql, ref, now)
            if (poked := queries.name_of_environment(write.sql, ref)) is not None:
                write.changed.append(poked)

        await self._write(work)

    async def poke_unsettled(self, now: datetime) -> int:
        """Make due all that may need work; see the port."""

        def work(write: Write) -> int:
            count = queries.poke_unsettled(write.sql, now)
            if count:
                write.changed.append(None)
            return count

        return await self._write(work)

    async def instance(self) -> str:
        """Return this Greylag's id; see the port."""
        return await self._read(queries.instance)

    async def take_duty(
        self, name: str, worker: str, *, since: datetime, now: datetime, seconds: float
    ) -> Duty:
        """Take a duty on; see the port."""
        return await self._write(
            lambda write: queries.take_duty(write.sql, name, worker, since, now, seconds)
        )

    async def finish_duty(self, name: str, worker: str, now: datetime) -> None:
        """Say that a duty is done; see the port."""
        await self._write(lambda write: queries.finish_duty(write.sql, name, worker, now))

    async def revoke(
        self, name: str, until: datetime, now: datetime, *, audit: AuditEvent | None = None
    ) -> bool:
        """Keep the name of what must not count any more; see the port."""
        return await self._write(lambda write: queries.revoke(write.sql, name, until, now), audit)

    async def is_revoked(self, name: str, signed_at: datetime | None = None) -> bool:
        """Tell whether a name is kept; see the port."""
        return await self._read(lambda sql: queries.is_revoked(sql, name, signed_at))

    async def find(self, kind: type[Kept], key: str) -> Kept | None:
        """Return what is kept under ``key``; see the port."""
        return await self._read(lambda sql: people.find(sql, kind, key))

    async def labelled(
        self, kind: type[Kept], label: str | None = None, *, strict: bool = False
    ) -> Sequence[Kept]:
        """Return all that have this label; see the port."""
        return await self._read(lambda sql: people.labelled(sql, kind, label, strict=strict))

    async def put(self, one: AnyKept, now: datetime, *, audit: AuditEvent | None = None) -> bool:
        """Write one; see the port."""
        return await self._write(lambda write: people.put(write.sql, one, now), audit)

    async def remove(
        self,
        kind: type[Kept],
        key: str,
        *,
        only: Mapping[str, str] | None = None,
        audit: AuditEvent | None = None,
    ) -> bool:
        """Remove one; see the port."""
        return await self._write(lambda write: people.remove(write.sql, kind, key, only), audit)

    async def append_audit(self, event: AuditEvent) -> AuditEntry:
        """Append an entry; see the port."""
        return await self._write(lambda write: write.append(event))

    async def audit_entries(
        self, asked: AuditFilter, limit: int, *, before: int | None = None, after: int = 0
    ) -> Sequence[NumberedEntry]:
        """Return entries; see the port."""
        return await self._searcher.transact(
            lambda sql: audit_trail.read(sql, asked, limit, before, after)
        )

    async def audit_bounds(self) -> AuditBounds:
        """Return where the chain begins and ends; see the port."""
        return await self._read(audit_trail.bounds)

    async def trim_audit(self, before: datetime, limit: int = TRIMMED_AT_ONCE) -> int:
        """Remove the oldest entries; see the port."""
        return await self._write(lambda write: audit_trail.trim(write.sql, before, limit))

    def on_audit(self, told: Callable[[AuditEntry], None]) -> None:
        """Tell of each entry; see the port."""
        self._audit_told.append(told)

    def subscribe(self, to: ProjectRef | str | None = None) -> AbstractContextManager[Subscription]:
        """Hear of changes; see the port."""
        return self._hub.subscribe(to)

    async def ping(self) -> None:
        """Return when the file can be read and written; see the port."""
        await self._write(lambda write: queries.ping(write.sql))
        await self._read(queries.next_due)

    async def close(self) -> None:
        """Finish what was begun and close the file; see the port."""
        task, self._following = self._following, None
        if task is not None:
            await cancel_all([task])
        await self._writer.close()
        await self._reader.close()
        await self._searcher.close()

    async def _follow(self) -> None:
        await self._follower.start()
        self._following = asyncio.create_task(self._follower.run(), name="store-follower")
        self._following.add_done_callback(self._followed)

    def _followed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self._hub.fail(error)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._reader.transact(work)

    async def _write(self, work: Callable[[Write], T], audit: AuditEvent | None = None) -> T:
        """Do ``work`` in one transaction, with the entry of ``audit`` if it changes something."""

        def run(sql: sqlite3.Connection) -> T:
            write = Write(sql)
            with transaction(sql):
                result = work(write)
                if audit is not None and (write.changed or result is True):
                    write.append(audit)
                note(sql, self._source, write.changed)
            # From the thread, because the caller may be gone: a committed change is always told.
            for ref in write.changed:
                self._loop.call_soon_threadsafe(self._hub.signal, ref)
            for entry in write.appended:
                for told in self._audit_told:
                    self._loop.call_soon_threadsafe(told, entry)
            return result

        return await self._writer.run(run)
