"""What the SQLite store asks of its tables: records and events as rows and back, and the queries.

Each function is a few statements, called inside a transaction, in the thread of its connection.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, fields
from datetime import datetime
from functools import lru_cache
from itertools import islice
from typing import Any

import structlog

from greylag.common.sqlite import NotUtf8, placeholder
from greylag.common.typed import check_types
from greylag.domain.names import EnvironmentNames
from greylag.domain.project import (
    MOMENTS,
    MOST_AHEAD,
    Event,
    Lease,
    Project,
    ProjectRecord,
    ProjectRef,
    Status,
    project_of,
)
from greylag.ports import (
    LONGEST_SIGNED,
    Duty,
    IdempotencyKey,
    PageQuery,
    ProjectPage,
    RecordUnreadableError,
)
from greylag.store import records
from greylag.store.records import DutyRecord, Position, from_millis, millis

_JSON = ("metadata", "error", "source")
_NAMES = tuple(field.name for field in fields(EnvironmentNames))
_OWN = tuple(field.name for field in fields(Project) if field.name not in {"names", "lease"})
_COLUMNS = (*_OWN, *_NAMES, *("lease_worker", "lease_number", "lease_until", "claims", "woken"))
_NEVER_CHANGE = {"id", "user_id", "project_id", "created_at", "source", "environment_user", *_NAMES}
_CHANGING = [name for name in _COLUMNS if name not in _NEVER_CHANGE]
_REMEMBERED = 10_000
_REMEMBERED_TEXT = 1024
_PAGES = 64

_log = structlog.get_logger(__name__)

_MADE_FOR = "coalesce(environment_user, user_id) = :user_id AND project_id = :project_id"

SELECT = f"SELECT {', '.join(_COLUMNS)} FROM projects"  # noqa: S608 - only the names above
INSERT = (
    f"INSERT INTO projects ({', '.join(_COLUMNS)}) "  # noqa: S608 - only the names above
    f"VALUES ({', '.join(f':{name}' for name in _COLUMNS)})"
)
UPDATE = (
    f"UPDATE projects SET {', '.join(f'{name} = :{name}' for name in _CHANGING)} WHERE id = :id"  # noqa: S608 - only the names above
)


def to_row(record: ProjectRecord) -> dict[str, Any]:
    """Return the values of ``INSERT`` and ``UPDATE`` for ``record``."""
    project, lease = record.project, record.project.lease
    row = {name: getattr(project, name) for name in _OWN}
    row |= {name: None if row[name] is None else millis(row[name]) for name in MOMENTS}
    return {
        **row,
        **asdict(project.names),
        "metadata": _dump(dict(project.metadata)),
        "error": _dump(asdict(project.error)) if project.error else None,
        "source": _dump(asdict(project.source)) if project.source else None,
        "lease_worker": lease.worker if lease else None,
        "lease_number": lease.number if lease else None,
        "lease_until": millis(lease.until) if lease else None,
        "claims": record.claims,
        "woken": record.woken,
    }


def from_row(row: sqlite3.Row | dict[str, Any]) -> ProjectRecord:
    """Return the record that a row of ``SELECT`` holds.

    Raises:
        RecordUnreadableError: something else has written it.
    """
    try:
        record = _record(row)
        check_types(record)
    except records.MALFORMED as error:
        whose = row["user_id"], row["project_id"]
        raise records.cannot_be_read(row["id"], *whose, error) from error
    return record


def _record(row: sqlite3.Row | dict[str, Any]) -> ProjectRecord:
    for name in _COLUMNS:
        _check_text(row[name], name)
    kept = {name: row[name] for name in _OWN}
    kept |= {name: json.loads(kept[name]) for name in _JSON if kept[name] is not None}
    kept |= {"error_terminal": bool(kept["error_terminal"]), "lease": _lease(row)}
    kept["names"] = {name: row[name] for name in _NAMES}
    return ProjectRecord(project_of(kept, from_millis), row["claims"], bool(row["woken"]))


def event_body(event: Event) -> str:
    """Return all of ``event`` but its number, as JSON."""
    body = asdict(event) | {"at": millis(event.at)}
    del body["seq"]
    return _dump(body)


def to_event(row: sqlite3.Row) -> Event:
    """Return the event that a row with ``seq`` and ``body`` holds.

    Raises:
        TypeError: or another of ``records.MALFORMED``: it is none.
    """
    _check_text(row["body"], "body")
    body = json.loads(row["body"])
    changed = {"at": from_millis(body["at"]), "status": Status(body["status"])}
    event = Event(seq=row["seq"], **(body | changed))
    check_types(event)
    return event


def _check_text(value: object, name: str) -> None:
    if isinstance(value, NotUtf8):
        raise TypeError(f"{name} is not UTF-8")


def _lease(row: sqlite3.Row | dict[str, Any]) -> Lease | None:
    if row["lease_until"] is None:
        return None
    return Lease(row["lease_worker"], row["lease_number"], from_millis(row["lease_until"]))


def _dump(value: dict[str, Any]) -> str:
    # ASCII only, so that any text can be kept, with unpaired surrogates too.
    return json.dumps(value, separators=(",", ":"))


_LARGEST = 2**63 - 1
_FAR_FUTURE = Position(_LARGEST, "")

_POKE = (
    "UPDATE projects SET due_at = min(coalesce(due_at, :now), :now), woken = 1, "
    "lease_until = CASE WHEN lease_until > :latest THEN :now ELSE lease_until END WHERE "
)
_UNSETTLED = "status <> 'inactive' OR desired <> 'inactive' OR observed_generation < generation"


def one(
    sql: sqlite3.Connection, query: str, values: tuple[str | int, ...] | dict[str, Any]
) -> ProjectRecord | None:
    """Return the first record that ``query``, which begins with ``SELECT``, finds."""
    row = sql.execute(query, values).fetchone()
    return None if row is None else from_row(row)


def find(sql: sqlite3.Connection, ref: ProjectRef) -> ProjectRecord:
    """Return a project's record.

    Raises:
        ProjectNotFoundError: the owner has none of this id.
    """
    record = one(
        sql,
        SELECT + " WHERE user_id = ? AND project_id = ?",
        (ref.user_id, ref.project_id),
    )
    if record is None:
        raise records.not_found(ref)
    return record


def of_environment(sql: sqlite3.Connection, ref: ProjectRef) -> ProjectRecord | None:
    """Return the record whose environment a cluster knows by ``ref``, if there is one."""
    return one(sql, f"{SELECT} WHERE {_MADE_FOR}", asdict(ref))


def name_of_environment(sql: sqlite3.Connection, ref: ProjectRef) -> ProjectRef | None:
    """Return what the project is called now that ``of_environment`` finds, readable or not."""
    query = f"SELECT user_id, project_id FROM projects WHERE {_MADE_FOR}"  # noqa: S608 - terms above
    found = sql.execute(query, asdict(ref)).fetchone()
    return None if found is None else ProjectRef(*found)


def by_id(sql: sqlite3.Connection, record_id: str) -> ProjectRecord | None:
    """Return the record with this id, if it is still there."""
    return one(sql, SELECT + " WHERE id = ?", (record_id,))


def insert(sql: sqlite3.Connection, project: Project, key: IdempotencyKey | None) -> None:
    """Add a project; ``ProjectExistsError`` when its owner has one with this id, or another has
    its environment.
    """
    check_free(sql, project.ref)
    if of_environment(sql, project.made_for) is not None:
        raise records.environment_taken(project.made_for)
    sql.execute(INSERT, to_row(records.new_record(project)))
    if key is not None:
        now = (millis(project.created_at),)
        sql.execute("DELETE FROM idempotency_keys WHERE expires_at <= ?", now)
        expires = millis(project.created_at + records.KEY_LIFETIME)
        sql.execute(
            "INSERT INTO idempotency_keys (user_id, key, fingerprint, record_id, expires_at) "
            "VALUES (?, ?, ?, ?, ?)",
            (project.user_id, key.key, key.fingerprint, project.id, expires),
        )


def check_free(sql: sqlite3.Connection, ref: ProjectRef) -> None:
    """Raise ``ProjectExistsError`` when the user has a project of this id."""
    taken = "SELECT 1 FROM projects WHERE user_id = ? AND project_id = ?"
    if sql.execute(taken, (ref.user_id, ref.project_id)).fetchone():
        raise records.exists(ref)


def created_before(
    sql: sqlite3.Connection, owner: str, key: IdempotencyKey, now: datetime
) -> Project | None:
    """Return what ``key`` has created, if anything; ``IdempotencyConflictError`` when it came with
    another fingerprint, or that is another's by now.
    """
    known = sql.execute(
        "SELECT fingerprint, record_id FROM idempotency_keys "
        "WHERE user_id = ? AND key = ? AND expires_at > ?",
        (owner, key.key, millis(now)),
    ).fetchone()
    if known is None:
        return None
    records.check_same(key, known["fingerprint"])
    record = by_id(sql, known["record_id"])
    return None if record is None else records.check_still_theirs(record.project, owner)


def update(sql: sqlite3.Connection, record: ProjectRecord) -> None:
    """Write all that can change of a record."""
    sql.execute(UPDATE, to_row(record))


def hand_over(sql: sqlite3.Connection, record: ProjectRecord) -> None:
    """Write whose a record is now."""
    check_free(sql, record.project.ref)
    sql.execute(
        "UPDATE projects SET user_id = :user_id, environment_user = :environment_user, "
        "updated_at = :updated_at WHERE id = :id",
        to_row(record),
    )


def delete(sql: sqlite3.Connection, record_id: str) -> None:
    """Remove a record, its log, its idempotency key and what was said in it."""
    sql.execute("DELETE FROM projects WHERE id = ?", (record_id,))
    sql.execute("DELETE FROM events WHERE record_id = ?", (record_id,))
    sql.execute("DELETE FROM idempotency_keys WHERE record_id = ?", (record_id,))
    sql.execute("DELETE FROM transcripts WHERE record_id = ?", (record_id,))


def transcript(sql: sqlite3.Connection, ref: ProjectRef, part: str) -> bytes | None:
    """Return a part of a project's copy of what was said."""
    found = sql.execute(
        "SELECT body FROM transcripts WHERE record_id = ? AND part = ?",
        (find(sql, ref).project.id, part),
    ).fetchone()
    return None if found is None else bytes(found["body"])


def keep_transcript(
    sql: sqlite3.Connection,
    record_id: str,
    parts: Mapping[str, bytes],
    only: Collection[str] | None,
) -> None:
    """Keep parts of what was said; see the port."""
    sql.executemany(
        "INSERT OR REPLACE INTO transcripts (record_id, part, body) VALUES (?, ?, ?)",
        ((record_id, part, body) for part, body in parts.items()),
    )
    if only is None:
        return
    kept = sql.execute("SELECT part FROM transcripts WHERE record_id = ?", (record_id,)).fetchall()
    sql.executemany(
        "DELETE FROM transcripts WHERE record_id = ? AND part = ?",
        ((record_id, part) for (part,) in kept if part not in only),
    )


class Pages:
    """The pages that were asked for last, as they are while nobody writes to the file."""

    def __init__(self) -> None:
        self._version = -1
        self._found: dict[tuple[str, PageQuery], ProjectPage] = {}

    def get(self, sql: sqlite3.Connection, owner: str, query: PageQuery) -> ProjectPage:
        """Return a page of ``owner``'s projects. ``sql`` is always the same, and never writes."""
        # Read before the page: a write in between is found by the next look.
        version = sql.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version or len(self._found) >= _PAGES:
            self._found = {}
            self._version = version
        asked = (owner, query)
        if asked not in self._found:
            self._found[asked] = records.cut(page(sql, owner, query), query.limit)
        return self._found[asked]


def page(sql: sqlite3.Connection, owner: str, query: PageQuery) -> Sequence[Project]:
    """Return the page's projects and, if there are more, one more."""
    place = _FAR_FUTURE if query.cursor is None else records.decode(query.cursor)
    by_status = "" if query.status is None else "AND status = :status "
    found = sql.execute(
        f"{SELECT} WHERE user_id = :owner {by_status}"
        "AND (created_at, id) < (:created, :id) ORDER BY created_at DESC, id DESC",
        {
            "owner": owner,
            "status": query.status,
            "created": place.created,
            "id": place.record_id,
        },
    )
    with closing(found):
        return list(islice(_readable(found), min(query.limit, _LARGEST - 1) + 1))


def has_projects(sql: sqlite3.Connection, owner: str) -> bool:
    """Tell whether ``owner`` has a project, readable or not."""
    query = "SELECT 1 FROM projects WHERE user_id = ? LIMIT 1"
    return sql.execute(query, (owner,)).fetchone() is not None


def _readable(found: Iterable[sqlite3.Row]) -> Iterator[Project]:
    for row in found:
        try:
            # What is remembered is bounded in size, too: each change of a record adds to it.
            length = sum(len(row[name] or "") for name in _JSON)
            large = length > _REMEMBERED_TEXT
            yield from_row(row).project if large else _shared(tuple(row))
        except RecordUnreadableError as error:
            _log.warning("record_passed_over", error=str(error))


@lru_cache(maxsize=_REMEMBERED)
def _shared(values: tuple[Any, ...]) -> Project:
    # Lists are asked for again and again, and most of their rows are as they were.
    return from_row(dict(zip(_COLUMNS, values, strict=True))).project


def events(sql: sqlite3.Connection, ref: ProjectRef, after: int, limit: int) -> Sequence[Event]:
    """Return a part of a project's log."""
    record = find(sql, ref)
    found = sql.execute(
        "SELECT seq, body FROM events WHERE record_id = ? AND seq > ? ORDER BY seq LIMIT ?",
        (record.project.id, min(after, _LARGEST), min(limit, _LARGEST)),
    )
    with records.reading_log(record.project.id):
        return [to_event(row) for row in found]


def add_events(sql: sqlite3.Connection, record_id: str, new: Sequence[Event]) -> None:
    """Append to a log, and trim it to its length."""
    if not new:
        return
    sql.executemany(
        "INSERT INTO events (record_id, seq, body) VALUES (?, ?, ?)",
        ((record_id, event.seq, event_body(event)) for event in new),
    )
    oldest = new[-1].seq - records.LOG_LENGTH
    sql.execute("DELETE FROM events WHERE record_id = ? AND seq <= ?", (record_id, oldest))


def poke(sql: sqlite3.Connection, ref: ProjectRef, now: datetime) -> int:
    """Do ``records.poked`` to the project that has this environment; return how many that was."""
    return sql.execute(_POKE + _MADE_FOR, {**_moments(now), **asdict(ref)}).rowcount


def poke_unsettled(sql: sqlite3.Connection, now: datetime) -> int:
    """Do ``records.poked`` to all that are ``records.unsettled``; return how many."""
    return sql.execute(_POKE + _UNSETTLED, _moments(now)).rowcount


def _moments(now: datetime) -> dict[str, int]:
    return {"now": millis(now), "latest": millis(now + MOST_AHEAD)}


def ping(sql: sqlite3.Connection) -> None:
    """Write something: a disk may be readable and full."""
    sql.execute("UPDATE pings SET count = count + 1")


def instance(sql: sqlite3.Connection) -> str:
    """Return this Greylag's id."""
    found: str = sql.execute("SELECT id FROM instance").fetchone()[0]
    if isinstance(found, NotUtf8):
        raise sqlite3.DataError("this Greylag's id is not UTF-8")
    return found


# The order of claims, found by a few steps on indexes.

_LONGEST_DUE = "claimable_at <= :now ORDER BY claimable_at, id LIMIT 1"
_NOT_AT_WORK = "user_id NOT IN (SELECT user_id FROM projects WHERE lease_until > :now)"
_UNDER_A_LEASE = (
    "UPDATE projects SET lease_worker = ?, lease_number = coalesce(lease_number, 0), "
    "lease_until = ? WHERE id = "
)
_AT_WORK = "SELECT user_id FROM projects WHERE lease_until > ?"


def claim(
    sql: sqlite3.Connection, worker: str, now: datetime, lease_seconds: float
) -> ProjectRecord | None:
    """Claim what is next and return it; see the port. A record that cannot be read is put under a
    lease, too: so it is passed over until that has run out.
    """
    while (row := next_claimable(sql, now)) is not None:
        try:
            record = records.claimed(from_row(row), worker, now, lease_seconds)
        except RecordUnreadableError as error:
            _log.warning("record_passed_over", error=str(error))
            until = millis(records.lease_end(now, lease_seconds))
            sql.execute(_UNDER_A_LEASE + placeholder(row["id"]), (worker, until, row["id"]))
        else:
            update(sql, record)
            return record
    return None


def next_claimable(sql: sqlite3.Connection, now: datetime) -> sqlite3.Row | None:
    """Return the row that is claimed next: of the users with the fewest projects under leases
    that have not run out the one that is due longest; ``None`` when nothing is due.
    """
    of_the_idle = f"{SELECT} WHERE {_NOT_AT_WORK} AND {_LONGEST_DUE}"
    found: sqlite3.Row | None = sql.execute(of_the_idle, {"now": millis(now)}).fetchone()
    return found or _of_the_least_busy(sql, millis(now))


def next_due(sql: sqlite3.Connection) -> datetime | None:
    """Return when the first record can be claimed."""
    # What is no moment, but text or too large, is never due.
    first = sql.execute(
        "SELECT claimable_at FROM projects WHERE claimable_at BETWEEN ? AND ? "
        "ORDER BY claimable_at LIMIT 1",
        (records.FIRST_MILLIS, records.LAST_MILLIS),
    ).fetchone()
    return None if first is None else records.from_millis(first[0])


def count_by_status(sql: sqlite3.Connection) -> dict[Status, int]:
    """Return how many records there are in each status."""
    counted = dict(sql.execute("SELECT status, count(*) FROM projects GROUP BY status").fetchall())
    return {status: counted.get(status, 0) for status in Status}


def _of_the_least_busy(sql: sqlite3.Connection, now: int) -> sqlite3.Row | None:
    """Return the row that is next when all that is due belongs to users who have leases."""
    if sql.execute(f"{SELECT} WHERE {_LONGEST_DUE}", {"now": now}).fetchone() is None:
        return None
    # As many steps as there are leases at most, however many projects are due.
    at_work = Counter(user_id for (user_id,) in sql.execute(_AT_WORK, (now,)))
    firsts = ((leases, _first_of_user(sql, user_id, now)) for user_id, leases in at_work.items())
    order = [(leases, *first) for leases, first in firsts if first is not None]
    if not order:
        return None
    first = min(order)[-1]
    query = f"{SELECT} WHERE id = {placeholder(first)}"
    found: sqlite3.Row = sql.execute(query, (first,)).fetchone()
    return found


def _first_of_user(sql: sqlite3.Connection, user_id: object, now: int) -> sqlite3.Row | None:
    """Return the user's first that is due: its place among those of others, and its id."""
    # The place has the id's bytes: Python orders no text and ``NotUtf8``.
    query = (
        "SELECT claimable_at, CAST(id AS BLOB), id FROM projects "  # noqa: S608 - a placeholder
        f"WHERE user_id = {placeholder(user_id)} AND claimable_at <= ? "
        "ORDER BY claimable_at, id LIMIT 1"
    )
    found: sqlite3.Row | None = sql.execute(query, (user_id, now)).fetchone()
    return found


def take_duty(  # noqa: PLR0913, PLR0917 - as the port has them
    sql: sqlite3.Connection,
    name: str,
    worker: str,
    since: datetime,
    now: datetime,
    seconds: float,
) -> Duty:
    """Take a duty on; see the port."""
    verdict, after = records.taken(_duty(sql, name), worker, since, now, seconds)
    if verdict is Duty.MINE:
        _keep_duty(sql, name, after)
    return verdict


def finish_duty(sql: sqlite3.Connection, name: str, worker: str, now: datetime) -> None:
    """Say that a duty is done; see the port."""
    _keep_duty(sql, name, records.finished(_duty(sql, name), worker, now))


def revoke(sql: sqlite3.Connection, name: str, until: datetime, now: datetime) -> bool:
    """Keep the name of what must not count any more; see the port."""
    sql.execute("DELETE FROM revocations WHERE until < ?", (millis(now),))
    added = sql.execute(
        "INSERT OR IGNORE INTO revocations (name, until) VALUES (?, ?)", (name, millis(until))
    )
    return added.rowcount > 0


def is_revoked(sql: sqlite3.Connection, name: str, signed_at: datetime | None) -> bool:
    """Tell whether a name is kept, or was signed before an import; see the port."""
    runs_out = None if signed_at is None else millis(signed_at + LONGEST_SIGNED)
    found = sql.execute(
        "SELECT 1 FROM revocations WHERE name = ? OR (name = ? AND until > ?)",
        (name, records.IMPORTED, runs_out),
    )
    return found.fetchone() is not None


def revoke_signed_before(sql: sqlite3.Connection, at: datetime) -> None:
    """Revoke all that was signed before an import."""
    sql.execute(
        "INSERT OR REPLACE INTO revocations (name, until) VALUES (?, ?)",
        (records.IMPORTED, millis(records.import_revokes_until(at))),
    )


def _duty(sql: sqlite3.Connection, name: str) -> DutyRecord:
    found = sql.execute(
        "SELECT holder, until, done_at FROM duties WHERE name = ?", (name,)
    ).fetchone()
    if found is None:
        return DutyRecord()
    holder, *times = found
    return DutyRecord(holder, *(None if one is None else from_millis(one) for one in times))


def _keep_duty(sql: sqlite3.Connection, name: str, record: DutyRecord) -> None:
    times = [None if one is None else millis(one) for one in (record.until, record.done_at)]
    sql.execute(
        "INSERT OR REPLACE INTO duties (name, holder, until, done_at) VALUES (?, ?, ?, ?)",
        (name, record.holder, *times),
    )
