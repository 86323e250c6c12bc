"""Users, sessions, tokens and members in SQLite: rows with all of each as JSON, and their labels.

Each function is a few statements, called inside a transaction, in the thread of its connection.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime

from greylag.domain.project import Project
from greylag.domain.users import of_project
from greylag.ports import AnyKept, Kept
from greylag.store.people import NAMES, OF_PROJECTS, expires_at, from_body, readable, to_body
from greylag.store.records import millis

# The labels first: for their order SQLite by itself would go through all that there is of the kind.
_OF_LABEL = (
    "SELECT key, body FROM people_labels CROSS JOIN people USING (kind, key) "
    "WHERE kind = ? AND label = ? ORDER BY key"
)


def find(sql: sqlite3.Connection, kind: type[Kept], key: str) -> Kept | None:
    """Return what is kept under ``key``; see the port."""
    row = sql.execute(
        "SELECT body FROM people WHERE kind = ? AND key = ?", (NAMES[kind], key)
    ).fetchone()
    return None if row is None else from_body(kind, key, row["body"])


def labelled(
    sql: sqlite3.Connection, kind: type[Kept], label: str | None, *, strict: bool
) -> Sequence[Kept]:
    """Return all that have this label; see the port."""
    if label is None:
        query = "SELECT key, body FROM people WHERE kind = ? ORDER BY key"
        found = sql.execute(query, (NAMES[kind],))
    else:
        found = sql.execute(_OF_LABEL, (NAMES[kind], label))
    return readable(kind, label, ((row["key"], row["body"]) for row in found), strict=strict)


def put(sql: sqlite3.Connection, one: AnyKept, now: datetime) -> bool:
    """Write one; see the port."""
    _forget_run_out(sql, millis(now))
    kind, until = NAMES[type(one)], expires_at(one)
    values = {
        "kind": kind,
        "key": one.key,
        "before": one.version,
        # ASCII only, so that any text can be kept.
        "body": json.dumps(to_body(one), separators=(",", ":")),
        "until": None if until is None else millis(until),
    }
    if one.version:
        written = sql.execute(
            "UPDATE people SET version = version + 1, body = :body, expires_at = :until "
            "WHERE kind = :kind AND key = :key AND version = :before",
            values,
        )
    else:
        written = sql.execute(
            "INSERT OR IGNORE INTO people (kind, key, version, body, expires_at) "
            "VALUES (:kind, :key, 1, :body, :until)",
            values,
        )
    if not written.rowcount:
        return False
    sql.execute("DELETE FROM people_labels WHERE kind = ? AND key = ?", (kind, one.key))
    sql.executemany(
        "INSERT INTO people_labels (kind, label, key) VALUES (?, ?, ?)",
        ((kind, label, one.key) for label in set(one.labels)),
    )
    return True


def remove(
    sql: sqlite3.Connection, kind: type[Kept], key: str, only: Mapping[str, str] | None = None
) -> bool:
    """Remove one; see the port."""
    if only is not None:
        found = find(sql, kind, key)
        if any(getattr(found, name, None) != value for name, value in only.items()):
            return False
    which = NAMES[kind], key
    sql.execute("DELETE FROM people_labels WHERE kind = ? AND key = ?", which)
    return sql.execute("DELETE FROM people WHERE kind = ? AND key = ?", which).rowcount > 0


def forget_project(sql: sqlite3.Connection, project: Project) -> None:
    """Remove whom a project was shared with, and by which links."""
    label = of_project(project.user_id, project.project_id)
    for kind in OF_PROJECTS:
        for one in labelled(sql, kind, label, strict=False):
            if one.record_id == project.id:
                remove(sql, kind, one.key)


def _forget_run_out(sql: sqlite3.Connection, now: int) -> None:
    sql.execute(
        "DELETE FROM people_labels WHERE (kind, key) IN "
        "(SELECT kind, key FROM people WHERE expires_at < ?)",
        (now,),
    )
    sql.execute("DELETE FROM people WHERE expires_at < ?", (now,))
