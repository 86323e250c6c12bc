"""A SQLite store as a whole, for export, import and ``greylag doctor``."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from greylag.common.sqlite import SqlThread, placeholder, transaction, version_of
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
    StoreMissingError,
)
from greylag.store.people import EXPORTED, from_stored, to_stored
from greylag.store.records import MALFORMED, from_millis, millis, unreadable
from greylag.store.sqlite import audit_trail, queries, schema
from greylag.store.sqlite import people as rows_of_people

_AT_ONCE = 50
_DAMAGES_NAMED = 20
_NOTHING_HAS_RUN_OUT = datetime.fromtimestamp(0, UTC)
_EXPORTED = f"FROM people WHERE kind IN ({', '.join('?' * len(EXPORTED))})"


def is_there(path: Path) -> bool:
    """Tell whether there is a file that we can look at."""
    try:
        return path.is_file()
    except OSError:
        # Its folder is closed to us: whoever opens it is told so.
        return False


class SqliteArchive:
    """Implements ``greylag.ports.Archive``; ``await SqliteArchive.open(path)`` makes one."""

    keeps_extra = False

    def __init__(self, thread: SqlThread, path: Path) -> None:
        self._thread = thread
        self.place = f"sqlite://{path}"

    @classmethod
    async def open(cls, path: Path, *, write: bool) -> "SqliteArchive":
        """Open the file; with ``write`` one that is missing is made, and an older one renewed.

        Raises:
            StoreMissingError: without ``write``, there is no file.
            ConfigError: without ``write``, it is none of this Greylag's.
            StoreUnavailableError: it cannot be used.
        """
        if not write:
            await asyncio.to_thread(_check_file, path)
        thread = SqlThread(
            path, "store-archive", schema.translated, read_only=not write, strict_text=False
        )
        try:
            await thread.open()
            if write:
                await thread.run(schema.migrate)
        except BaseException:
            await thread.close()
            raise
        return cls(thread, path)

    async def read(self) -> AsyncIterator[Sequence[StoredProject | Finding]]:
        """Yield all projects; see the port."""
        after = ""

        def work(sql: sqlite3.Connection) -> tuple[str, list[StoredProject | Finding]]:
            with transaction(sql, "BEGIN"):
                rows = sql.execute(
                    f"{queries.SELECT} WHERE id > {placeholder(after)} ORDER BY id LIMIT ?",
                    (after, _AT_ONCE),
                ).fetchall()
                return rows[-1]["id"] if rows else "", [_stored(sql, row) for row in rows]

        while True:
            after, batch = await self._thread.run(work)
            if not batch:
                return
            yield batch

    async def count(self) -> int:
        """Return how many records there are; see the port."""
        return await self._thread.run(_count)

    async def people(self) -> AsyncIterator[Sequence[StoredPerson | Finding]]:
        """Yield users, tokens and members; see the port."""
        after = ("", "")

        def work(sql: sqlite3.Connection) -> list[sqlite3.Row]:
            rest = f"(kind, key) > (?, {placeholder(after[1])})"
            return sql.execute(
                f"SELECT kind, key, body {_EXPORTED} AND {rest} ORDER BY kind, key LIMIT ?",
                (*EXPORTED, *after, _AT_ONCE),
            ).fetchall()

        while batch := await self._thread.run(work):
            after = batch[-1]["kind"], batch[-1]["key"]
            yield [to_stored(row["kind"], row["key"], row["body"]) for row in batch]

    async def count_people(self) -> int:
        """Return how many of them there are; see the port."""

        def work(sql: sqlite3.Connection) -> int:
            found: int = sql.execute(f"SELECT count(*) {_EXPORTED}", (*EXPORTED,)).fetchone()[0]
            return found

        return await self._thread.run(work)

    async def at_work(self, now: datetime) -> ProjectRef | None:
        """Return a project under a lease; see the port."""

        def work(sql: sqlite3.Connection) -> ProjectRef | None:
            row = sql.execute(
                "SELECT user_id, project_id FROM projects WHERE lease_until > ? LIMIT 1",
                (millis(now),),
            ).fetchone()
            return None if row is None else ProjectRef(*row)

        return await self._thread.run(work)

    async def instance(self) -> str | None:
        """Return this Greylag's id; see the port."""
        return await self._thread.run(queries.instance)

    async def incomplete(self) -> bool:
        """Tell whether an earlier Greylag's copy was cut off; an import is one transaction."""
        return await self._thread.run(schema.is_incomplete)

    async def audit_bounds(self) -> AuditBounds:
        """Return where the audit trail begins and ends; see the port."""
        return await self._thread.run(audit_trail.bounds)

    async def audit_entries(
        self, asked: AuditFilter, limit: int, *, before: int | None = None, after: int = 0
    ) -> Sequence[NumberedEntry]:
        """Return entries of the audit trail; see the port."""
        return await self._thread.run(
            lambda sql: audit_trail.read(sql, asked, limit, before, after)
        )

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Hold the file's one place to write; see the port. What was not committed is undone."""
        await self._thread.run(lambda sql: sql.execute("BEGIN IMMEDIATE"))
        try:
            yield
        finally:
            await self._thread.run(lambda sql: sql.rollback())

    @asynccontextmanager
    async def replacing(
        self, origin: Origin = NO_EXPORT, at: datetime | None = None
    ) -> AsyncIterator[Fill]:
        """Put others in place of all, in one transaction; see the port."""

        async def fill(records: Sequence[Stored | AuditEvent]) -> None:
            await self._thread.run(lambda sql: _put(sql, records))

        begun = await self._thread.run(lambda sql: sql.in_transaction)
        async with nullcontext() if begun else self.alone():
            await self._thread.run(lambda sql: _clear(sql, origin))
            if at is not None:
                await self._thread.run(lambda sql: queries.revoke_signed_before(sql, at))
            yield fill
            await self._thread.run(lambda sql: sql.execute("COMMIT"))

    async def findings(self) -> Sequence[Finding]:
        """Return what SQLite finds wrong with the file; see the port."""

        def work(sql: sqlite3.Connection) -> list[str]:
            return [line for (line,) in sql.execute(f"PRAGMA quick_check({_DAMAGES_NAMED})")]

        return [
            Finding(
                "file",
                f"The database file is damaged: {line}.",
                "Restore a backup, or save what can be read with `greylag export`.",
            )
            for line in await self._thread.run(work)
            if line != "ok"
        ]

    async def close(self) -> None:
        """Close the file; see the port."""
        await self._thread.close()


def _check_file(path: Path) -> None:
    """Look at a file without changing it; raise unless it is one of this Greylag's."""
    if not is_there(path):
        raise StoreMissingError(
            f"There is no database at {path}.", hint="Give the data folder that holds greylag.db."
        )
    with (
        schema.translated(),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as sql,
    ):
        version, newest = version_of(sql), len(schema.MIGRATIONS)
    if version == 0:
        raise ConfigError(
            f"{path} holds no records of Greylag.", hint="Give the data folder of a Greylag."
        )
    if version < newest:
        raise ConfigError(
            f"{path} was written by an older Greylag than this one.",
            hint="Start this Greylag on it once, which renews its tables.",
        )
    if version > newest:
        raise ConfigError(
            f"{path} was written by a newer Greylag than this one.", hint="Use the newer Greylag."
        )


def _count(sql: sqlite3.Connection) -> int:
    found: int = sql.execute("SELECT count(*) FROM projects").fetchone()[0]
    return found


def _stored(sql: sqlite3.Connection, row: sqlite3.Row) -> StoredProject | Finding:
    of_record = (row["id"],)
    log = "SELECT seq, body FROM events WHERE record_id = ? ORDER BY seq"
    keys = "SELECT * FROM idempotency_keys WHERE record_id = ? ORDER BY key"
    try:
        record = queries.from_row(row)
        stored = StoredProject(
            project=record.project,
            claims=record.claims,
            events=[queries.to_event(event) for event in sql.execute(log, of_record)],
            keys=[
                StoredKey(
                    key["user_id"], key["key"], key["fingerprint"], from_millis(key["expires_at"])
                )
                for key in sql.execute(keys, of_record)
            ],
        )
        check_types(stored)
    except (*MALFORMED, RecordUnreadableError) as error:
        return unreadable(row["id"], row["user_id"], row["project_id"], error)
    return stored


def _clear(sql: sqlite3.Connection, origin: Origin) -> None:
    tables_of_people = ("people", "people_labels") if origin.people else ()
    for table in ("projects", "events", "idempotency_keys", "transcripts", *tables_of_people):
        sql.execute(f"DELETE FROM {table}")  # noqa: S608 - the names above
    if origin.instance is not None:
        sql.execute("UPDATE instance SET id = ?", (origin.instance,))
    if origin.trail is not None:
        audit_trail.clear(sql, origin.trail)
    sql.execute("DROP TABLE IF EXISTS copying")
    # Whoever listens looks at all anew.
    sql.execute("INSERT INTO changes (source, user_id, project_id) VALUES ('import', NULL, NULL)")


def _put(sql: sqlite3.Connection, records: Sequence[Stored | AuditEvent]) -> None:
    for stored in records:
        match stored:
            case StoredProject():
                _put_project(sql, stored)
            case StoredPerson():
                rows_of_people.put(sql, from_stored(stored), _NOTHING_HAS_RUN_OUT)
            case StoredEntry():
                audit_trail.put(sql, stored.number, stored.body)
            case AuditEvent():
                audit_trail.append(sql, stored)


def _put_project(sql: sqlite3.Connection, stored: StoredProject) -> None:
    project = stored.project
    twins = sql.execute(
        "SELECT id FROM projects WHERE id = :id OR project_id = :project_id "
        "AND (user_id = :user_id OR coalesce(environment_user, user_id) = :made_for)",
        {**queries.to_row(ProjectRecord(project)), "made_for": project.made_for.user_id},
    ).fetchall()
    for (twin,) in twins:
        queries.delete(sql, twin)
    sql.execute(queries.INSERT, queries.to_row(ProjectRecord(project, stored.claims)))
    queries.add_events(sql, project.id, stored.events)
    sql.executemany(
        "INSERT OR REPLACE INTO idempotency_keys "
        "(user_id, key, fingerprint, record_id, expires_at) VALUES (?, ?, ?, ?, ?)",
        (
            (key.user_id, key.key, key.fingerprint, project.id, millis(key.expires_at))
            for key in stored.keys
        ),
    )
