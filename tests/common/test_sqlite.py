"""One connection, one thread: in order, whole or not at all, in its owner's words."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from greylag.common.sqlite import NotUtf8, SqlThread, migrate, placeholder, transaction


class OwnersError(Exception):
    """What the owner makes of the driver's errors."""


@contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OwnersError(str(error)) from error


@pytest.fixture
async def thread(tmp_path: Path) -> AsyncIterator[SqlThread]:
    opened = SqlThread(tmp_path / "folder" / "file", "test-sql", translated)
    await opened.open()
    await opened.run(lambda sql: sql.execute("CREATE TABLE t (n INTEGER)"))
    yield opened
    await opened.close()


def numbers(sql: sqlite3.Connection) -> list[int]:
    return [row["n"] for row in sql.execute("SELECT n FROM t ORDER BY rowid")]


def insert(sql: sqlite3.Connection, number: int) -> None:
    with transaction(sql):
        sql.execute("INSERT INTO t VALUES (?)", (number,))


async def test_work_is_done_in_the_order_in_which_it_came(thread: SqlThread) -> None:
    work = [thread.run(lambda sql, n=n: insert(sql, n)) for n in range(50)]  # type: ignore[misc] # mypy cannot infer a default's type
    await asyncio.gather(*work)
    assert await thread.run(numbers) == list(range(50))


async def test_a_transaction_that_raises_leaves_nothing_and_the_next_is_free(
    thread: SqlThread,
) -> None:
    def fail(sql: sqlite3.Connection) -> None:
        with transaction(sql):
            sql.execute("INSERT INTO t VALUES (1)")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        await thread.run(fail)
    await thread.run(lambda sql: insert(sql, 2))
    assert await thread.run(numbers) == [2]


async def test_the_drivers_errors_are_its_owners_also_after_it_was_closed(
    thread: SqlThread,
) -> None:
    with pytest.raises(OwnersError, match="no such table"):
        await thread.run(lambda sql: sql.execute("SELECT * FROM missing"))
    await thread.close()
    await thread.close()
    with pytest.raises(OwnersError, match="closed"):
        await thread.run(numbers)


async def test_the_file_is_for_our_account_only_and_read_only_writes_nothing(
    thread: SqlThread, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "file"
    assert path.stat().st_mode & 0o777 == 0o600
    reader = SqlThread(path, "test-reader", translated, read_only=True)
    await reader.open()
    assert await reader.run(numbers) == []
    with pytest.raises(OwnersError, match="readonly"):
        await reader.run(lambda sql: insert(sql, 1))
    await reader.close()


async def test_nothing_is_read_or_written_in_a_file_that_is_not_where_it_was(
    thread: SqlThread, tmp_path: Path
) -> None:
    folder, away = tmp_path / "folder", tmp_path / "away"
    folder.rename(away)
    with pytest.raises(OwnersError, match="moved, deleted or replaced"):
        await thread.run(lambda sql: insert(sql, 1))
    folder.mkdir()
    (folder / "file").touch()
    with pytest.raises(OwnersError, match="moved, deleted or replaced"):
        await thread.run(numbers)
    folder.joinpath("file").unlink()
    folder.rmdir()
    away.rename(folder)
    await thread.run(lambda sql: insert(sql, 2))
    assert await thread.run(numbers) == [2]


async def test_text_that_is_none_is_found_again_by_what_was_read_of_it(tmp_path: Path) -> None:
    opened = SqlThread(tmp_path / "file", "test-sql", translated, strict_text=False)
    await opened.open()

    def kept(sql: sqlite3.Connection) -> list[object]:
        sql.execute("CREATE TABLE t (a TEXT)")
        sql.execute("INSERT INTO t VALUES (CAST(x'ff41' AS TEXT)), (x'ff41'), ('\u00e4')")
        return [a for (a,) in sql.execute("SELECT a FROM t ORDER BY rowid")]

    values = await opened.run(kept)
    assert values == [b"\xffA", b"\xffA", "\u00e4"]
    assert [type(value) for value in values] == [NotUtf8, bytes, str]
    for rowid, value in enumerate(values, 1):
        query = f"SELECT rowid FROM t WHERE a = {placeholder(value)}"  # noqa: S608 - a placeholder
        found = await opened.run(
            lambda sql, query=query, value=value: sql.execute(query, (value,)).fetchall()  # type: ignore[misc] # mypy cannot infer a default's type
        )
        assert [tuple(row) for row in found] == [(rowid,)]
    await opened.close()


async def test_a_cancelled_caller_leaves_begun_work_to_its_end_and_drops_what_waits(
    thread: SqlThread,
) -> None:
    loop = asyncio.get_running_loop()
    begun, go_on = asyncio.Event(), asyncio.Event()

    def slow(sql: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        insert(sql, 1)

    first = asyncio.create_task(thread.run(slow))
    await begun.wait()
    second = asyncio.create_task(thread.run(lambda sql: insert(sql, 2)))
    await asyncio.sleep(0)
    for task in (first, second):
        task.cancel()
    await asyncio.wait({first, second})
    go_on.set()
    assert await thread.run(numbers) == [1]


async def test_a_file_has_each_step_once_however_many_come_at_once(tmp_path: Path) -> None:
    first = [["CREATE TABLE old (n INTEGER)", "INSERT INTO old VALUES (1)"]]
    steps = [*first, ["ALTER TABLE old ADD COLUMN m INTEGER"], ["INSERT INTO old VALUES (2, 2)"]]
    threads = [SqlThread(tmp_path / "file", f"test-{n}", translated) for n in range(4)]
    for thread in threads:
        await thread.open()
    await threads[0].run(lambda sql: migrate(sql, first))
    await asyncio.gather(*(thread.run(lambda sql: migrate(sql, steps)) for thread in threads))
    assert (
        await threads[0].run(lambda sql: sql.execute("SELECT count(*) FROM old").fetchone()[0]) == 2
    )
    with pytest.raises(OwnersError, match="newer"):
        await threads[0].run(lambda sql: migrate(sql, first))
    for thread in threads:
        await thread.close()


async def test_a_step_sees_the_tables_as_another_has_just_altered_them(tmp_path: Path) -> None:
    steps = [
        ["CREATE TABLE t (n)"],
        ["ALTER TABLE t ADD COLUMN m"],
        ["INSERT INTO t VALUES (1, 2)"],
    ]
    one, other = (SqlThread(tmp_path / "file", f"test-{n}", translated) for n in range(2))
    await one.open()
    await other.open()
    await one.run(lambda sql: migrate(sql, steps[:1]))
    await other.run(lambda sql: sql.execute("SELECT n FROM t").fetchall())  # which it remembers
    await one.run(lambda sql: migrate(sql, steps[:2]))
    await other.run(lambda sql: migrate(sql, steps))
    await one.close()
    await other.close()


def test_older_versions_of_sqlite_know_all_that_a_migration_names() -> None:
    asked: list[str] = []
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as sql:
        sql.set_trace_callback(asked.append)
        migrate(sql, [["CREATE TABLE t (n INTEGER)"]])
    # Which is called sqlite_schema, too, only since 3.33.
    assert [one for one in asked if "sqlite_master" in one]
    assert not [one for one in asked if "sqlite_schema" in one]
