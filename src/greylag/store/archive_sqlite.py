"""A SQLite store as a whole, to be moved or checked."""

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from greylag.common.sqlite import SqlThread, transaction
from greylag.domain.errors import ConfigError, StoreUnavailableError
from greylag.domain.project import ProjectRef
from greylag.ports import Bundle, Flaw, Held, Sheet, StoreUnreadableError
from greylag.store import archive_tables
from greylag.store.records import from_millis, millis
from greylag.store.sqlite import schema
from greylag.store.sqlite.tables import SELECT

_DATA_FOLDER = "Give the path of greylag.db, or of the data folder that holds it."


@dataclass(frozen=True, slots=True)
class Glance:
    """What a file says of itself: how many steps its tables have had, and its unfinished copy."""

    version: int
    copied_from: str | None


def is_there(path: Path) -> bool:
    """Tell whether there is a file that we can look at."""
    try:
        return path.is_file()
    except OSError:
        # Its folder is closed to us: whoever opens it is told so.
        return False


def glance(path: Path) -> Glance:
    """Look at the file at ``path`` without changing it. Blocks.

    Raises ``ConfigError`` when there is none, ``StoreUnavailableError`` when it is no database.
    """
    if not is_there(path):
        raise ConfigError(f"There is no database at {path}.", hint=_DATA_FOLDER)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as sql:
            return Glance(
                sql.execute("PRAGMA user_version").fetchone()[0], archive_tables.mark(sql)
            )
    except sqlite3.Error as error:
        raise StoreUnavailableError(f"The database {path} cannot be read: {error}.") from error


class SqliteArchive:
    """Implements ``greylag.ports.Archive``; ``await SqliteArchive.open(...)`` makes one."""

    kind = "sqlite"

    def __init__(self, thread: SqlThread, path: Path) -> None:
        self._thread = thread
        self.place = f"sqlite://{path}"

    @classmethod
    async def open(cls, path: Path, *, write: bool) -> "SqliteArchive":
        """Open the file at ``path`` (absolute); to ``write``, it is made if it is missing.

        Raises ``StoreUnavailableError``, or ``ConfigError`` when it is not a file of this Greylag.
        """
        if not write:
            _check_version(path, (await asyncio.to_thread(glance, path)).version)
        thread = SqlThread(path, "store-archive", schema.translated, read_only=not write)
        archive = cls(thread, path)
        try:
            await thread.open()
            if write:
                await thread.run(schema.migrate)
        except BaseException:
            await archive.close()
            raise
        return archive

    async def sheet(self, after: str | None, limit: int) -> Sheet:
        """Return the records that follow ``after``; see the port."""

        def work(sql: sqlite3.Connection) -> Sheet:
            with transaction(sql, "BEGIN"):
                return archive_tables.sheet(sql, after, limit)

        return await self._thread.run(work)

    async def find(self, record_ids: Sequence[str]) -> Mapping[str, Bundle]:
        """Return those of these records that are there; see the port."""

        def work(sql: sqlite3.Connection) -> list[Bundle | Flaw]:
            marks = ", ".join("?" * len(record_ids))
            with transaction(sql, "BEGIN"):
                found = sql.execute(f"{SELECT} WHERE id IN ({marks})", tuple(record_ids))
                return [archive_tables.read(sql, row) for row in found.fetchall()]

        found: dict[str, Bundle] = {}
        for one in await self._thread.run(work):
            if isinstance(one, Flaw):
                raise StoreUnreadableError(one.sentence)
            found[one.project.id] = one
        return found

    async def count(self) -> int:
        """Return how many records there are; see the port."""
        return await self._thread.run(archive_tables.count)

    async def held(self, now: datetime) -> Held | None:
        """Return a lease that has not run out; see the port."""

        def work(sql: sqlite3.Connection) -> Held | None:
            row = sql.execute(
                "SELECT user_id, project_id, lease_worker, lease_until FROM projects "
                "WHERE lease_until > ? ORDER BY lease_until DESC LIMIT 1",
                (millis(now),),
            ).fetchone()
            if row is None:
                return None
            ref = ProjectRef(row["user_id"], row["project_id"])
            return Held(ref, row["lease_worker"], from_millis(row["lease_until"]))

        return await self._thread.run(work)

    async def unfinished(self) -> str | None:
        """Return where an unfinished copy is from; see the port."""
        return await self._thread.run(archive_tables.mark)

    async def begin(self, source: str) -> bool:
        """Mark the store as being filled; see the port."""

        def work(sql: sqlite3.Connection) -> bool:
            with transaction(sql):
                return archive_tables.begin(sql, source)

        return await self._thread.run(work)

    async def write(self, bundles: Sequence[Bundle]) -> None:
        """Put these records there, in one transaction; see the port."""

        def work(sql: sqlite3.Connection) -> None:
            with transaction(sql):
                for bundle in bundles:
                    archive_tables.put(sql, bundle)

        await self._thread.run(work)

    async def finish(self) -> None:
        """Take the mark away; see the port."""

        def work(sql: sqlite3.Connection) -> None:
            sql.execute("DROP TABLE IF EXISTS copying")

        await self._thread.run(work)

    async def flaws(self) -> Sequence[Flaw]:
        """Return what is wrong with the file as such; see the port."""
        return await self._thread.run(archive_tables.flaws)

    async def close(self) -> None:
        """Close the file; see the port."""
        await self._thread.close()


def _check_version(path: Path, version: int) -> None:
    newest = len(schema.MIGRATIONS)
    if version == 0:
        raise ConfigError(f"{path} holds no records of Greylag.", hint=_DATA_FOLDER)
    if version < newest:
        raise ConfigError(
            f"{path} was written by an older Greylag than this one.",
            hint="Start this Greylag on it once, which renews its tables, and stop it again.",
        )
    if version > newest:
        raise ConfigError(
            f"{path} was written by a newer Greylag than this one.", hint="Use the newer Greylag."
        )
