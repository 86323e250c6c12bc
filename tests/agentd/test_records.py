"""agentd's records, in files of every age."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from greylag.agentd.records import (
    Records,
    SessionRecord,
    StorageError,
    TurnOutcome,
    TurnRecord,
    new_turn,
)

READS = Path("/proc/self/io")
BEFORE_VERSIONS = """
CREATE TABLE IF NOT EXISTS sessions (
    session_id TEXT PRIMARY KEY,
    agent_session_id TEXT,
    title TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    deleted_at REAL
) STRICT;
CREATE TABLE IF NOT EXISTS turns (
    number INTEGER PRIMARY KEY,
    turn_id TEXT NOT NULL UNIQUE,
    session_id TEXT NOT NULL REFERENCES sessions(session_id),
    message_id TEXT NOT NULL UNIQUE,
    message TEXT NOT NULL,
    status TEXT NOT NULL,
    answer TEXT NOT NULL DEFAULT '',
    tool_calls_count INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    error_code TEXT,
    stop_reason TEXT,
    started_at REAL NOT NULL,
    ended_at REAL
) STRICT;
CREATE INDEX IF NOT EXISTS turns_of_session ON turns (session_id, number);
CREATE UNIQUE INDEX IF NOT EXISTS one_running_turn ON turns (session_id) WHERE status = 'running';
CREATE TABLE IF NOT EXISTS confirmations (
    confirmation_id TEXT PRIMARY KEY,
    turn_id TEXT NOT NULL,
    decision TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
ROWS = """
INSERT INTO sessions VALUES ('s', '20261123_1', 'Session s', 1.0, 3.0, NULL);
INSERT INTO sessions VALUES ('gone', NULL, '', 1.0, 1.0, 2.0);
INSERT INTO turns VALUES
    (1, 't1', 's', 'm1', 'hello', 'completed', 'hi', 2, NULL, NULL, 'end_turn', 1.0, 2.0);
INSERT INTO turns VALUES
    (2, 't2', 's', 'm2', 'more', 'running', '', 0, NULL, NULL, NULL, 3.0, NULL);
INSERT INTO confirmations VALUES ('c1', 't1', 'allow_once');
INSERT INTO settings VALUES ('GOOSE_MODE', '"auto"');
"""
FIRST = TurnRecord("t1", "s", "m1", "hello", "completed", "hi", 2, None, None, "end_turn", 1.0, 2.0)
SESSION = SessionRecord("s", "20261123_1", "hello", 1.0, 3.0, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agentd.db"


@pytest.fixture
def sql(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file as agentd wrote it before its records had a version."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(BEFORE_VERSIONS + ROWS)
        yield connection


def version(sql: sqlite3.Connection) -> int:
    return int(sql.execute("PRAGMA user_version").fetchone()[0])


async def test_a_file_from_before_versions_opens_with_all_that_is_in_it(
    path: Path, sql: sqlite3.Connection
) -> None:
    assert version(sql) == 0
    for _ in range(2):
        records = await Records.open(path)
        assert await records.sessions.all() == [SESSION]
        assert await records.turns.page("s", 0, 1) == [FIRST]
        assert [turn.turn_id for turn in await records.turns.running()] == ["t2"]
        assert await records.turns.decision("c1", "t1") == "allow_once"
        assert await records.settings.all() == {"GOOSE_MODE": '"auto"'}
        await records.aclose()
        assert version(sql) == 5


async def test_a_new_file_has_the_tables_that_an_old_one_has(
    path: Path, sql: sqlite3.Connection, tmp_path: Path
) -> None:
    await (await Records.open(path)).aclose()
    await (await Records.open(tmp_path / "new.db")).aclose()

    def tables(sql: sqlite3.Connection) -> set[tuple[str, ...]]:
        found = sql.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
        return {tuple(" ".join(str(value).split()) for value in row) for row in found}

    with closing(sqlite3.connect(tmp_path / "new.db")) as new:
        assert tables(new) == tables(sql)
        assert version(new) == version(sql) == 5


async def test_a_file_of_a_newer_agentd_is_refused_and_left_as_it_is(
    path: Path, sql: sqlite3.Connection
) -> None:
    sql.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="written by a newer agentd"):
        await Records.open(path)
    assert version(sql) == 99


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "agentd.db").write_bytes(b"what a tool wrote " * 1000)
    with pytest.raises(StorageError, match="cannot be used: file is not a database"):
        await Records.open(tmp_path / "agentd.db")


async def test_a_file_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "agentd.db").mkdir()
    with pytest.raises(StorageError, match="cannot be used"):
        await Records.open(tmp_path / "agentd.db")


async def test_a_deleted_session_is_never_shown_again_nor_what_was_said_in_it(
    path: Path, sql: sqlite3.Connection
) -> None:
    records = await Records.open(path)
    assert set(await records.sessions.delete("s", 4.0)) == {"t1", "t2"}
    assert await records.sessions.all() == []
    assert await records.sessions.get("s") is None
    assert await records.turns.ids() == set()
    assert await records.turns.decision("c1", "t1") is None
    assert (await records.turns.start(new_turn("s", "x", None, 5.0))).outcome == "no_session"
    await records.aclose()
    assert sql.execute("SELECT count(*) FROM sessions").fetchone()[0] == 2


async def test_of_a_list_s_turns_no_more_of_the_texts_is_read_than_is_asked_for(
    path: Path, sql: sqlite3.Connection
) -> None:
    del sql  # the file is there
    said = "a\0\u00e4\U0001f600z"
    records = await Records.open(path)
    outcome = TurnOutcome("completed", said, 1, None, None, "end_turn")
    await records.turns.end("t2", outcome, {}, 5.0)
    (whole,) = await records.turns.newest("s", 1)
    for most in range(7):
        (cut,) = await records.turns.newest("s", 1, most_text=most)
        assert cut == replace(whole, message=whole.message[:most], answer=said[:most])
    running = new_turn("s", "", None, 6.0)
    await records.turns.start(running)
    (cut,) = await records.turns.newest("s", 1, most_text=7)
    assert (cut.turn_id, cut.message, cut.answer) == (running.turn_id, "", "")
    await records.aclose()


def bytes_read() -> int:
    return int(READS.read_text("ascii").split()[1])


@pytest.mark.skipif(not READS.exists(), reason="no /proc: NOT tested")
async def test_a_list_of_sessions_reads_nothing_of_what_was_said_in_them(path: Path) -> None:
    records = await Records.open(path)
    outcome = TurnOutcome("completed", "x" * 1_000_000, 0, None, None, None)
    await records.sessions.add(SessionRecord("long", None, "title", 1.0, 1.0, 0))
    for _ in range(20):
        turn = new_turn("long", "hello", None, 1.0)
        await records.turns.start(turn)
        await records.turns.end(turn.turn_id, outcome, {}, 2.0)
    await records.turns.start(new_turn("long", "hello", None, 3.0))
    await records.aclose()
    records = await Records.open(path)
    before = bytes_read()
    listed = {one.session_id: one.message_count for one in await records.sessions.all()}
    read = bytes_read() - before
    await records.aclose()
    assert listed == {"long": 41}
    assert read < 1_000_000


async def test_what_fails_in_the_middle_changes_nothing(
    path: Path, sql: sqlite3.Connection
) -> None:
    records = await Records.open(path)
    sql.execute("CREATE TRIGGER no BEFORE INSERT ON turns BEGIN SELECT RAISE(ABORT, 'no'); END")
    made = new_turn("s2", "x", None, 5.0)
    with pytest.raises(StorageError, match="no"):
        await records.turns.start(made, "a new session")
    assert await records.sessions.get("s2") is None
    await records.aclose()


async def test_a_turn_needs_its_session(path: Path) -> None:
    records = await Records.open(path)
    with pytest.raises(StorageError, match="FOREIGN KEY"):
        await records.run(
            lambda sql: sql.execute(
                "INSERT INTO turns (turn_id, session_id, message_id, message, status, started_at) "
                "VALUES ('t', 'nowhere', 'm', 'x', 'running', 1.0)"
            )
        )
    await records.aclose()


async def test_a_turn_that_has_ended_stays_as_it_is(path: Path, sql: sqlite3.Connection) -> None:
    del sql  # the file is there
    records = await Records.open(path)
    for answer in ("done", "done otherwise"):
        outcome = TurnOutcome("completed", answer, 1, None, None, "end_turn")
        await records.turns.end("t2", outcome, {"c2": "reject_once"}, 5.0)
    turn = await records.turns.get("t2")
    assert turn is not None
    assert (turn.answer, turn.ended_at) == ("done", 5.0)
    assert await records.turns.decision("c2", "t2") == "reject_once"
    await records.aclose()
