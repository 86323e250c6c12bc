"""Turns and undos as spans between two states, and what in them may be somebody else's work."""

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from greylag.agentd.changes.plan import among, differences
from greylag.agentd.changes.states import Snapshot
from greylag.agentd.changes.store import snapshot_at
from greylag.agentd.records import HistoryCut
from greylag.common.agent_api import TurnChanges


@dataclass(frozen=True, slots=True)
class Span:
    """A turn, or an undo.

    Attributes:
        span_id: the turn's id, or the undo's.
        session_id: of the turn, also of the turn that was undone.
        began: the number of a state that is not newer than its beginning.
        before, after: the numbers of the states around it, as far as they are known.
        undoes: the span that an undo takes back.
        paths: what an undo puts back.
        cut: what it makes the agent forget.
    """

    span_id: str
    session_id: str
    began: int
    before: int | None = None
    after: int | None = None
    undoes: str | None = None
    paths: Sequence[str] = ()
    cut: HistoryCut | None = None


@dataclass(frozen=True, slots=True)
class Ends:
    """Two states, and the paths that somebody else may have changed in between."""

    before: Snapshot
    after: Snapshot
    shared: Collection[str] = frozenset()


def add(sql: sqlite3.Connection, span: Span) -> None:
    """Write a span; one that is there stays."""
    undo = span.undoes is not None
    row = (span.span_id, span.session_id, span.began, span.before, span.after, span.undoes)
    cut = None
    if span.cut is not None:
        cut = json.dumps(asdict(span.cut))
        # What the agent is told of this undo holds what it was to be told of others before.
        sql.execute("UPDATE spans SET told = 1 WHERE session_id = ?", (span.session_id,))
    sql.execute(
        "INSERT OR IGNORE INTO spans (span_id, session_id, began, before, after, undoes, paths, "
        "told, cut, uncut) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*row, json.dumps(span.paths) if undo else None, int(not undo), cut, int(bool(cut))),
    )


def remove(sql: sqlite3.Connection, span_id: str) -> None:
    """Forget a span, in which nothing was done."""
    sql.execute("DELETE FROM spans WHERE span_id = ?", (span_id,))
    sql.execute("DELETE FROM touched WHERE span_id = ?", (span_id,))


def newest(sql: sqlite3.Connection) -> int:
    """Return the number of the newest state, 0 when there is none."""
    return int(sql.execute("SELECT coalesce(max(number), 0) FROM snapshots").fetchone()[0])


def set_before(sql: sqlite3.Connection, span_id: str, number: int) -> None:
    """Say which state was before a span."""
    sql.execute("UPDATE spans SET before = ? WHERE span_id = ?", (number, span_id))


def set_after(sql: sqlite3.Connection, number: int, *span_ids: str) -> None:
    """Say which state was after spans, which have ended then."""
    rows = [(number, span_id) for span_id in span_ids]
    sql.executemany("UPDATE spans SET after = ? WHERE span_id = ?", rows)


def set_totals(sql: sqlite3.Connection, span_id: str, totals: TurnChanges) -> None:
    """Say how much a span changed, so that it is told without another comparison."""
    told = json.dumps([totals.files, totals.added_lines, totals.deleted_lines])
    sql.execute("UPDATE spans SET totals = ? WHERE span_id = ?", (told, span_id))


def totals(sql: sqlite3.Connection, span_ids: Collection[str]) -> dict[str, TurnChanges]:
    """Return how much each span changed of which that is known, and the undo that holds of it."""
    wanted = set(span_ids)
    counted: dict[str, TurnChanges] = {}
    # Each undo settles anew how the turn at its chain's begin stands, and which undo holds of it.
    stands: dict[str, tuple[str, bool]] = {}
    holds: dict[str, str | None] = {}
    for row in sql.execute(
        "SELECT span_id, undoes, paths, totals FROM spans WHERE totals IS NOT NULL ORDER BY rowid"
    ):
        if row["span_id"] in wanted or row["undoes"] is not None:
            counted[row["span_id"]] = TurnChanges(*json.loads(row["totals"]))
        if row["undoes"] is not None and row["paths"] != "[]":
            turn, undone = stands.get(row["undoes"], (row["undoes"], False))
            stands[row["span_id"]] = turn, not undone
            holds[turn] = None if undone else row["span_id"]
    found: dict[str, TurnChanges] = {}
    for span_id in wanted & counted.keys():
        undo = holds.get(span_id)
        files = 0 if undo is None else counted[undo].files
        found[span_id] = replace(counted[span_id], undo_id=undo, undone_files=files)
    return found


def find(sql: sqlite3.Connection, span_id: str) -> Span | None:
    """Return a span, ``None`` when it is not known (any more)."""
    return next(iter(_select(sql, "span_id = ?", span_id)), None)


def left_turns(sql: sqlite3.Connection) -> list[Span]:
    """Return the turns that have no end yet."""
    return _select(sql, "undoes IS NULL AND after IS NULL")


def left_undos(sql: sqlite3.Connection) -> list[Span]:
    """Return the undos that have no end yet, the first one first."""
    return _select(sql, "undoes IS NOT NULL AND after IS NULL ORDER BY rowid")


def left_cuts(sql: sqlite3.Connection) -> list[Span]:
    """Return the undos that have not made the agent forget yet what they are to."""
    return _select(sql, "uncut = 1")


def set_cut(sql: sqlite3.Connection, span_id: str) -> None:
    """Say that the agent has forgotten what an undo made it forget."""
    sql.execute("UPDATE spans SET uncut = 0 WHERE span_id = ?", (span_id,))


def unknown(sql: sqlite3.Connection, undo: Span) -> list[str] | None:
    """Return what differs from the last state that the agent knows after its history was cut.

    It is ``None`` when that is not kept any longer.
    """
    if undo.cut is None or undo.cut.before is None:
        return []
    known = state(sql, undo.cut.before, after=True)
    now = state(sql, undo.span_id, after=True)
    if known is None or now is None:
        return None
    found = differences(sql, known.root, now.root)
    return sorted(found.known | found.unknown)


def untold(sql: sqlite3.Connection, session_id: str) -> list[Span]:
    """Return the undos of which a session's agent was not told yet."""
    return _select(sql, "session_id = ? AND told = 0 AND after IS NOT NULL", session_id)


def set_told(sql: sqlite3.Connection, undos: Sequence[Span]) -> None:
    """Say that the agent was told of undos."""
    sql.executemany("UPDATE spans SET told = 1 WHERE span_id = ?", [(u.span_id,) for u in undos])


def touch(sql: sqlite3.Connection, span_ids: Collection[str], paths: Collection[str]) -> None:
    """Remember that somebody else changed paths while spans went on."""
    rows = [(span_id, path) for span_id in span_ids for path in paths]
    sql.executemany("INSERT OR IGNORE INTO touched VALUES (?, ?)", rows)


def state(sql: sqlite3.Connection, name: str | None, *, after: bool) -> Snapshot | None:
    """Return a state by its number, or the one before or after a span.

    Without a name it is the newest one (``after``) or the oldest.
    """
    if name is None:
        return snapshot_at(sql, f"ORDER BY number {'DESC' if after else 'ASC'}")
    span = find(sql, name)
    if span is not None:
        return _numbered(sql, span.after if after else span.before)
    number = int(name) if name.isascii() and name.isdigit() and len(name) < 19 else None  # noqa: PLR2004 - digits of 64 bits
    return _numbered(sql, number)


def ends(sql: sqlite3.Connection, span_id: str) -> Ends | None:
    """Return the states around a span, ``None`` when they are not (any longer) kept."""
    span = find(sql, span_id)
    if span is None:
        return None
    before, after = _numbered(sql, span.before), _numbered(sql, span.after)
    if before is None or after is None:
        return None
    return Ends(before, after, _shared(sql, span_id, before, after))


def _shared(
    sql: sqlite3.Connection, span_id: str, before: Snapshot, after: Snapshot
) -> frozenset[str]:
    """Return what changed while another span went on too, or was changed by a person meanwhile."""
    states = sql.execute(
        "SELECT number, root FROM snapshots WHERE number BETWEEN ? AND ? ORDER BY number",
        (before.number, after.number),
    ).fetchall()
    found: set[str] = set()
    unknown: set[str] = set()
    for one, other in pairwise(states):
        others = sql.execute(
            "SELECT 1 FROM spans WHERE span_id <> ? AND coalesce(before, began) <= ? "
            "AND coalesce(after, ?) >= ?",
            (span_id, one["number"], other["number"], other["number"]),
        ).fetchone()
        if others is not None:
            differing = differences(sql, one["root"], other["root"])
            found |= differing.known.keys()
            unknown |= differing.unknown.keys()
    rows = sql.execute("SELECT path FROM touched WHERE span_id = ?", (span_id,))
    others = unknown | {row["path"] for row in rows}
    if others:
        changed = differences(sql, before.root, after.root).known
        found |= {path for path in changed if among(path, others)}
    return frozenset(found)


def _numbered(sql: sqlite3.Connection, number: int | None) -> Snapshot | None:
    return None if number is None else snapshot_at(sql, "WHERE number = ?", number)


def _select(sql: sqlite3.Connection, where: str, *values: str) -> list[Span]:
    # ``where`` is always written in this module; what comes from outside is bound as a value.
    rows = sql.execute(
        "SELECT span_id, session_id, began, before, after, undoes, paths, cut FROM spans "  # noqa: S608 - see above
        f"WHERE {where}",
        values,
    )
    return [_span(dict(row)) for row in rows]


def _span(row: dict[str, Any]) -> Span:
    cut = HistoryCut(**json.loads(row["cut"])) if row["cut"] else None
    return Span(**{**row, "paths": json.loads(row["paths"] or "[]"), "cut": cut})
