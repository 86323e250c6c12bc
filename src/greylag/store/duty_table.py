"""Duties in SQLite; each function runs in the caller's transaction."""

import sqlite3
from datetime import datetime

from greylag.ports.store import Duty
from greylag.store import duties
from greylag.store.cursor import from_millis, millis
from greylag.store.duties import DutyRecord


def take(  # noqa: PLR0913, PLR0917 - as the port has them
    sql: sqlite3.Connection,
    name: str,
    worker: str,
    since: datetime,
    now: datetime,
    seconds: float,
) -> Duty:
    """Take a duty on; see the port."""
    verdict, after = duties.taken(_read(sql, name), worker, since, now, seconds)
    if verdict is Duty.MINE:
        _keep(sql, name, after)
    return verdict


def finish(sql: sqlite3.Connection, name: str, worker: str, now: datetime) -> None:
    """Say that a duty is done; see the port."""
    _keep(sql, name, duties.finished(_read(sql, name), worker, now))


def _read(sql: sqlite3.Connection, name: str) -> DutyRecord:
    found = sql.execute(
        "SELECT holder, until, done_at FROM duties WHERE name = ?", (name,)
    ).fetchone()
    if found is None:
        return DutyRecord()
    holder, *times = found
    return DutyRecord(holder, *(None if one is None else from_millis(one) for one in times))


def _keep(sql: sqlite3.Connection, name: str, record: DutyRecord) -> None:
    times = [None if one is None else millis(one) for one in (record.until, record.done_at)]
    sql.execute(
        "INSERT OR REPLACE INTO duties (name, holder, until, done_at) VALUES (?, ?, ?, ?)",
        (name, record.holder, *times),
    )
