"""SQLite files as whole stores: which are taken, and what is found in them; all stays as it is."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.store.archive_places import make_bundle

from greylag.domain.errors import ConfigError, StoreUnavailableError
from greylag.ports import StoreUnreadableError
from greylag.store.archive_sqlite import SqliteArchive, glance
from greylag.store.sqlite import schema


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A file with one project."""
    path = tmp_path / "greylag.db"
    archive = await SqliteArchive.open(path, write=True)
    await archive.write([make_bundle()])
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


def test_what_is_not_there_or_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "letter.db"
    with pytest.raises(ConfigError, match="There is no database"):
        glance(path)
    assert not list(tmp_path.iterdir())
    path.write_text("This is a letter, not a database. " * 100)
    with pytest.raises(StoreUnavailableError, match="not a database"):
        glance(path)


async def test_reading_changes_nothing(path: Path) -> None:
    before = bytes_of(path)
    archive = await SqliteArchive.open(path, write=False)
    assert await archive.flaws() == []
    with pytest.raises(StoreUnavailableError, match="readonly"):
        await archive.write([make_bundle("other")])
    await archive.close()
    assert bytes_of(path) == before


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("UPDATE projects SET status = 'confused'", "unknown_status", "'confused'"),
        ("UPDATE projects SET desired = 'more'", "unknown_wish", "'more'"),
        ("UPDATE projects SET metadata = '{'", "unreadable_record", "'demo' of user 'ada'"),
        ("UPDATE projects SET created_at = 'then'", "unreadable_record", "TypeError"),
        ("UPDATE projects SET created_at = 1 << 62", "unreadable_record", "OverflowError"),
        ("UPDATE projects SET generation = 'x'", "unreadable_record", "generation is 'x', not int"),
        ("UPDATE projects SET last_seq = 'x'", "unreadable_record", "last_seq"),
        ("UPDATE events SET body = '{}' WHERE seq = 2", "unreadable_event", "KeyError"),
    ],
)
async def test_what_cannot_be_read_is_told(path: Path, change: str, code: str, words: str) -> None:
    with changing(path) as sql:
        sql.execute(change)
        (record_id,) = sql.execute("SELECT id FROM projects").fetchone()
    archive = await SqliteArchive.open(path, write=False)
    sheet = await archive.sheet(None, 500)
    (flaw,) = sheet.unreadable
    assert (flaw.code, flaw.record) == (code, record_id)
    assert words in flaw.sentence
    assert sheet.bundles == []
    with pytest.raises(StoreUnreadableError):
        await archive.find([record_id])
    await archive.close()


async def test_events_of_nothing_are_found(path: Path) -> None:
    with changing(path) as sql:
        sql.execute("UPDATE events SET record_id = 'gone' WHERE seq > 1")
    archive = await SqliteArchive.open(path, write=False)
    (flaw,) = await archive.flaws()
    assert (flaw.code, flaw.record) == ("event_without_project", "gone")
    assert flaw.sentence.startswith("2 events")
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
    assert {flaw.code for flaw in await archive.flaws()} == {"damaged_file"}
    await archive.close()
