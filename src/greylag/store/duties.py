"""The rule for work that one worker at a time does for all; shared by every store. Pure."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from greylag.ports.store import Duty


@dataclass(frozen=True, slots=True)
class DutyRecord:
    """Who is at a duty, until when that counts, and when it was last done."""

    holder: str | None = None
    until: datetime | None = None
    done_at: datetime | None = None


def taken(
    before: DutyRecord, worker: str, since: datetime, now: datetime, seconds: float
) -> tuple[Duty, DutyRecord]:
    """Return what ``worker`` is told, and the record to keep."""
    if before.done_at is not None and before.done_at >= since:
        return Duty.DONE, before
    held = before.until is not None and before.until > now
    if held and before.holder != worker:
        return Duty.HELD, before
    until = now + timedelta(seconds=seconds)
    return Duty.MINE, replace(before, holder=worker, until=until)


def finished(before: DutyRecord, worker: str, now: datetime) -> DutyRecord:
    """Return the record to keep when ``worker`` says that it is done."""
    if before.holder != worker:
        return before
    return DutyRecord(done_at=now)
