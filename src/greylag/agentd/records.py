"""What agentd remembers, in one SQLite file: sessions, turns, confirmations, changed settings.

All calls run in one thread of their own, one after the other. Each is one transaction, and durable
(synchronous=FULL) before it returns. A cancelled caller leaves it to finish: it is done whole or
not at all. The database itself holds: one running turn in a session, one turn for a message. Every
call may raise ``StorageError``; nothing was changed then.
"""

import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from greylag.common.sqlite import NewerFileError, SqlThread, migrate

_HEADING = 80  # characters

TurnStatus = Literal["running", "completed", "cancelled", "error"]

_T = TypeVar("_T")

# Files from before there was a version have these tables already.
_FIRST = """
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
    CREATE UNIQUE INDEX IF NOT EXISTS one_running_turn ON turns (session_id)
        WHERE status = 'running';
    CREATE TABLE IF NOT EXISTS confirmations (
        confirmation_id TEXT PRIMARY KEY,
        turn_id TEXT NOT NULL,
        decision TEXT NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
_MIGRATIONS = (
    _FIRST.split(";"),
    ("ALTER TABLE turns ADD COLUMN author TEXT",),
    ("ALTER TABLE sessions ADD COLUMN mode TEXT", "ALTER TABLE sessions ADD COLUMN model TEXT"),
    (
        "ALTER TABLE turns ADD COLUMN agent_position INTEGER",
        "ALTER TABLE turns ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0",
    ),
    # Messages are counted for each list of sessions: not by reading all that was said.
    ("CREATE INDEX turns_answered ON turns (session_id, answer <> '')",),
)
_NEW_SESSION = (
    "INSERT INTO sessions (session_id, agent_session_id, title, created_at, updated_at) "
    "VALUES (?, ?, ?, ?, ?)"
)


class StorageError(Exception):
    """The records cannot be read or written (disk full, file broken); the message says why."""


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One conversation. Times are Unix seconds.

    Attributes:
        session_id: our own id, a UUID; never used twice.
        agent_session_id: the agent's id for it; None until the agent knows the session.
        title: what it was called, else how its first message begins.
        created_at: when it was made.
        updated_at: when its last turn began or ended, or turns of it were forgotten.
        message_count: user messages and answers so far.
        mode: when the agent asks in it; None as the setting says.
        model: which model answers in it; None as the setting says.
    """

    session_id: str
    agent_session_id: str | None
    title: str
    created_at: float
    updated_at: float
    message_count: int
    mode: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """A message and what became of it. Times are Unix seconds; ``answer`` is whole at the end;
    ``author`` is the name of whoever sent it, where the platform has told it; ``forgotten`` says
    that it was cut out of the agent's history.
    """

    turn_id: str
    session_id: str
    message_id: str
    message: str
    status: TurnStatus = "running"
    answer: str = ""
    tool_calls_count: int = 0
    error: str | None = None
    error_code: str | None = None
    stop_reason: str | None = None
    started_at: float = 0.0
    ended_at: float | None = None
    author: str | None = None
    forgotten: bool = False


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """How a turn ended, as its record keeps it."""

    status: TurnStatus
    answer: str
    tool_calls_count: int
    error: str | None
    error_code: str | None
    stop_reason: str | None


@dataclass(frozen=True, slots=True)
class StartedTurn:
    """What became of a wish to start a turn.

    Attributes:
        outcome: ``new``; ``known``, the message has a turn already; ``busy``, another turn runs in
            the session; ``no_session``, there is no such session.
        turn: the turn that ``outcome`` speaks of.
    """

    outcome: Literal["new", "known", "busy", "no_session"]
    turn: TurnRecord


def session_title(session_id: str) -> str:
    """Return a session's title for goose, which would else ask the model for one. A session that
    was not named has it too, and is shown under the beginning of its first message.
    """
    return f"Session {session_id[:8]}"


def _heading(text: str) -> str:
    """Return the beginning of a text as one line."""
    line = " ".join(text.split())
    return line if len(line) <= _HEADING else f"{line[: _HEADING - 1].rstrip()}\u2026"


def new_turn(
    session_id: str, message: str, message_id: str | None, now: float, author: str | None = None
) -> TurnRecord:
    """Return the record of a turn that is to begin; a message without an id gets the turn's."""
    turn_id = uuid.uuid4().hex
    return TurnRecord(
        turn_id, session_id, message_id or turn_id, message, started_at=now, author=author
    )


class Records:
    """The open file, and what is kept in it by kind."""

    def __init__(self, thread: SqlThread) -> None:
        self._thread = thread
        self.sessions = SessionRecords(self)
        self.turns = TurnRecords(self)
        self.settings = SettingRecords(self)

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open (or make) the file at ``path``, with its tables.

        Raises:
            StorageError: it cannot be opened, is no file of ours, or is a newer agentd's.
        """
        records = cls(SqlThread(path, "agentd-records", _translated, need_wal=False))
        try:
            await records._thread.open()
            await records._thread.run(lambda sql: migrate(sql, _MIGRATIONS))
        except StorageError:
            await records.aclose()
            raise
        return records

    async def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run ``work`` in the file's thread, inside one transaction, and return its result."""
        return await self._thread.transact(work)

    async def execute(self, statement: str, *values: str | float | None) -> list[sqlite3.Row]:
        """Run one statement with ``values`` bound to its marks, and return its rows."""
        return await self.run(lambda sql: sql.execute(statement, values).fetchall())

    async def aclose(self) -> None:
        """Close the file; no call may follow."""
        await self._thread.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except NewerFileError as error:
        raise StorageError(
            "The environment's records were written by a newer agentd than this one; start that."
        ) from error
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"The environment's records cannot be used: {error}.") from error


class SessionRecords:
    """Reads and writes sessions; a deleted one is kept as a tombstone and never shown again."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def add(self, session: SessionRecord) -> None:
        """Write a new session."""
        values = astuple(session)[:5]
        await self._records.execute(_NEW_SESSION, *values)

    async def get(self, session_id: str) -> SessionRecord | None:
        """Return a session, None when there is none (or it was deleted)."""
        found = await self._select("AND session_id = ?", session_id)
        return found[0] if found else None

    async def all(self) -> list[SessionRecord]:
        """Return every session, newest first."""
        return await self._select("ORDER BY created_at DESC, rowid DESC")

    async def bind(self, session_id: str, agent_session_id: str) -> None:
        """Remember the agent's own id of a session."""
        statement = "UPDATE sessions SET agent_session_id = ? WHERE session_id = ?"
        await self._records.execute(statement, agent_session_id, session_id)

    async def rename(self, session_id: str, title: str) -> None:
        """Call a session so; by an empty title, as its first message begins."""
        statement = "UPDATE sessions SET title = ? WHERE session_id = ? AND deleted_at IS NULL"
        named = title or session_title(session_id)
        await self._records.execute(statement, named, session_id)

    async def choose(
        self, session_id: str, option: Literal["mode", "model"], value: str | None
    ) -> None:
        """Keep which mode, or which model, a session has of its own."""
        statement = f"UPDATE sessions SET {option} = ? WHERE session_id = ?"  # noqa: S608 - see its type
        await self._records.execute(statement, value, session_id)

    async def delete(self, session_id: str, now: float) -> list[str]:
        """Bury a session and forget what was said in it; return the ids of its turns."""

        def delete(sql: sqlite3.Connection) -> list[str]:
            turns = sql.execute(
                "DELETE FROM turns WHERE session_id = ? RETURNING turn_id", (session_id,)
            ).fetchall()
            sql.executemany("DELETE FROM confirmations WHERE turn_id = ?", turns)
            sql.execute(
                "UPDATE sessions SET deleted_at = ?, title = '' WHERE session_id = ?",
                (now, session_id),
            )
            return [turn["turn_id"] for turn in turns]

        return await self._records.run(delete)

    async def _select(self, rest: str, *values: str) -> list[SessionRecord]:
        # ``rest`` is always written in this class; what comes from outside is bound as a value.
        rows = await self._records.execute(
            "SELECT session_id, agent_session_id, CASE "  # noqa: S608 - see above
            "WHEN title <> 'Session ' || substr(session_id, 1, 8) THEN title "
            "ELSE coalesce((SELECT substr(message, 1, 400) FROM turns "
            "WHERE turns.session_id = sessions.session_id ORDER BY number LIMIT 1), '') END, "
            "created_at, updated_at, "
            "(SELECT count(*) + coalesce(sum(answer <> ''), 0) FROM turns "
            "WHERE turns.session_id = sessions.session_id) AS message_count, mode, model "
            f"FROM sessions WHERE deleted_at IS NULL {rest}",
            *values,
        )
        return [SessionRecord(row[0], row[1], _heading(row[2]), *row[3:]) for row in rows]


@dataclass(frozen=True, slots=True)
class HistoryCut:
    """What the agent is to forget, and how.

    Attributes:
        session_id: whose history is cut.
        first, last: the first turn's id, and the last one's.
        turns: how many they are.
        before: the turn that precedes them in what the agent knows, None when there is none.
        old: the agent's id of the session, None when it does not know it.
        new: that of the one which takes its place; None: the next turn makes one.
    """

    session_id: str
    first: str
    last: str
    turns: int
    before: str | None
    old: str | None
    new: str | None


class TurnRecords:
    """Reads and writes turns, and how their confirmations were settled."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def start(self, turn: TurnRecord, title: str | None = None) -> StartedTurn:
        """Write a new running turn, unless its message is known or its session busy.

        Args:
            turn: the turn as it is to be.
            title: makes the turn's session, with this title; None takes one that is there.
        """

        def start(sql: sqlite3.Connection) -> StartedTurn:
            known = _turns(sql, "WHERE message_id = ?", turn.message_id)
            if known:
                return StartedTurn("known", known[0])
            if title is not None:
                new = (turn.session_id, None, title, turn.started_at, turn.started_at)
                sql.execute(_NEW_SESSION, new)
            there = sql.execute(
                "SELECT 1 FROM sessions WHERE session_id = ? AND deleted_at IS NULL",
                (turn.session_id,),
            ).fetchone()
            if there is None:
                return StartedTurn("no_session", turn)
            busy = _turns(sql, "WHERE session_id = ? AND status = 'running'", turn.session_id)
            if busy:
                return StartedTurn("busy", busy[0])
            sql.execute(
                "INSERT INTO turns (turn_id, session_id, message_id, message, status, started_at, "
                "author) VALUES (:turn_id, :session_id, :message_id, :message, 'running', "
                ":started_at, :author)",
                asdict(turn),
            )
            touch(sql, turn.session_id, turn.started_at)
            return StartedTurn("new", turn)

        return await self._records.run(start)

    async def end(
        self, turn_id: str, outcome: TurnOutcome, decisions: Mapping[str, str], now: float
    ) -> None:
        """Write how a turn ended. A turn that has ended stays as it is.

        Args:
            turn_id: the turn.
            outcome: how it ended.
            decisions: how each of its confirmations was settled, by confirmation id.
            now: Unix seconds.
        """

        def end(sql: sqlite3.Connection) -> None:
            row = sql.execute(
                "UPDATE turns SET status = ?, answer = ?, tool_calls_count = ?, error = ?, "
                "error_code = ?, stop_reason = ?, ended_at = ? "
                "WHERE turn_id = ? AND status = 'running' RETURNING session_id",
                (*astuple(outcome), now, turn_id),
            ).fetchone()
            if row is None:
                return
            touch(sql, row["session_id"], now)
            sql.executemany(
                "INSERT OR IGNORE INTO confirmations VALUES (?, ?, ?)",
                [(confirmation_id, turn_id, made) for confirmation_id, made in decisions.items()],
            )

        await self._records.run(end)

    async def place(self, turn_id: str, position: int | None) -> None:
        """Write how many messages the agent's history had when a turn began; None: not known."""
        statement = "UPDATE turns SET agent_position = ? WHERE turn_id = ?"
        await self._records.execute(statement, position, turn_id)

    async def abandon(self, turn_id: str) -> None:
        """Take back a turn that never began; its message may be sent again."""
        await self._records.execute("DELETE FROM turns WHERE turn_id = ?", turn_id)

    async def get(self, turn_id: str) -> TurnRecord | None:
        """Return a turn, None when there is none."""
        found = await self._select("WHERE turn_id = ?", turn_id)
        return found[0] if found else None

    async def with_message(self, message_id: str) -> TurnRecord | None:
        """Return the turn that a message started, None when there is none."""
        found = await self._select("WHERE message_id = ?", message_id)
        return found[0] if found else None

    async def newest(
        self, session_id: str, limit: int, skipped: int = 0, *, most_text: int | None = None
    ) -> list[TurnRecord]:
        """Return the last ``limit`` turns of a session before the ``skipped``, newest first.

        Args:
            session_id: the session.
            limit: the most turns.
            skipped: how many turns are newer than those.
            most_text: the most characters of a message and of an answer that are read; None: all.
        """
        rest = "WHERE session_id = ? ORDER BY number DESC LIMIT ? OFFSET ?"
        values = (session_id, limit, skipped)
        return await self._records.run(lambda sql: _turns(sql, rest, *values, most_text=most_text))

    async def page(self, session_id: str, offset: int, limit: int) -> list[TurnRecord]:
        """Return ``limit`` turns of a session from ``offset`` on, oldest first."""
        return await self._select(
            "WHERE session_id = ? ORDER BY number LIMIT ? OFFSET ?", session_id, limit, offset
        )

    async def running(self) -> list[TurnRecord]:
        """Return the turns that have no end yet."""
        return await self._select("WHERE status = 'running' ORDER BY number")

    async def ids(self) -> set[str]:
        """Return the ids of all turns."""
        return {row["turn_id"] for row in await self._records.execute("SELECT turn_id FROM turns")}

    async def decision(self, confirmation_id: str, turn_id: str) -> str | None:
        """Return how a confirmation of a turn was settled, None when it is not known."""
        statement = "SELECT decision FROM confirmations WHERE confirmation_id = ? AND turn_id = ?"
        rows = await self._records.execute(statement, confirmation_id, turn_id)
        return rows[0]["decision"] if rows else None

    async def _select(self, rest: str, *values: str | int) -> list[TurnRecord]:
        return await self._records.run(lambda sql: _turns(sql, rest, *values))

    async def end_from(self, turn: TurnRecord, old: str | None) -> tuple[HistoryCut, int | None]:
        """Return the end of a history, from a turn that is not forgotten.

        Returns:
            a cut without its ``new``, and how many messages precede it (None: that is not known).
        """

        def read(sql: sqlite3.Connection) -> tuple[HistoryCut, int | None]:
            rows = sql.execute(
                "SELECT turn_id, agent_position FROM turns "
                "WHERE session_id = ? AND NOT forgotten ORDER BY number",
                (turn.session_id,),
            ).fetchall()
            ids = [row[0] for row in rows]
            at = ids.index(turn.turn_id)
            position = rows[at][1]
            if any(row[1] is not None and row[1] < (position or 0) for row in rows[at:]):
                position = 0  # the agent has begun afresh since, and knows nothing from before that
            before = ids[at - 1] if at else None
            turns = len(ids) - at
            return HistoryCut(turn.session_id, ids[at], ids[-1], turns, before, old, None), position

        return await self._records.run(read)

    async def forget(self, cut: HistoryCut) -> None:
        """Let the agent's new session take the old one's place, and mark the turns that it does not
        know.

        Done once more it changes nothing, however many turns have followed.
        """

        def write(sql: sqlite3.Connection) -> None:
            sql.execute(
                "UPDATE sessions SET agent_session_id = ? WHERE session_id = ? "
                "AND agent_session_id = ?",
                (cut.new, cut.session_id, cut.old),
            )
            number = "(SELECT number FROM turns WHERE turn_id = ?)"
            sql.execute(
                "UPDATE turns SET forgotten = 1 "  # noqa: S608 - all of it is written here
                f"WHERE session_id = ? AND number BETWEEN {number} AND {number}",
                (cut.session_id, cut.first, cut.last),
            )
            touch(sql, cut.session_id, time.time())

        await self._records.run(write)


def _turns(
    sql: sqlite3.Connection, rest: str, *values: str | int, most_text: int | None = None
) -> list[TurnRecord]:
    # ``rest`` is always written in this module; what comes from outside is bound as a value.
    message, reply = _beginning("message", most_text), _beginning("answer", most_text)
    rows = sql.execute(
        f"SELECT turn_id, session_id, message_id, {message}, status, {reply}, tool_calls_count, "  # noqa: S608 - see above
        "error, error_code, stop_reason, started_at, ended_at, author, forgotten "
        f"FROM turns {rest}",
        values,
    )
    return [_turn(dict(row), most_text) for row in rows]


def _beginning(column: str, most_text: int | None) -> str:
    """Return what selects the bytes of so many characters of a text, or all of it."""
    if most_text is None:
        return column
    # Bytes, as SQLite's own characters end at a NUL; of none it makes NULL.
    return f"coalesce(substr(CAST({column} AS BLOB), 1, {4 * most_text}), x'') AS {column}"


def _turn(row: dict[str, Any], most_text: int | None) -> TurnRecord:
    row["forgotten"] = bool(row["forgotten"])
    if most_text is not None:
        for name in ("message", "answer"):
            row[name] = row[name].decode("utf-8", "ignore")[:most_text]
    return TurnRecord(**row)


def touch(sql: sqlite3.Connection, session_id: str, now: float) -> None:
    """Note that a session has changed."""
    sql.execute("UPDATE sessions SET updated_at = ? WHERE session_id = ?", (now, session_id))


class SettingRecords:
    """Reads and writes the settings that clients have changed, as JSON text by key."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def all(self) -> dict[str, str]:
        """Return all that were changed."""
        rows = await self._records.execute("SELECT key, value FROM settings")
        return {row["key"]: row["value"] for row in rows}

    async def keep(self, key: str, value: str) -> None:
        """Keep ``value`` (JSON text) for ``key``."""
        await self._records.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", key, value)

    async def forget(self, key: str) -> None:
        """Keep nothing for ``key`` any more."""
        await self._records.execute("DELETE FROM settings WHERE key = ?", key)
