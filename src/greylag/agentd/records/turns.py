"""Turns and answered confirmations in the database."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from greylag.agentd.records.database import Database, TurnOutcome, TurnRecord

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
