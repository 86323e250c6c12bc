"""What the SQLite store asks of its tables: each function is a few statements, called inside a
transaction, in the thread of its connection.
"""

import sqlite3
from collections.abc import Sequence
from datetime import datetime

from greylag.domain.errors import IdempotencyConflictError, ProjectExistsError
from greylag.domain.events import Event
from greylag.domain.project import Project, ProjectRef
from greylag.ports.store import IdempotencyKey, PageQuery
from greylag.store import cursor, records, rows
from greylag.store.cursor import Position, millis
from greylag.store.records import Record

_LARGEST = 2**63 - 1
_FAR_FUTURE = Position(_LARGEST, "")

_POKE = "UPDATE projects SET due_at = min(coalesce(due_at, :now), :now), woken = 1 WHERE "
_UNSETTLED = "status <> 'inactive' OR desired <> 'inactive' OR observed_generation < generation"


def one(
    sql: sqlite3.Connection, query: str, values: tuple[str | int, ...] | dict[str, int]
) -> Record | None:
    """Return the first record that ``query``, which begins with ``rows.SELECT``, finds."""
    row = sql.execute(query, values).fetchone()
    return None if row is None else rows.from_row(row)


def find(sql: sqlite3.Connection, ref: ProjectRef) -> Record:
    """Return a project's record, or raise ``ProjectNotFoundError``."""
    record = one(
        sql,
        rows.SELECT + " WHERE user_id = ? AND project_id = ?",
        (ref.user_id, ref.project_id),
    )
    if record is None:
        raise records.not_found(ref)
    return record


def by_id(sql: sqlite3.Connection, record_id: str) -> Record | None:
    """Return the record with this id, if it is still there."""
    return one(sql, rows.SELECT + " WHERE id = ?", (record_id,))


def insert(sql: sqlite3.Connection, project: Project, key: IdempotencyKey | None) -> None:
    """Add a project; ``ProjectExistsError`` when its owner has one with this id."""
    taken = "SELECT 1 FROM projects WHERE user_id = ? AND project_id = ?"
    if sql.execute(taken, (project.user_id, project.project_id)).fetchone():
        raise ProjectExistsError(
            f"User {project.user_id!r} already has a project {project.project_id!r}."
        )
    sql.execute(rows.INSERT, rows.to_row(records.new_record(project)))
    if key is not None:
        expires = millis(project.created_at + records.KEY_LIFETIME)
        sql.execute(
            "INSERT INTO idempotency_keys (user_id, key, fingerprint, record_id, expires_at) "
            "VALUES (?, ?, ?, ?, ?)",
            (project.user_id, key.key, key.fingerprint, project.id, expires),
        )


def created_before(
    sql: sqlite3.Connection, owner: str, key: IdempotencyKey, now: datetime
) -> Record | None:
    """Return what ``key`` has created, if anything; ``IdempotencyConflictError`` when it came with
    another fingerprint. Keys that have expired are removed.
    """
    sql.execute("DELETE FROM idempotency_keys WHERE expires_at <= ?", (millis(now),))
    known = sql.execute(
        "SELECT fingerprint, record_id FROM idempotency_keys WHERE user_id = ? AND key = ?",
        (owner, key.key),
    ).fetchone()
    if known is None:
        return None
    if known["fingerprint"] != key.fingerprint:
        raise IdempotencyConflictError("This Idempotency-Key came with another request before.")
    return by_id(sql, known["record_id"])


def update(sql: sqlite3.Connection, record: Record) -> None:
    """Write all that can change of a record."""
    sql.execute(rows.UPDATE, rows.to_row(record))


def delete(sql: sqlite3.Connection, record_id: str) -> None:
    """Remove a record, its log and its idempotency key."""
    sql.execute("DELETE FROM projects WHERE id = ?", (record_id,))
    sql.execute("DELETE FROM events WHERE record_id = ?", (record_id,))
    sql.execute("DELETE FROM idempotency_keys WHERE record_id = ?", (record_id,))


def page(sql: sqlite3.Connection, owner: str, query: PageQuery) -> Sequence[Project]:
    """Return the page's projects and, if there are more, one more."""
    place = _FAR_FUTURE if query.cursor is None else cursor.decode(query.cursor)
    by_status = "" if query.status is None else "AND status = :status "
    found = sql.execute(
        f"{rows.SELECT} WHERE user_id = :owner {by_status}"
        "AND (created_at, id) < (:created, :id) ORDER BY created_at DESC, id DESC LIMIT :limit",
        {
            "owner": owner,
            "status": query.status,
            "created": place.created,
            "id": place.record_id,
            "limit": min(query.limit, _LARGEST - 1) + 1,
        },
    )
    return [rows.from_row(row).project for row in found]


def events(sql: sqlite3.Connection, ref: ProjectRef, after: int, limit: int) -> Sequence[Event]:
    """Return a part of a project's log, or raise ``ProjectNotFoundError``."""
    record = find(sql, ref)
    found = sql.execute(
        "SELECT seq, body FROM events WHERE record_id = ? AND seq > ? ORDER BY seq LIMIT ?",
        (record.project.id, min(after, _LARGEST), min(limit, _LARGEST)),
    )
    return [rows.to_event(row) for row in found]


def add_events(sql: sqlite3.Connection, record_id: str, new: Sequence[Event]) -> None:
    """Append to a log, and trim it to its length."""
    if not new:
        return
    sql.executemany(
        "INSERT INTO events (record_id, seq, body) VALUES (?, ?, ?)",
        ((record_id, event.seq, rows.event_body(event)) for event in new),
    )
    oldest = new[-1].seq - records.LOG_LENGTH
    sql.execute("DELETE FROM events WHERE record_id = ? AND seq <= ?", (record_id, oldest))


def poke(sql: sqlite3.Connection, ref: ProjectRef, now: datetime) -> int:
    """Do ``records.poked`` to one project, if it is there; return how many that was."""
    return sql.execute(
        _POKE + "user_id = :user_id AND project_id = :project_id",
        {"now": millis(now), "user_id": ref.user_id, "project_id": ref.project_id},
    ).rowcount


def poke_unsettled(sql: sqlite3.Connection, now: datetime) -> int:
    """Do ``records.poked`` to all that are ``records.unsettled``; return how many."""
    return sql.execute(_POKE + _UNSETTLED, {"now": millis(now)}).rowcount


def ping(sql: sqlite3.Connection) -> None:
    """Write something: a disk may be readable and full."""
    sql.execute("UPDATE pings SET count = count + 1")
