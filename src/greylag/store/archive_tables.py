"""What the archive of a SQLite store asks of its tables; see ``tables``."""

import sqlite3

from greylag.ports import Bundle, Flaw, KeptKey, Sheet
from greylag.store import sheets
from greylag.store.records import Record, from_millis, millis
from greylag.store.sqlite import tables
from greylag.store.sqlite import tables as rows

_MARK = "CREATE TABLE copying (one INTEGER PRIMARY KEY CHECK (one = 1), source TEXT NOT NULL)"
_DOUBLES = (
    "SELECT user_id, project_id, group_concat(id) AS ids FROM projects "
    "GROUP BY user_id, project_id HAVING count(*) > 1 LIMIT ?"
)
_ORPHANS = (
    "SELECT record_id, count(*) AS count FROM events "
    "WHERE NOT EXISTS (SELECT 1 FROM projects WHERE id = record_id) GROUP BY record_id LIMIT ?"
)


def mark(sql: sqlite3.Connection) -> str | None:
    """Return where an unfinished copy is from, if one is."""
    if not sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'copying'").fetchone():
        return None
    source: str = sql.execute("SELECT source FROM copying").fetchone()[0]
    return source


def count(sql: sqlite3.Connection) -> int:
    """Return how many records there are."""
    found: int = sql.execute("SELECT count(*) FROM projects").fetchone()[0]
    return found


def begin(sql: sqlite3.Connection, source: str) -> bool:
    """Mark the store as being filled from ``source``, as the port says."""
    known = mark(sql)
    if known is None and count(sql) == 0:
        sql.execute(_MARK)
        sql.execute("INSERT INTO copying (one, source) VALUES (1, ?)", (source,))
        known = source
    return known == source


def sheet(sql: sqlite3.Connection, after: str | None, limit: int) -> Sheet:
    """Return the records that follow ``after``, as the port says."""
    following = "" if after is None else "WHERE id > :after "
    found = sql.execute(
        f"{rows.SELECT} {following}ORDER BY id LIMIT :limit", {"after": after, "limit": limit}
    ).fetchall()
    taken = found[: sheets.fitting(row["last_seq"] for row in found)]
    all_read = [read(sql, row) for row in taken]
    more = len(found) == limit or len(taken) < len(found)
    return Sheet(
        bundles=[one for one in all_read if isinstance(one, Bundle)],
        unreadable=[one for one in all_read if isinstance(one, Flaw)],
        after=taken[-1]["id"] if more else None,
    )


def read(sql: sqlite3.Connection, row: sqlite3.Row) -> Bundle | Flaw:
    """Return what belongs to the record of ``row``, or what is wrong with it."""
    try:
        record = sheets.well_typed(rows.from_row(row))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        return sheets.unreadable(row["id"], dict(row), error)
    log = sql.execute("SELECT seq, body FROM events WHERE record_id = ? ORDER BY seq", (row["id"],))
    try:
        events = [rows.to_event(event) for event in log]
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        return sheets.unreadable_event(row["id"], error)
    keys = sql.execute("SELECT * FROM idempotency_keys WHERE record_id = ?", (row["id"],))
    return Bundle(
        project=record.project,
        claims=record.claims,
        last_seq=record.last_seq,
        events=events,
        keys=[
            KeptKey(key["user_id"], key["key"], key["fingerprint"], from_millis(key["expires_at"]))
            for key in keys
        ],
    )


def put(sql: sqlite3.Connection, bundle: Bundle) -> None:
    """Put one record there, in place of what has its id."""
    project = bundle.project
    other = "SELECT 1 FROM projects WHERE user_id = ? AND project_id = ? AND id <> ?"
    if sql.execute(other, (project.user_id, project.project_id, project.id)).fetchone():
        raise sheets.taken_by_another(project.user_id, project.project_id)
    tables.delete(sql, project.id)
    sql.execute(rows.INSERT, rows.to_row(Record(project, bundle.claims, bundle.last_seq)))
    tables.add_events(sql, project.id, bundle.events)
    sql.executemany(
        "INSERT OR REPLACE INTO idempotency_keys "
        "(user_id, key, fingerprint, record_id, expires_at) VALUES (?, ?, ?, ?, ?)",
        (
            (key.user_id, key.key, key.fingerprint, project.id, millis(key.expires_at))
            for key in bundle.keys
        ),
    )


def flaws(sql: sqlite3.Connection) -> list[Flaw]:
    """Return what is wrong with the file as such."""
    source = mark(sql)
    damage = [line for (line,) in sql.execute(f"PRAGMA quick_check({sheets.NAMED})")]
    found = [] if source is None else [sheets.unfinished_copy(source)]
    found += [_damaged(line) for line in damage if line != "ok"]
    found += [
        sheets.doubles(row["user_id"], row["project_id"], row["ids"].split(","))
        for row in sql.execute(_DOUBLES, (sheets.NAMED,))
    ]
    found += [
        sheets.event_without_project(row["record_id"], row["count"])
        for row in sql.execute(_ORPHANS, (sheets.NAMED,))
    ]
    return found


def _damaged(line: str) -> Flaw:
    return Flaw(
        "damaged_file",
        "-",
        f"SQLite says of the file: {line}.",
        "Restore the file from a backup, or save what can be read with `sqlite3 FILE .recover`.",
    )
