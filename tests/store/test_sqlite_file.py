"""The SQLite file: how it comes to be, what it refuses, and what happens when it fails."""

import asyncio
import shutil
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.contract.store_adapters import REF, at, make_project
from tests.wishes import edit

from greylag.common import sqlite
from greylag.common.clock import rfc3339
from greylag.domain.errors import (
    ConfigError,
    InvalidRequestError,
    ProjectNotFoundError,
    StoreUnavailableError,
)
from greylag.domain.project import ProjectRef, Status
from greylag.domain.users import Member, of_user
from greylag.ports import AuditFilter, NumberedEntry, PageQuery, ProjectPage
from greylag.services.projects import Edit
from greylag.store.sqlite import audit_trail, people, queries, schema
from greylag.store.sqlite.store import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "greylag.db"


@pytest.fixture
def letter(tmp_path: Path) -> Iterator[Path]:
    """A file that is something else, and stays so."""
    path = tmp_path / "letter.txt"
    path.write_text("This is a letter, not a database. " * 100)
    yield path
    assert path.read_text() == "This is a letter, not a database. " * 100


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(path)
    yield opened
    await opened.close()


async def test_records_outlive_the_store(path: Path) -> None:
    first = await SqliteStore.open(path)
    made = await first.create(make_project())
    await first.close()
    second = await SqliteStore.open(path)
    assert await second.get("ada", "demo") == made.project
    await second.close()


async def test_what_was_revoked_is_forgotten_once_it_has_run_out(store: SqliteStore) -> None:
    await store.revoke("old", at(1), at(0))
    await store.revoke("new", at(9), at(2))
    assert not await store.is_revoked("old")
    assert await store.is_revoked("new")


async def test_only_the_owner_of_the_file_may_read_it(store: SqliteStore, path: Path) -> None:
    await store.create(make_project())
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("greylag.db", "greylag.db-wal", "greylag.db-shm"), 0o600)


async def test_simultaneous_first_openings_all_succeed(path: Path) -> None:
    stores = await asyncio.gather(*(SqliteStore.open(path) for _ in range(8)))
    made = await stores[0].create(make_project())
    for store in stores:
        assert await store.get("ada", "demo") == made.project
        await store.close()


async def test_a_file_of_a_newer_greylag_is_refused(path: Path) -> None:
    await (await SqliteStore.open(path)).close()
    with closing(sqlite3.connect(path)) as sql:
        sql.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    with pytest.raises(ConfigError, match="newer Greylag"):
        await SqliteStore.open(path)


async def test_a_file_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("CREATE TABLE theirs (x)")
    with pytest.raises(ConfigError, match="not Greylag's"):
        await SqliteStore.open(path)
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


async def test_a_migration_that_fails_leaves_nothing_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (*schema.MIGRATIONS, ("CREATE TABLE half (x)", "CREATE NONSENSE"))
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", broken)
        with pytest.raises(StoreUnavailableError):
            await SqliteStore.open(path)
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute("PRAGMA user_version").fetchone() == (len(broken) - 1,)
        assert not sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchall()


async def test_a_file_that_is_no_database_fails_with_its_cause(letter: Path) -> None:
    with pytest.raises(StoreUnavailableError) as caught:
        await SqliteStore.open(letter)
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert "restore a backup" in caught.value.info.hint


async def test_what_is_asked_of_a_store_whose_folder_was_deleted_is_refused(
    store: SqliteStore, path: Path
) -> None:
    await store.create(make_project())
    shutil.rmtree(path.parent)
    for refused in (store.ping(), store.get("ada", "demo"), store.create(make_project("other"))):
        with pytest.raises(StoreUnavailableError, match="moved, deleted or replaced") as caught:
            await refused
        assert "start Greylag anew" in caught.value.info.hint
    assert not path.parent.exists()


async def test_a_folder_that_cannot_be_made_fails_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailableError) as caught:
        await SqliteStore.open(tmp_path / "file" / "greylag.db")
    assert isinstance(caught.value.__cause__, OSError)


async def test_no_thread_is_left_after_close_or_a_failed_opening(path: Path, letter: Path) -> None:
    before = set(threading.enumerate())
    await (await SqliteStore.open(path)).close()
    with pytest.raises(StoreUnavailableError):
        await SqliteStore.open(letter)
    ours = [thread for thread in set(threading.enumerate()) - before if "store-" in thread.name]
    for thread in ours:
        thread.join(5)
    assert not [thread for thread in ours if thread.is_alive()]


async def test_a_full_disk_changes_nothing_and_room_heals_it(store: SqliteStore) -> None:
    made = (await store.create(make_project())).project

    def fill(sql: sqlite3.Connection) -> None:
        pages = sql.execute("PRAGMA page_count").fetchone()[0]
        sql.execute(f"PRAGMA max_page_count = {pages}")

    await store._writer.run(fill)
    big = {"text": "x" * 1_000_000}
    with pytest.raises(StoreUnavailableError, match="full") as caught:
        await edit(store, "ada", "demo", Edit(name="big", metadata=big), at(1))
    assert "has room again" in caught.value.info.hint
    assert await store.get("ada", "demo") == made
    await store._writer.run(lambda sql: sql.execute("PRAGMA max_page_count = 100000"))
    assert (await edit(store, "ada", "demo", Edit(metadata=big), at(2))).metadata == big


async def test_a_file_that_another_holds_is_unavailable_and_then_available_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.05)
    store = await SqliteStore.open(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for refused in (store.ping(), store.create(make_project())):
            with pytest.raises(StoreUnavailableError) as caught:
                await refused
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        # Those who only read go on.
        with pytest.raises(ProjectNotFoundError):
            await store.get("ada", "demo")
        other.execute("COMMIT")
    await store.ping()
    assert (await store.create(make_project())).new
    await store.close()


async def test_an_id_that_is_no_text_is_a_clear_error(store: SqliteStore) -> None:
    with pytest.raises(InvalidRequestError):
        await store.get("ada", "\ud800")


async def test_a_caller_that_leaves_does_not_undo_what_has_begun(store: SqliteStore) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(sql: sqlite3.Connection) -> None:
        begun.set()
        assert go_on.wait(10)
        with sqlite.transaction(sql):
            queries.insert(sql, make_project(), None)

    leaving = asyncio.create_task(store._writer.run(slow))
    assert await asyncio.to_thread(begun.wait, 10)
    dropped = asyncio.create_task(store.create(make_project("dropped")))
    await asyncio.sleep(0)
    leaving.cancel()
    dropped.cancel()
    await asyncio.wait({leaving, dropped})
    go_on.set()
    await store.create(make_project("next"))
    assert (await store.get("ada", "demo")).project_id == "demo"
    with pytest.raises(ProjectNotFoundError):
        await store.get("ada", "dropped")


async def test_a_long_search_of_the_audit_trail_holds_no_other_read_up(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def long(*_: object) -> list[NumberedEntry]:
        begun.set()
        assert go_on.wait(10)
        return []

    monkeypatch.setattr(audit_trail, "read", long)
    searching = asyncio.create_task(store.audit_entries(AuditFilter(), 1))
    assert await asyncio.to_thread(begun.wait, 10)
    async with asyncio.timeout(5):
        assert await store.page("ada", PageQuery()) == ProjectPage([])
    go_on.set()
    assert await searching == []


def test_a_search_of_the_audit_trail_reads_no_more_than_the_rarest_of_its_filters(
    tmp_path: Path,
) -> None:
    def steps(**asked: Any) -> int:
        counted: list[None] = []
        sql.set_progress_handler(lambda: counted.append(None), 100)
        audit_trail.read(sql, AuditFilter(**asked), 101, before=10**9, after=0)
        sql.set_progress_handler(None, 0)
        return len(counted)

    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as sql:
        sql.row_factory = sqlite3.Row
        schema.migrate(sql)
        with sqlite.transaction(sql):
            for i in range(30_000):
                told = {"at": rfc3339(at(i)), "action": "common", "result": "done"}
                told |= {"action": "rare"} if i in {5, 9} else {}
                audit_trail.put(sql, i, {**told, "object": f"project/ada/p{i % 300}"})
        assert steps(action="rare", result="done") < 1000
        assert steps(object="project/ada/p7", result="done") < 1000
        assert steps(object="project/ada", result="done") < 3000
        assert steps(since=at(5), until=at(90), result="done") < 1500
        assert steps(since=at(29_000)) < 1000
        assert audit_trail.trim(sql, at(0), 10) == 0


async def test_what_was_begun_before_close_is_finished(path: Path) -> None:
    store = await SqliteStore.open(path)
    creating = [asyncio.create_task(store.create(make_project(f"p{n}"))) for n in range(50)]
    await asyncio.sleep(0)
    await store.close()
    assert all(created.new for created in await asyncio.gather(*creating))


@pytest.mark.parametrize(
    ("call", "index"),
    [
        (lambda sql: queries.page(sql, "ada", PageQuery()), "projects_page"),
        (
            lambda sql: queries.page(sql, "ada", PageQuery(status=Status.ERROR)),
            "projects_page_by_status",
        ),
        (lambda sql: queries.by_id(sql, "1"), "sqlite_autoindex_projects_1"),
        (queries.next_due, "projects_claimable"),
        (lambda sql: queries.poke(sql, REF, at(0)), "projects_environment"),
        (lambda sql: queries.poke_unsettled(sql, at(0)), "projects_unsettled"),
    ],
)
async def test_each_query_goes_by_its_index_and_sorts_nothing(
    store: SqliteStore, call: Callable[[sqlite3.Connection], object], index: str
) -> None:
    def explained(sql: sqlite3.Connection) -> list[str]:
        asked: list[str] = []
        sql.set_trace_callback(asked.append)
        call(sql)
        sql.set_trace_callback(None)
        (query,) = (one for one in asked if one.startswith(("SELECT", "UPDATE")))
        return [row["detail"] for row in sql.execute(f"EXPLAIN QUERY PLAN {query}")]

    (step,) = await store._writer.run(explained)
    assert f"INDEX {index}" in step


async def test_what_has_a_label_is_found_without_reading_all_of_its_kind(
    store: SqliteStore,
) -> None:
    def explained(sql: sqlite3.Connection) -> list[str]:
        asked: list[str] = []
        sql.set_trace_callback(asked.append)
        people.labelled(sql, Member, of_user("bob"), strict=False)
        sql.set_trace_callback(None)
        return [row["detail"] for row in sql.execute(f"EXPLAIN QUERY PLAN {asked[0]}")]

    assert await store._writer.run(explained) == [
        "SEARCH people_labels USING PRIMARY KEY (kind=? AND label=?)",
        "SEARCH people USING PRIMARY KEY (kind=? AND key=?)",
    ]


async def test_a_long_list_is_not_parsed_again_after_each_write(store: SqliteStore) -> None:
    def fill(sql: sqlite3.Connection) -> None:
        with sqlite.transaction(sql):
            for n in range(3000):
                queries.insert(sql, make_project(f"p{n}"), None)

    async def listed() -> int:
        found = len((await store.page("ada", PageQuery(limit=3000))).projects)
        assert found == 3000
        return queries._shared.cache_info().misses

    await store._writer.run(fill)
    parsed = await listed()
    await store.ping()
    assert await listed() == parsed


async def test_no_more_is_remembered_of_lists_than_what_is_small(store: SqliteStore) -> None:
    def remembered() -> int:
        return queries._shared.cache_info().currsize

    queries._shared.cache_clear()
    for project, metadata in (("small", {"a": "b"}), ("large", {"a": "b" * 2000})):
        await store.create(make_project(project, metadata=metadata))
    for _ in range(2):
        found = (await store.page("ada", PageQuery())).projects
        assert {one.project_id: len(one.metadata["a"]) for one in found} == {
            "small": 1,
            "large": 2000,
        }
        assert remembered() == 1


async def test_many_listeners_do_not_wake_for_one_projects_change(store: SqliteStore) -> None:
    await store.create(make_project("p7"))
    subscriptions = [store.subscribe(ProjectRef("ada", f"p{n}")) for n in range(2000)]
    heard = [subscription.__enter__() for subscription in subscriptions]
    await store.poke(ProjectRef("ada", "p7"), at(1))
    assert await heard[7].changed(5)
    awake = [ear for ear in heard if await ear.changed(0)]
    assert awake == []
    for subscription in subscriptions:
        subscription.__exit__(None, None, None)
