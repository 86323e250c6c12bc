"""Turns and answered confirmations in the database."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from greylag.agentd.records import Database, TurnOutcome, TurnRecord

_COLUMNS = (
    "turn_id, session_id, message_id, message, status, answer, tool_calls_count, error, "
    "error_code, stop_reason, started_at, ended_at"
)


@dataclass(frozen=True, slots=True)
class StartedTurn:
    """What became of a wish to start a turn: it is new, it was there, or another one runs."""

    turn: TurnRecord
    outcome: Literal["new", "known", "busy"]


class TurnRecords:
    """Reads and writes turns. The database itself holds: one running turn in a session."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(self, turn: TurnRecord) -> StartedTurn:
        """Write a new running turn, unless its message is known or its session busy.

        Returns:
            outcome `new` with this turn; `known` with the turn that has the same message_id;
            `busy` with the turn that runs in the session.
        """
        return await self._database.run(self._start, turn)

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

    async def with_message(self, session_id: str, message_id: str) -> TurnRecord | None:
        """Return the turn that a message of a session started, None when there is none."""
        return await self._database.run(self._with_message, session_id, message_id)

    async def newest(self, session_id: str, limit: int) -> list[TurnRecord]:
        """Return the last `limit` turns of a session, newest first."""
        return await self._database.run(self._newest, session_id, limit)

    async def page(self, session_id: str, offset: int, limit: int) -> list[TurnRecord]:
        """Return `limit` turns of a session from `offset` on, oldest first."""
        return await self._database.run(self._page, session_id, offset, limit)

    async def running(self) -> list[TurnRecord]:
        """Return the turns that have no end yet."""
        return await self._database.run(self._running)

    async def decision(self, confirmation_id: str, turn_id: str) -> str | None:
        """Return how a confirmation of a turn was settled, None when it is not known."""
        return await self._database.run(self._decision, confirmation_id, turn_id)

    def _start(self, turn: TurnRecord) -> StartedTurn:
        known = self._with_message(turn.session_id, turn.message_id)
        if known is not None:
            return StartedTurn(known, "known")
        busy = self._one("session_id = ? AND status = 'running'", turn.session_id)
        if busy is not None:
            return StartedTurn(busy, "busy")
        connection = self._database.connection
        connection.execute(
            "INSERT INTO turns (turn_id, session_id, message_id, message, status, started_at) "
            "VALUES (?, ?, ?, ?, 'running', ?)",
            (turn.turn_id, turn.session_id, turn.message_id, turn.message, turn.started_at),
        )
        self._touch(turn.session_id, turn.started_at)
        return StartedTurn(turn, "new")

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

    def _with_message(self, session_id: str, message_id: str) -> TurnRecord | None:
        return self._one("session_id = ? AND message_id = ?", session_id, message_id)

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

    def _decision(self, confirmation_id: str, turn_id: str) -> str | None:
        row = self._database.connection.execute(
            "SELECT decision FROM confirmations WHERE confirmation_id = ? AND turn_id = ?",
            (confirmation_id, turn_id),
        ).fetchone()
        return None if row is None else str(row["decision"])


def _turn(row: sqlite3.Row) -> TurnRecord:
    return TurnRecord(**dict(row))
