"""Whose turn it is in the SQLite store: the order of claims, found by a few steps on indexes.

Called inside a transaction, in the thread of its connection, like ``tables``.
"""

import sqlite3
from collections import Counter
from datetime import datetime

from greylag.store import cursor, rows, tables
from greylag.store.cursor import millis
from greylag.store.records import Record

_LONGEST_DUE = "claimable_at <= :now ORDER BY claimable_at, id LIMIT 1"
_NOT_AT_WORK = "user_id NOT IN (SELECT user_id FROM projects WHERE lease_until > :now)"
_AT_WORK = "SELECT user_id FROM projects WHERE lease_until > ?"
_FIRST_OF_USER = (
    "SELECT claimable_at, id FROM projects WHERE user_id = ? AND claimable_at <= ? "
    "ORDER BY claimable_at, id LIMIT 1"
)


def next_claimable(sql: sqlite3.Connection, now: datetime) -> Record | None:
    """Return the record whose turn it is, in the order of ``records.turn``; ``None`` when nothing
    is due.
    """
    of_the_idle = f"{rows.SELECT} WHERE {_NOT_AT_WORK} AND {_LONGEST_DUE}"
    found = tables.one(sql, of_the_idle, {"now": millis(now)})
    return found or _of_the_least_busy(sql, millis(now))


def next_due(sql: sqlite3.Connection) -> datetime | None:
    """Return when the first record can be claimed."""
    first = sql.execute(
        "SELECT claimable_at FROM projects WHERE claimable_at IS NOT NULL "
        "ORDER BY claimable_at LIMIT 1"
    ).fetchone()
    return None if first is None else cursor.from_millis(first[0])


def _of_the_least_busy(sql: sqlite3.Connection, now: int) -> Record | None:
    """Return the record whose turn it is when all that is due belongs to users who have leases."""
    if tables.one(sql, f"{rows.SELECT} WHERE {_LONGEST_DUE}", {"now": now}) is None:
        return None
    # As many steps as there are leases at most, however many projects are due.
    at_work = Counter(user_id for (user_id,) in sql.execute(_AT_WORK, (now,)))
    firsts = (
        (leases, sql.execute(_FIRST_OF_USER, (user_id, now)).fetchone())
        for user_id, leases in at_work.items()
    )
    turns = [(leases, *first) for leases, first in firsts if first is not None]
    return tables.by_id(sql, min(turns)[-1]) if turns else None
