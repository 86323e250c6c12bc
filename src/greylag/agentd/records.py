"""What agentd remembers of sessions and turns, in one SQLite file.

All statements run in one thread of their own, one after the other; each write is durable
(synchronous=FULL) before its call returns.
"""

import asyncio
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, ParamSpec, Self, TypeVar

TurnStatus = Literal["running", "completed", "cancelled", "error"]


class StorageError(Exception):
    """The records cannot be read or written (disk full, file broken); the message says why."""


_P = ParamSpec("_P")
_R = TypeVar("_R")

SCHEMA = """
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


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One conversation. Times are Unix seconds.

    Attributes:
        session_id: our own id, a UUID; never used twice.
        agent_session_id: the agent's id for it; None until the agent knows the session.
        title: a name for people.
        created_at: when it was made.
        updated_at: when its last turn began or ended.
        message_count: user messages and answers so far.
    """

    session_id: str
    agent_session_id: str | None
    title: str
    created_at: float
    updated_at: float
    message_count: int


def session_title(session_id: str) -> str:
    """Return a session's title for goose, which would else ask the model for one."""
    return f"Session {session_id[:8]}"


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """A message and what became of it. Times are Unix seconds; `answer` is whole at the end."""

    turn_id: str
    session_id: str
    message_id: str
    message: str
    status: TurnStatus
    answer: str
    tool_calls_count: int
    error: str | None
    error_code: str | None
    stop_reason: str | None
    started_at: float
    ended_at: float | None


def new_turn(session_id: str, message: str, message_id: str | None, now: float) -> TurnRecord:
    """Return the record of a turn that is to begin; a message without an id gets the turn's."""
    turn_id = uuid.uuid4().hex
    return TurnRecord(
        turn_id=turn_id,
        session_id=session_id,
        message_id=message_id or turn_id,
        message=message,
        status="running",
        answer="",
        tool_calls_count=0,
        error=None,
        error_code=None,
        stop_reason=None,
        started_at=now,
        ended_at=None,
    )


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """How a turn ended, as its record keeps it."""

    status: TurnStatus
    answer: str
    tool_calls_count: int
    error: str | None
    error_code: str | None
    stop_reason: str | None


class Database:
    """One SQLite connection and the one thread that may touch it."""

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._thread = thread

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open (or make) the file at `path`, with its tables.

        Raises:
            StorageError: it cannot be opened, or is no file of ours.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agentd-records")
        loop = asyncio.get_running_loop()
        try:
            connection = await loop.run_in_executor(thread, _connect, path)
        except sqlite3.Error as error:
            thread.shutdown()
            raise _translated(error) from error
        return cls(connection, thread)

    async def run(
        self,
        work: Callable[_P, _R],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _R:
        """Run `work` in the database's thread, inside one transaction, and return its result.

        A cancelled caller leaves the transaction to finish: it is done whole or not at all.

        Raises:
            StorageError: nothing was changed.
        """

        def transaction() -> _R:
            with self._connection:
                return work(*args, **kwargs)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)
        except sqlite3.Error as error:
            raise _translated(error) from error

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, for work that `run` was given."""
        return self._connection

    async def close(self) -> None:
        """Close the file; no call may follow."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()


def _translated(error: sqlite3.Error) -> StorageError:
    return StorageError(f"The environment's records cannot be used: {error}.")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=True)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.executescript(SCHEMA)
    return connection


# Sessions and settings in the database.

_SELECT = """
SELECT session_id, agent_session_id, title, created_at, updated_at,
       (SELECT count(*) + coalesce(sum(answer <> ''), 0) FROM turns
         WHERE turns.session_id = sessions.session_id) AS message_count
FROM sessions WHERE deleted_at IS NULL
"""


class SessionRecords:
    """Reads and writes sessions; a deleted one is kept as a tombstone and never shown again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, session: SessionRecord) -> None:
        """Write a new session."""
        await self._database.run(self._add, session)

    async def get(self, session_id: str) -> SessionRecord | None:
        """Return a session, None when there is none (or it was deleted)."""
        return await self._database.run(self._get, session_id)

    async def all(self) -> list[SessionRecord]:
        """Return every session, newest first."""
        return await self._database.run(self._all)

    async def bind(self, session_id: str, agent_session_id: str) -> None:
        """Remember the agent's own id of a session."""
        await self._database.run(self._bind, session_id, agent_session_id)

    async def delete(self, session_id: str, now: float) -> list[str]:
        """Bury a session and forget what was said in it; return the ids of its turns."""
        return await self._database.run(self._delete, session_id, now)

    async def settings(self) -> dict[str, str]:
        """Return the settings that were changed, as JSON text by key."""
        return await self._database.run(self._settings)

    async def set_setting(self, key: str, value: str | None) -> None:
        """Keep `value` (JSON text) for `key`; None forgets it."""
        await self._database.run(self._set_setting, key, value)

    def _add(self, session: SessionRecord) -> None:
        self._database.connection.execute(
            "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, NULL)",
            (
                session.session_id,
                session.agent_session_id,
                session.title,
                session.created_at,
                session.updated_at,
            ),
        )

    def _get(self, session_id: str) -> SessionRecord | None:
        row = self._database.connection.execute(
            f"{_SELECT} AND session_id = ?",
            (session_id,),
        ).fetchone()
        return None if row is None else _session(row)

    def _all(self) -> list[SessionRecord]:
        rows = self._database.connection.execute(f"{_SELECT} ORDER BY created_at DESC, rowid DESC")
        return [_session(row) for row in rows]

    def _bind(self, session_id: str, agent_session_id: str) -> None:
        self._database.connection.execute(
            "UPDATE sessions SET agent_session_id = ? WHERE session_id = ?",
            (agent_session_id, session_id),
        )

    def _delete(self, session_id: str, now: float) -> list[str]:
        connection = self._database.connection
        rows = connection.execute(
            "DELETE FROM turns WHERE session_id = ? RETURNING turn_id", (session_id,)
        ).fetchall()
        turn_ids = [row["turn_id"] for row in rows]
        connection.executemany(
            "DELETE FROM confirmations WHERE turn_id = ?", [(turn_id,) for turn_id in turn_ids]
        )
        connection.execute(
            "UPDATE sessions SET deleted_at = ?, title = '' WHERE session_id = ?",
            (now, session_id),
        )
        return turn_ids

    def _settings(self) -> dict[str, str]:
        rows = self._database.connection.execute("SELECT key, value FROM settings")
        return {row["key"]: row["value"] for row in rows}

    def _set_setting(self, key: str, value: str | None) -> None:
        connection = self._database.connection
        if value is None:
            connection.execute("DELETE FROM settings WHERE key = ?", (key,))
        else:
            connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, value))


def _session(row: sqlite3.Row) -> SessionRecord:
    return SessionRecord(**dict(row))


# Turns and answered confirmations in the database.

_COLUMNS = (
    "turn_id, session_id, message_id, message, status, answer, tool_calls_count, error, "
    "error_code, stop_reason, started_at, ended_at"
)


@dataclass(frozen=True, slots=True)
class StartedTurn:
    """What became of a wish to start a turn.

    Attributes:
        outcome: `new`; `known`, the message has a turn already; `busy`, another turn runs in the
            session; `no_session`, there is no such session.
        turn: the turn that `outcome` speaks of.
        agent_session_id: what the agent calls the session of a new turn, None if not known to it.
    """

    outcome: Literal["new", "known", "busy", "no_session"]
    turn: TurnRecord
    agent_session_id: str | None = None


class TurnRecords:
    """Reads and writes turns. The database itself holds: one running turn in a session."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(self, turn: TurnRecord, title: str | None = None) -> StartedTurn:
        """Write a new running turn, unless its message is known or its session busy.

        Args:
            turn: the turn as it is to be.
            title: makes the turn's session, with this title; None takes one that is there.
        """
        return await self._database.run(self._start, turn, title)

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
        await self._database.run(self._end, turn_id, outcome, decisions, now)

    async def abandon(self, turn_id: str) -> None:
        """Take back a turn that never began; its message may be sent again."""
        await self._database.run(self._abandon, turn_id)

    async def get(self, turn_id: str) -> TurnRecord | None:
        """Return a turn, None when there is none."""
        return await self._database.run(self._get, turn_id)

    async def with_message(self, message_id: str) -> TurnRecord | None:
        """Return the turn that a message started, None when there is none."""
        return await self._database.run(self._with_message, message_id)

    async def newest(self, session_id: str, limit: int) -> list[TurnRecord]:
        """Return the last `limit` turns of a session, newest first."""
        return await self._database.run(self._newest, session_id, limit)

    async def page(self, session_id: str, offset: int, limit: int) -> list[TurnRecord]:
        """Return `limit` turns of a session from `offset` on, oldest first."""
        return await self._database.run(self._page, session_id, offset, limit)

    async def running(self) -> list[TurnRecord]:
        """Return the turns that have no end yet."""
        return await self._database.run(self._running)

    async def ids(self) -> set[str]:
        """Return the ids of all turns."""
        return await self._database.run(self._ids)

    async def decision(self, confirmation_id: str, turn_id: str) -> str | None:
        """Return how a confirmation of a turn was settled, None when it is not known."""
        return await self._database.run(self._decision, confirmation_id, turn_id)

    def _start(self, turn: TurnRecord, title: str | None) -> StartedTurn:
        known = self._with_message(turn.message_id)
        if known is not None:
            return StartedTurn("known", known)
        connection = self._database.connection
        if title is not None:
            connection.execute(
                "INSERT INTO sessions VALUES (?, NULL, ?, ?, ?, NULL)",
                (turn.session_id, title, turn.started_at, turn.started_at),
            )
        session = connection.execute(
            "SELECT agent_session_id FROM sessions WHERE session_id = ? AND deleted_at IS NULL",
            (turn.session_id,),
        ).fetchone()
        if session is None:
            return StartedTurn("no_session", turn)
        busy = self._one("session_id = ? AND status = 'running'", turn.session_id)
        if busy is not None:
            return StartedTurn("busy", busy)
        connection.execute(
            "INSERT INTO turns (turn_id, session_id, message_id, message, status, started_at) "
            "VALUES (?, ?, ?, ?, 'running', ?)",
            (turn.turn_id, turn.session_id, turn.message_id, turn.message, turn.started_at),
        )
        self._touch(turn.session_id, turn.started_at)
        return StartedTurn("new", turn, session["agent_session_id"])

    def _end(
        self, turn_id: str, outcome: TurnOutcome, decisions: Mapping[str, str], now: float
    ) -> None:
        row = self._database.connection.execute(
            "UPDATE turns SET status = ?, answer = ?, tool_calls_count = ?, error = ?, "
            "error_code = ?, stop_reason = ?, ended_at = ? "
            "WHERE turn_id = ? AND status = 'running' RETURNING session_id",
            (
                outcome.status,
                outcome.answer,
                outcome.tool_calls_count,
                outcome.error,
                outcome.error_code,
                outcome.stop_reason,
                now,
                turn_id,
            ),
        ).fetchone()
        if row is None:
            return
        self._touch(row["session_id"], now)
        self._database.connection.executemany(
            "INSERT OR IGNORE INTO confirmations VALUES (?, ?, ?)",
            [(confirmation_id, turn_id, made) for confirmation_id, made in decisions.items()],
        )

    def _abandon(self, turn_id: str) -> None:
        self._database.connection.execute("DELETE FROM turns WHERE turn_id = ?", (turn_id,))

    def _touch(self, session_id: str, now: float) -> None:
        self._database.connection.execute(
            "UPDATE sessions SET updated_at = ? WHERE session_id = ?", (now, session_id)
        )

    def _get(self, turn_id: str) -> TurnRecord | None:
        return self._one("turn_id = ?", turn_id)

    def _with_message(self, message_id: str) -> TurnRecord | None:
        return self._one("message_id = ?", message_id)

    def _one(self, condition: str, *values: str) -> TurnRecord | None:
        rows = self._many(f"WHERE {condition}", *values)
        return rows[0] if rows else None

    def _many(self, rest: str, *values: str | int) -> list[TurnRecord]:
        # `rest` is always written in this module; what comes from outside is bound as a value.
        rows = self._database.connection.execute(
            f"SELECT {_COLUMNS} FROM turns {rest}",  # noqa: S608 - see above
            values,
        )
        return [_turn(row) for row in rows]

    def _newest(self, session_id: str, limit: int) -> list[TurnRecord]:
        return self._many("WHERE session_id = ? ORDER BY number DESC LIMIT ?", session_id, limit)

    def _page(self, session_id: str, offset: int, limit: int) -> list[TurnRecord]:
        return self._many(
            "WHERE session_id = ? ORDER BY number LIMIT ? OFFSET ?", session_id, limit, offset
        )

    def _running(self) -> list[TurnRecord]:
        return self._many("WHERE status = 'running' ORDER BY number")

    def _ids(self) -> set[str]:
        rows = self._database.connection.execute("SELECT turn_id FROM turns")
        return {row["turn_id"] for row in rows}

    def _decision(self, confirmation_id: str, turn_id: str) -> str | None:
        row = self._database.connection.execute(
            "SELECT decision FROM confirmations WHERE confirmation_id = ? AND turn_id = ?",
            (confirmation_id, turn_id),
        ).fetchone()
        return None if row is None else str(row["decision"])


def _turn(row: sqlite3.Row) -> TurnRecord:
    return TurnRecord(**dict(row))
