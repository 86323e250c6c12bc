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

# By what entries are found. What is below an object has a slash next, and "0" is what follows "/".
_FOUND_BY = {
    "object": "object >= :object AND object < :object || '0' "
    "AND (object = :object OR object > :object || '/')",
    "user": "actor = :user",
    "action": "action = :action",
    "result": "result = :result",
}
_TIMES = {"since": "at >= :since", "until": "at < :until"}
_PLACE = "number > :after AND number < :before"
_MANY = 10_000
_LARGEST = 2**63 - 1
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
        "before": _LARGEST if before is None else before,
        "after": after,
        "limit": limit,
    }
    terms, order = _terms(sql, values), "number" if before is None else "number DESC"
    times = " AND ".join(term for name, term in _TIMES.items() if values[name] is not None)
    if times:
        terms.append(f"+({times})")
        values |= _numbers_of(sql, times, order, values)
    where = " AND ".join([*terms, _PLACE])
    rows = sql.execute(
        f"SELECT number, body FROM audit WHERE {where} ORDER BY {order} LIMIT :limit",  # noqa: S608 - terms above
        values,
    )
    return [_told(row) for row in rows]


def _terms(sql: sqlite3.Connection, values: Mapping[str, Any]) -> list[str]:
    """Return what entries must fulfil, so that they are looked up by what the fewest have.

    SQLite does not know which that is. With a plus a term goes by no index.
    """
    asked = [name for name in _FOUND_BY if values[name] is not None]
    counted = {name: _count(sql, _FOUND_BY[name], values) for name in asked}
    terms = {name: f"+({_FOUND_BY[name]})" for name in asked}
    if (rarest := min(asked, key=counted.__getitem__, default=None)) is not None:
        found_by = _FOUND_BY[rarest]
        if rarest != "object":
            terms[rarest] = found_by
        elif counted[rarest] < _MANY:  # of more a page is soon full anyway
            terms[rarest] = f"number IN (SELECT number FROM audit WHERE {found_by})"  # noqa: S608 - terms above
    return list(terms.values())


def _count(sql: sqlite3.Connection, term: str, values: Mapping[str, Any]) -> int:
    some = f"SELECT 1 FROM audit WHERE {term} LIMIT {_MANY}"  # noqa: S608 - terms above
    found: int = sql.execute(f"SELECT count(*) FROM ({some})", values).fetchone()[0]  # noqa: S608 - the same
    return found


def _numbers_of(
    sql: sqlite3.Connection, times: str, order: str, values: Mapping[str, Any]
) -> dict[str, int]:
    """Return between which numbers the entries of a time are, unless they are many and begin where
    one looks: then to look that up would take longer than it saves.
    """
    if _count(sql, times, values) == _MANY:
        here = f"SELECT {times} FROM audit WHERE {_PLACE} ORDER BY {order} LIMIT 1"  # noqa: S608 - terms above
        found = sql.execute(here, values).fetchone()
        if found is None or found[0]:
            return {}
    # Numbers grow with time, but where clocks differ.
    query = f"SELECT min(+number), max(+number) FROM audit WHERE {times}"  # noqa: S608 - terms above
    first, last = sql.execute(query, values).fetchone()
    if first is None:
        return {"before": 0}
    return {"after": max(values["after"], first - 1), "before": min(values["before"], last + 1)}


def _told(row: sqlite3.Row) -> NumberedEntry:
    try:
        told = parse_json(row["body"])
    except ValueError:
        told = None
    return row["number"], told if isinstance(told, dict) else {}


def trim(sql: sqlite3.Connection, before: datetime, limit: int) -> int:
    """Remove the oldest entries; see the port."""
    oldest = sql.execute("SELECT min(number) FROM audit").fetchone()[0]
    if oldest is None:
        return 0
    end = oldest + limit
    (first,) = sql.execute(
        "SELECT coalesce(min(number), :end) FROM audit WHERE number < :end AND at >= :before",
        {"end": end, "before": rfc3339(before)},
    ).fetchone()
    last = sql.execute(
        "SELECT number, body FROM audit WHERE number < ? ORDER BY number DESC LIMIT 1", (first,)
    ).fetchone()
    if last is None:
        return 0
    said = encodable(str(_told(last)[1].get("hash", "")))
    sql.execute(_KEEP, ("start", last["number"], said))
    return sql.execute("DELETE FROM audit WHERE number <= ?", (last["number"],)).rowcount
