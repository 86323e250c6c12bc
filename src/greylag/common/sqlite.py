"""SQLite connections in threads of their own, so that no call of theirs holds up the event loop."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from greylag.domain.errors import ConfigError, InvalidRequestError, StoreUnavailableError

T = TypeVar("T")

_BUSY_POLL_SECONDS = 0.01
_BUSY_SECONDS = 10.0
"""How long a write waits for another process's transaction; ours last milliseconds."""


@contextmanager
def transaction(sql: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """Run the ``with`` block as one transaction: all of it, or, when it raises, nothing."""
    sql.execute(begin)
    try:
        yield
        sql.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors, such as a full disk.
        if sql.in_transaction:
            sql.execute("ROLLBACK")
        raise


class SqlThread:
    """One connection to the file at ``path`` and the one thread that may touch it.

    ``name`` names the thread. Work is done in the order in which it came.
    """

    def __init__(self, path: Path, name: str, *, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._sql: sqlite3.Connection | None = None
        self._closed = False

    async def open(self) -> None:
        """Connect; a file that is missing is made.

        Raises ``StoreUnavailableError``, or ``ConfigError`` when the file system cannot do what is
        needed. ``close`` is due in any case.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, self._connect)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``work`` returns, called in the thread with the connection.

        A caller that is cancelled leaves work that has begun to its end; work that has not begun is
        dropped. SQLite's errors come out as ``StoreUnavailableError``.
        """
        if self._closed:
            raise StoreUnavailableError("The store has been closed.")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._work, work)

    async def close(self) -> None:
        """Close the connection after all work that came before. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        closing = self._executor.submit(self._disconnect)
        self._executor.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))

    def _connect(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # The file holds users' data, and SQLite makes its side files with the same rights.
            self._path.touch(mode=0o600)
        except OSError as error:
            raise StoreUnavailableError(f"The database file cannot be made: {error}.") from error
        with _translated():
            self._sql = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
            self._sql.row_factory = sqlite3.Row
            _need_wal(self._sql, self._path)
            # FULL costs one fsync for each write (a quarter of a millisecond on an SSD). NORMAL
            # survives a killed process too, but loses acknowledged writes when the power fails.
            self._sql.execute("PRAGMA synchronous = FULL")
            if self._read_only:
                self._sql.execute("PRAGMA query_only = ON")

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._sql is None:
            raise StoreUnavailableError("The database is not open.")
        with _translated():
            return work(self._sql)

    def _disconnect(self) -> None:
        if self._sql is not None:
            self._sql.close()


def _need_wal(sql: sqlite3.Connection, path: Path) -> None:
    if _set_wal(sql) != "wal":
        raise ConfigError(
            f"The file system of {path.parent} cannot hold the database.",
            hint="Choose a data folder on a local disk.",
        )


def _set_wal(sql: sqlite3.Connection) -> str:
    """Return the journal mode that the file has now."""
    give_up = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            mode: str = sql.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            # Here SQLite itself does not wait: two that open a new file at once would collide.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(_BUSY_POLL_SECONDS)
        else:
            return mode


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailableError(f"The database cannot be used: {error}.") from error
    except UnicodeEncodeError as error:
        raise InvalidRequestError("Text must not hold unpaired surrogates.") from error
