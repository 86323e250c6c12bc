"""What agentd remembers of sessions and turns, in one SQLite file.

All statements run in one thread of their own, one after the other; each write is durable
(synchronous=FULL) before its call returns.
"""

import asyncio
import sqlite3
import uuid
from collections.abc import Callable
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
