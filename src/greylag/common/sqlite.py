"""SQLite connections in threads of their own, so that no call of theirs holds up the event loop."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

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


class NoWalError(sqlite3.NotSupportedError):
    """The file system cannot hold the database."""


class NewerFileError(sqlite3.NotSupportedError):
    """A newer version of the program wrote the file."""


class FileGoneError(sqlite3.OperationalError):
    """The file is not at its path any more, or another is: what is written would be lost."""

    def __init__(self) -> None:
        super().__init__("its file was moved, deleted or replaced")


class NotUtf8(bytes):
    """Text of a file that is not UTF-8, as its bytes."""


def placeholder(value: object) -> str:
    """Return what stands in a query for ``value``, which came out of the file, to find it there.

    Bytes alone would be taken for a BLOB, which equals no text.
    """
    return "CAST(? AS TEXT)" if isinstance(value, NotUtf8) else "?"


def _lenient_text(kept: bytes) -> str | NotUtf8:
    try:
        return kept.decode()
    except UnicodeDecodeError:
        return NotUtf8(kept)


def version_of(sql: sqlite3.Connection) -> int:
    """Return how many steps of ``migrate`` the file has had."""
    version: int = sql.execute("PRAGMA user_version").fetchone()[0]
    return version


def migrate(
    sql: sqlite3.Connection,
    steps: Sequence[Sequence[str]],
    check_new: Callable[[sqlite3.Connection], None] = lambda _: None,
) -> None:
    """Bring a file to its newest tables; several processes may do so at once.

    A step is never changed once released: a change of the tables is a new step at the end.

    Args:
        sql: the file.
        steps: the statements of each step, which is one transaction.
        check_new: raises for a file that has had no step and must not have one.

    Raises:
        NewerFileError: the file has had more steps than there are.
    """
    for target, statements in enumerate(steps, 1):
        if version_of(sql) < target:
            _take_step(sql, target, statements, check_new)
    if version_of(sql) > len(steps):
        raise NewerFileError("a newer version has written it")


def _take_step(
    sql: sqlite3.Connection,
    target: int,
    statements: Sequence[str],
    check_new: Callable[[sqlite3.Connection], None],
) -> None:
    with transaction(sql):
        # Another process may have been faster; inside the transaction nobody is.
        version = version_of(sql)
        if version >= target:
            return
        if version == 0:
            check_new(sql)
        # It may have altered tables, too: a statement that reads the file makes this connection
        # notice that what it knows of them is old, and one that fails to compile does not.
        sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
        for statement in statements:
            sql.execute(statement)
        sql.execute(f"PRAGMA user_version = {target}")


class SqlThread:
    """One connection to a file and the one thread that may touch it.

    Work is done in the order in which it came.

    Args:
        path: the file.
        name: of the thread.
        translated: gives the context in which the file is opened and each work is done. It turns
            ``sqlite3.Error`` (``NoWalError`` and ``FileGoneError`` among them) and, while it opens,
            ``OSError`` into errors of its owner's.
        read_only: whether the connection refuses to write.
        need_wal: whether a file system that cannot keep a write-ahead log is refused: without one,
            a reader in another process would wait for writers.
        strict_text: whether a row with text that is not UTF-8 is an error; else that text comes as
            ``NotUtf8``.
    """

    def __init__(  # noqa: PLR0913 - how a file is opened
        self,
        path: Path,
        name: str,
        translated: Callable[[], AbstractContextManager[None]],
        *,
        read_only: bool = False,
        need_wal: bool = True,
        strict_text: bool = True,
    ) -> None:
        self._path = path.absolute()
        self._translated = translated
        self._read_only = read_only
        self._need_wal = need_wal
        self._strict_text = strict_text
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._sql: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None
        self._closed = False

    async def open(self) -> None:
        """Connect; a file that is missing is made. ``close`` is due in any case."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, self._connect)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``work`` returns, called in the thread with the connection.

        A caller that is cancelled leaves work that has begun to its end; work that has not begun is
        dropped.
        """
        if self._closed:
            with self._translated():
                raise sqlite3.ProgrammingError("it has been closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._work, work)

    async def transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``work`` returns, done in one transaction; as ``run``."""

        def transacted(sql: sqlite3.Connection) -> T:
            with transaction(sql, "BEGIN"):
                return work(sql)

        return await self.run(transacted)

    async def close(self) -> None:
        """Close the connection after all work that came before. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        closing = self._executor.submit(self._disconnect)
        self._executor.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))

    def _connect(self) -> None:
        with self._translated():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # The file holds users' data, and SQLite makes its side files with the same rights.
            self._path.touch(mode=0o600)
            self._file = self._path.stat()
            self._sql = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
            self._sql.row_factory = sqlite3.Row
            if not self._strict_text:
                self._sql.text_factory = _lenient_text
            if _set_wal(self._sql) != "wal" and self._need_wal:
                raise NoWalError(f"no write-ahead log in {self._path.parent}")
            # FULL costs one fsync for each write (a quarter of a millisecond on an SSD). NORMAL
            # survives a killed process too, but loses acknowledged writes when the power fails.
            self._sql.execute("PRAGMA synchronous = FULL")
            self._sql.execute("PRAGMA foreign_keys = ON")
            if self._read_only:
                self._sql.execute("PRAGMA query_only = ON")

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._translated():
            if self._sql is None:
                raise sqlite3.ProgrammingError("it is not open")
            self._require_file()
            return work(self._sql)

    def _require_file(self) -> None:
        """Raise ``FileGoneError`` where the path leads elsewhere than to what was opened.

        SQLite itself would go on in a file that nobody finds again, and say that all is well.
        """
        try:
            same = self._file is None or os.path.samestat(self._path.stat(), self._file)
        except (FileNotFoundError, NotADirectoryError):
            same = False
        except OSError:
            return  # it cannot be asked now; what is the matter the work itself meets
        if not same:
            raise FileGoneError

    def _disconnect(self) -> None:
        if self._sql is not None:
            self._sql.close()


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
