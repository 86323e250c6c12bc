"""Sessions and settings in the database."""

import sqlite3

from greylag.agentd.records.database import Database, SessionRecord

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
