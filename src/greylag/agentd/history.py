"""What an undo makes the agent forget: the end of a session's history, from a turn on.

Greylag's own record keeps those turns, marked. The agent gets a session that knows only what was
before them, in the place of its old one.
"""

import sqlite3
import time
from dataclasses import dataclass

from greylag.agentd.records import Records, TurnRecord, touch


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


async def end_from(
    records: Records, turn: TurnRecord, old: str | None
) -> tuple[HistoryCut, int | None]:
    """Return the end of a history, from a turn that is not forgotten: a cut without its ``new``,
    and how many messages precede it (None: that is not known).
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

    return await records.run(read)


async def apply(records: Records, cut: HistoryCut) -> None:
    """Let the agent's new session take its place, and mark the turns that it does not know.

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

    await records.run(write)
