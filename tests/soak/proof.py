"""What the shared cluster's log proves of the workers that wrote it.

- One claim is one worker's.
- Nobody begins a step while another's step is under way and the other's lease still counts.
- Nothing is begun or done under an older claim once a newer one has begun anything.
- Nothing is begun or done under a lease that has run out, but for the step in which its worker
  stood still: it lands in the moment after. It can meet no newer claim's step, and its worker has
  the project looked at again.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Ended = Mapping[tuple[str, str], str | None]
MOMENT = 1.0
"""A clock is read before a step and the step is noted after: seconds that may lie between."""
_ENDS = {"active": "ready", "inactive": "stopped"}


class Row(NamedTuple):
    """One line of the log."""

    at: float
    what: str
    record: str
    claim: int
    until: float
    pid: int


@dataclass(frozen=True, slots=True)
class Stood:
    """A process that stood still, and when it went on."""

    pid: int
    until: float


@dataclass
class Told:
    """What is worth telling of the log."""

    steps: int = 0
    claims: int = 0
    refused: int = 0
    overtaken: int = 0
    late: int = 0


@dataclass
class _Record:
    newest: int = 0
    workers: dict[int, int] = field(default_factory=dict)
    under_way: dict[int, Row] = field(default_factory=dict)


def prove(path: Path, stood: Sequence[Stood]) -> Told:
    """Check the log at ``path``; ``stood`` are the pauses of workers."""
    with closing(sqlite3.connect(path)) as sql:
        found = sql.execute("SELECT at, what, record, claim, until, pid FROM log ORDER BY n")
        rows = [Row(*row) for row in found]
    told = Told(steps=len(rows))
    records: dict[str, _Record] = {}
    for row in rows:
        _check(row, records.setdefault(row.record, _Record()), told, stood)
    told.claims = sum(len(record.workers) for record in records.values())
    return told


def prove_ends(path: Path, wanted: Ended) -> None:
    """Check that every environment is as was acknowledged (``None``: it is gone)."""
    with closing(sqlite3.connect(path)) as sql:
        found = sql.execute("SELECT user, project, state FROM environments")
        states = {(user, project): state for user, project, state in found}
    for ref, end in wanted.items():
        state = states.pop(ref, None)
        assert state == (None if end is None else _ENDS[end]), (ref, state, end)
    assert not states, f"environments without a record are left: {states}"


def _check(row: Row, record: _Record, told: Told, stood: Sequence[Stood]) -> None:
    assert record.workers.setdefault(row.claim, row.pid) == row.pid, f"two have one claim: {row}"
    if row.what in {"refused", "left"}:
        told.refused += row.what == "refused"
        record.under_way.pop(row.claim, None)
        return
    assert row.claim >= record.newest, f"an older claim after a newer one: {row}"
    if row.at > row.until + MOMENT:
        told.late += 1
        assert _went_on_just_before(row, stood), f"under a lease that has run out: {row}"
    if row.what == "effect":
        record.under_way.pop(row.claim, None)
        return
    for other in record.under_way.values():
        if other.claim != row.claim:
            told.overtaken += 1
            assert other.until <= row.at + MOMENT, f"two at one project: {other}, {row}"
    record.newest = row.claim
    record.under_way = {row.claim: row}


def _went_on_just_before(row: Row, stood: Sequence[Stood]) -> bool:
    return any(
        one.pid == row.pid and one.until - MOMENT <= row.at <= one.until + MOMENT for one in stood
    )
