"""The audit trail in SQLite: a row for each entry, and where the chain begins and ends.

Each function is a few statements, called inside a transaction, in the thread of its connection: so
whoever appends knows the last entry, in whichever process it was appended.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from greylag.common.clock import rfc3339
from greylag.common.typed import encodable, parse_json
from greylag.domain.audit import START, AuditBounds, AuditEntry, AuditEvent, Link, chained, to_json
from greylag.ports import AuditFilter, NumberedEntry

_TERMS = {
    "user": "actor = :user",
    "action": "action = :action",
    "result": "result = :result",
    "since": "at >= :since",
    "until": "at < :until",
    "before": "number < :before",
    "after": "number > :after",
    # What is below it has a slash next, and "0" is what follows "/". Objects are many, and each has
    # few entries: so they are looked up first.
    "object": "number IN (SELECT number FROM audit WHERE object = :object UNION ALL "
    "SELECT number FROM audit WHERE object > :object || '/' AND object < :object || '0')",
}
_KEEP = "INSERT OR REPLACE INTO audit_bounds (place, number, hash) VALUES (?, ?, ?)"


def append(sql: sqlite3.Connection, event: AuditEvent) -> AuditEntry:
    """Append an entry; see the port."""
    entry = chained(event, bounds(sql).end)
    put(sql, entry.number, to_json(entry))
    sql.execute(_KEEP, ("end", entry.number, entry.hash))
    return entry


def put(sql: sqlite3.Connection, number: int, told: Mapping[str, Any]) -> None:
    """Write an entry in JSON's terms, which somebody may have damaged."""
    actor = told.get("actor")
    found_by = [told.get(name) for name in ("action", "object", "result")]
    sql.execute(
        "INSERT INTO audit (number, body, at, actor, action, object, result) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            number,
            json.dumps(told, separators=(",", ":")),
            str(told.get("at", "")),
            actor.get("user") if isinstance(actor, Mapping) else None,
            *("" if value is None else str(value) for value in found_by),
        ),
    )


def clear(sql: sqlite3.Connection, kept: AuditBounds) -> None:
    """Remove all entries; those that come have these bounds."""
    sql.execute("DELETE FROM audit")
    sql.execute("DELETE FROM audit_bounds")
    for place, link in (("start", kept.start), ("end", kept.end)):
        sql.execute(_KEEP, (place, link.number, link.hash))


def bounds(sql: sqlite3.Connection) -> AuditBounds:
    """Return where the chain begins and ends; see the port."""
    # A hash that is no text breaks the chain, and nobody's writes.
    found = {
        row["place"]: Link(row["number"], str(row["hash"]))
        for row in sql.execute("SELECT place, number, hash FROM audit_bounds")
    }
    return AuditBounds(found.get("start", START), found.get("end", START))


def read(
    sql: sqlite3.Connection, asked: AuditFilter, limit: int, before: int | None, after: int
) -> Sequence[NumberedEntry]:
    """Return entries; see the port."""
    values = {
        **asdict(asked),
        "since": asked.since and rfc3339(asked.since),
        "until": asked.until and rfc3339(asked.until),
        "before": before,
        "after": after,
        "limit": limit,
    }
    where = " AND ".join(term for name, term in _TERMS.items() if values[name] is not None)
    order = "number" if before is None else "number DESC"
    rows = sql.execute(
        f"SELECT number, body FROM audit WHERE {where} ORDER BY {order} LIMIT :limit",  # noqa: S608 - terms above
        values,
    )
    return [_told(row) for row in rows]


def _told(row: sqlite3.Row) -> NumberedEntry:
    try:
        told = parse_json(row["body"])
    except ValueError:
        told = None
    return row["number"], told if isinstance(told, dict) else {}


def trim(sql: sqlite3.Connection, before: datetime) -> int:
    """Remove the oldest entries; see the port."""
    first = sql.execute(
        "SELECT min(number) FROM audit WHERE at >= ?", (rfc3339(before),)
    ).fetchone()[0]
    last = sql.execute(
        "SELECT number, body FROM audit WHERE ? IS NULL OR number < ? ORDER BY number DESC LIMIT 1",
        (first, first),
    ).fetchone()
    if last is None:
        return 0
    said = encodable(str(_told(last)[1].get("hash", "")))
    sql.execute(_KEEP, ("start", last["number"], said))
    return sql.execute("DELETE FROM audit WHERE number <= ?", (last["number"],)).rowcount
