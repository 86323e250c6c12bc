"""SQLite files as whole stores: which are taken, and what is found in them; all stays as it is."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.store.sites import cut_off, everything, unreadable
from tests.store.stored_projects import make_stored

from greylag.domain.errors import ConfigError, StoreUnavailableError
from greylag.domain.project import Desired, Status
from greylag.ports import IdempotencyKey, StoreIncompleteError
from greylag.store.sqlite import schema
from greylag.store.sqlite.archive import SqliteArchive
from greylag.store.sqlite.store import SqliteStore

V3 = Path(__file__).with_name("greylag_v3.sql")
"""A database as the version of three migrations wrote it."""


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A file with one project."""
    path = tmp_path / "greylag.db"
    archive = await SqliteArchive.open(path, write=True)
    async with archive.replacing() as fill:
        await fill([make_stored()])
    await archive.close()
    return path


def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


@contextmanager
def changing(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as sql:
        yield sql
        sql.commit()


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (0, "no records of Greylag"),
        (len(schema.MIGRATIONS) - 1, "older Greylag"),
        (len(schema.MIGRATIONS) + 1, "newer Greylag"),
    ],
)
async def test_only_files_of_this_greylag_are_read(path: Path, version: int, sentence: str) -> None:
    with changing(path) as sql:
        sql.execute(f"PRAGMA user_version = {version}")
    before = bytes_of(path)
    with pytest.raises(ConfigError, match=sentence):
        await SqliteArchive.open(path, write=False)
    assert bytes_of(path) == before


async def test_what_is_not_there_or_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "letter.db"
    with pytest.raises(ConfigError, match="There is no database"):
        await SqliteArchive.open(path, write=False)
    assert not path.exists()
    path.write_text("This is a letter, not a database. " * 100)
    with pytest.raises(StoreUnavailableError, match="not a database"):
        await SqliteArchive.open(path, write=False)


async def test_reading_changes_nothing(path: Path) -> None:
    before = bytes_of(path)
    archive = await SqliteArchive.open(path, write=False)
    assert len(await everything(archive)) == 1
    assert await archive.findings() == []
    with pytest.raises(StoreUnavailableError, match="readonly"):
        async with archive.replacing():
            pass
    await archive.close()
    assert bytes_of(path) == before


async def test_a_replacement_that_is_cut_off_leaves_all_as_it_was(path: Path) -> None:
    archive = await SqliteArchive.open(path, write=True)
    before = await everything(archive)
    await cut_off(archive, make_stored("new"))
    assert await everything(archive) == before
    await archive.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE projects SET status = 'confused'", "'confused' is not a valid Status"),
        ("UPDATE projects SET desired = 'more'", "'more' is not a valid Desired"),
        ("UPDATE projects SET metadata = '{'", "'demo' of user 'ada'"),
        ("UPDATE projects SET created_at = 'then'", "TypeError"),
        ("UPDATE projects SET created_at = 1 << 62", "OverflowError"),
        ("UPDATE projects SET generation = 'x'", "project.generation is 'x', not int"),
        ("UPDATE projects SET last_seq = 'x'", "last_seq"),
        ("UPDATE events SET body = '{}' WHERE seq = 2", "KeyError"),
    ],
)
async def test_what_cannot_be_read_is_told(path: Path, change: str, words: str) -> None:
    with changing(path) as sql:
        sql.execute(change)
        (record_id,) = sql.execute("SELECT id FROM projects").fetchone()
    archive = await SqliteArchive.open(path, write=False)
    (finding,) = await unreadable(archive)
    assert finding.place == record_id
    assert words in finding.sentence
    assert finding.hint
    await archive.close()


async def test_a_damaged_file_is_told(path: Path) -> None:
    with changing(path) as sql:
        sql.execute("PRAGMA writable_schema = ON")
        # The index is there by name, and empty: as after a write that the disk has lost.
        sql.execute(
            "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master "
            "WHERE name = 'pings') WHERE name = 'projects_page'"
        )
    archive = await SqliteArchive.open(path, write=False)
    assert {finding.place for finding in await archive.findings()} == {"file"}
    await archive.close()


async def test_a_copy_that_an_earlier_greylag_left_unfinished_is_refused_until_replaced(
    path: Path,
) -> None:
    with changing(path) as sql:
        sql.execute("CREATE TABLE copying (one INTEGER PRIMARY KEY, source TEXT NOT NULL)")
    with pytest.raises(StoreIncompleteError, match="only a part"):
        await SqliteStore.open(path)
    archive = await SqliteArchive.open(path, write=True)
    assert await archive.incomplete()
    async with archive.replacing() as fill:
        await fill([make_stored("new")])
    assert not await archive.incomplete()
    await archive.close()
    await (await SqliteStore.open(path)).close()


async def test_a_file_of_an_earlier_version_opens_with_all_that_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "greylag.db"
    with changing(path) as sql:
        sql.executescript(V3.read_text("utf-8"))
    store = await SqliteStore.open(path)
    project = await store.get("ada", "demo")
    assert (project.name, project.desired, project.status) == (
        "D\xe9mo",
        Desired.ACTIVE,
        Status.ERROR,
    )
    assert project.metadata == {"team": "\udcff", "n": 2**70}
    assert project.error is not None
    assert project.error.code == "image_not_found"
    assert (project.generation, project.observed_generation, project.attempts) == (2, 2, 1)
    assert [event.code for event in await store.events("ada", "demo", 0, 10)] == ["a", "b"]
    again = await store.create(project, IdempotencyKey("key", "fingerprint"))
    assert (again.new, again.project.id) == (False, "67760165000000000000000a")
    await store.close()
    archive = await SqliteArchive.open(path, write=False)
    (found,) = await everything(archive)
    assert (found.claims, found.project.last_seq, len(found.keys)) == (1, 2, 1)
    await archive.close()
