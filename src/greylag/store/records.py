"""A record and what each write makes of it: pure, so that every store changes it alike."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from greylag.domain.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    LeaseLostError,
    ProjectExistsError,
    ProjectNotFoundError,
)
from greylag.domain.project import MOST_AHEAD, Event, Lease, Project, ProjectRecord, ProjectRef
from greylag.ports import (
    CURSOR_FORM,
    LONGEST_SIGNED,
    OBSERVED,
    Claim,
    Duty,
    Finding,
    IdempotencyKey,
    Outcome,
    ProjectPage,
    RecordUnreadableError,
)

LOG_LENGTH = 500
KEY_LIFETIME = timedelta(days=1)

_OF_A_WISH = {"error_terminal", "attempts", "deadline_at"}
"""One that came meanwhile has set these for itself: what the worker knows of them is older."""

MALFORMED = (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading a record that something else has written may raise."""


def new_record(project: Project) -> ProjectRecord:
    """Return the record of a project that is being created."""
    return ProjectRecord(project, claims=project.lease.number if project.lease else 0)


def exists(ref: ProjectRef) -> ProjectExistsError:
    """Return the error for an id that its owner has given already."""
    return ProjectExistsError(f"User {ref.user_id!r} already has a project {ref.project_id!r}.")


def environment_taken(ref: ProjectRef) -> ProjectExistsError:
    """Return the error for a project whose environment would be another project's."""
    return ProjectExistsError(
        f"Project {ref.project_id!r} of user {ref.user_id!r} was handed over, and its environment "
        "goes on under that id.",
        hint="Choose another id.",
    )


def check_same(key: IdempotencyKey, fingerprint: str) -> None:
    """Raise ``IdempotencyConflictError`` when ``key`` came with another fingerprint before."""
    if key.fingerprint != fingerprint:
        raise IdempotencyConflictError("This Idempotency-Key came with another request before.")


def check_still_theirs(created: Project, owner: str) -> Project:
    """Return what an Idempotency-Key of ``owner`` has created; ``IdempotencyConflictError`` when
    that is another's by now.
    """
    if created.user_id != owner:
        raise IdempotencyConflictError(
            "What this Idempotency-Key has created was handed over to another user."
        )
    return created


def claimed(
    record: ProjectRecord, worker: str, now: datetime, lease_seconds: float
) -> ProjectRecord:
    """Return the record under a new lease, whose number no claim of it ever had."""
    number = record.claims + 1
    lease = Lease(worker, number, lease_end(now, lease_seconds))
    return replace(record, project=replace(record.project, lease=lease), claims=number, woken=False)


def renewed(
    record: ProjectRecord | None, claim: Claim, now: datetime, lease_seconds: float, above: int
) -> ProjectRecord:
    """Return the record with the claim's lease extended, and its number raised if the environment
    has seen ``above``.

    Raises:
        LeaseLostError: the claim does not hold it any more.
    """
    # A claim that holds has the highest number that this store ever gave of the record: claims
    # alone count it up, and each takes the lease away from the one before. A live worker of this
    # store with a higher number so holds the lease itself, and ``held`` refuses us. A claim that
    # holds although the environment has seen a higher number means that the store forgot numbers
    # which it had given: it was put back from an older copy. As in an import, numbers then go on
    # from one that no count comes to: a worker of before, which still has one from the forgotten
    # time, can neither have the same number nor write under its own.
    record, lease = held(record, claim)
    number = lease.number if above <= lease.number else max(above + 1, millis(now))
    longer = replace(lease, number=number, until=lease_end(now, lease_seconds))
    project = replace(record.project, lease=longer)
    return replace(record, project=project, claims=max(record.claims, number))


def recorded(
    record: ProjectRecord | None, claim: Claim, outcome: Outcome, now: datetime, *, release: bool
) -> tuple[ProjectRecord, Sequence[Event]]:
    """Return the record with what is, and the events to append to its log.

    Raises:
        LeaseLostError: the claim does not hold it any more.
    """
    record, lease = held(record, claim)
    before = record.project
    overtaken = before.generation != claim.project.generation
    again = release and (overtaken or record.woken)
    written = OBSERVED - _OF_A_WISH if overtaken else OBSERVED
    project = replace(before, **{name: getattr(outcome, name) for name in written})
    project = replace(project, lease=None if release else lease)
    if again:
        project = replace(project, due_at=now)
    if _shown(project) != _shown(before):
        project = replace(project, updated_at=now)
    events = _numbered(before.last_seq, claim, outcome, now)
    project = replace(project, last_seq=before.last_seq + len(events))
    return replace(record, project=project), events


def held(record: ProjectRecord | None, claim: Claim) -> tuple[ProjectRecord, Lease]:
    """Return the record, which ``claim`` holds, and its lease.

    A lease that ran out still holds until somebody else claims: nobody else is at work, so there is
    nothing to guard against.

    Raises:
        LeaseLostError: the claim does not hold it any more.
    """
    if record is None or (lease := record.project.lease) is None or lease.number != claim.number:
        raise lease_lost(claim)
    return record, lease


def lease_lost(claim: Claim) -> LeaseLostError:
    """Return the error for a claim that holds no more."""
    ref = claim.project.ref
    return LeaseLostError(
        f"The claim on project {ref.project_id!r} of {ref.user_id!r} is no longer valid."
    )


def not_found(ref: ProjectRef) -> ProjectNotFoundError:
    """Return the error for a project that this owner does not have."""
    return ProjectNotFoundError(f"User {ref.user_id!r} has no project {ref.project_id!r}.")


def unreadable(record_id: object, user_id: object, project_id: object, error: Exception) -> Finding:
    """Return what is wrong with a record that raised ``error`` when it was read."""
    cause = error.__cause__ or error
    return Finding(
        str(record_id),
        f"The record {record_id} of project {project_id!r} of user {user_id!r} cannot be read "
        f"({type(cause).__name__}: {cause}).",
        "Correct what the sentence names, or remove the record; until then nobody works on the "
        "project, and no export holds it.",
    )


def cannot_be_read(
    record_id: object, user_id: object, project_id: object, error: Exception
) -> RecordUnreadableError:
    """Return the error for a record that raised ``error`` when it was read."""
    return RecordUnreadableError(unreadable(record_id, user_id, project_id, error).sentence)


@contextmanager
def reading_log(record_id: object) -> Iterator[None]:
    """Read events of a record in the ``with`` block.

    Raises:
        RecordUnreadableError: something else has written them.
    """
    try:
        yield
    except MALFORMED as error:
        raise RecordUnreadableError(
            f"The activation log of the record {record_id} cannot be read "
            f"({type(error).__name__}: {error})."
        ) from error


IMPORTED = "import"
"""Stands among what is revoked for all that was signed before an import, as long as that lives."""


def import_revokes_until(at: datetime) -> datetime:
    """Return until when ``IMPORTED`` is kept, of an import at that moment."""
    # What is signed has the moment in seconds: what follows the import at once counts.
    return at.replace(microsecond=0) + LONGEST_SIGNED


def lease_end(now: datetime, lease_seconds: float) -> datetime:
    """Return when a lease that is made or extended now runs out, to the millisecond."""
    return now + timedelta(milliseconds=round(lease_seconds * 1000))


def _numbered(last_seq: int, claim: Claim, outcome: Outcome, now: datetime) -> list[Event]:
    # The events belong to the generation that the worker had read, not to a newer wish.
    return [
        Event(
            seq=seq,
            at=now,
            code=new.code,
            message=new.message,
            status=outcome.status,
            generation=claim.project.generation,
            hint=new.hint,
        )
        for seq, new in enumerate(outcome.events, last_seq + 1)
    ]


def _shown(project: Project) -> tuple[object, ...]:
    return (project.status, project.endpoint, project.error)


# The cursor of a page of projects: where the page ended, as text that clients do not look into.

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_MILLIS, LAST_MILLIS = -62_135_596_800_000, 253_402_300_799_999
"""The milliseconds from the year 1 to the year 9999, where ``datetime`` begins and ends."""

_CURSOR = re.compile(CURSOR_FORM)
_PLAIN = re.compile(r"[0-9A-Za-z]{1,64}")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A project's place in the order of creation: milliseconds since 1970, then its record id."""

    created: int
    record_id: str


def position(project: Project) -> Position:
    """Return where ``project`` stands."""
    return Position(millis(project.created_at), project.id)


def encode(place: Position) -> str:
    """Return ``place`` as a cursor, safe inside a URL."""
    record_id = place.record_id
    if not _PLAIN.fullmatch(record_id):
        # Other programs make records whose ids are of a form of their own.
        record_id = f"_{record_id.encode().hex()}"
    return f"{place.created}.{record_id}"


def decode(cursor: str) -> Position:
    """Return the place that ``encode`` made ``cursor`` from.

    Raises:
        InvalidRequestError: it is none of ours.
    """
    if not _CURSOR.fullmatch(cursor):
        raise InvalidRequestError("The cursor is not one that a page of projects gave.")
    created, _, record_id = cursor.partition(".")
    if record_id.startswith("_"):
        record_id = bytes.fromhex(record_id[1:]).decode(errors="replace")
    return Position(max(FIRST_MILLIS, min(int(created), LAST_MILLIS)), record_id)


def cut(projects: Sequence[Project], limit: int) -> ProjectPage:
    """Return the first ``limit`` of ``projects`` as a page; one more than that means that there is
    a next page.
    """
    check_limit(limit)
    if len(projects) <= limit:
        return ProjectPage(projects)
    shown = projects[:limit]
    return ProjectPage(shown, encode(position(shown[-1])))


def check_limit(limit: int) -> None:
    """Raise ``InvalidRequestError`` for a limit of a page below 1."""
    if limit < 1:
        raise InvalidRequestError("The limit of a page must be at least 1.")


def millis(moment: datetime) -> int:
    """Return ``moment`` (aware) in whole milliseconds since 1970."""
    return (moment - EPOCH) // timedelta(milliseconds=1)


def from_millis(value: int) -> datetime:
    """Return the moment ``value`` milliseconds after the start of 1970, in UTC."""
    return EPOCH + timedelta(milliseconds=value)


# The rule for work that one worker at a time does for all; shared by every store. Pure.


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
    # What is later was written by a clock that was ahead: it says nothing of when that was.
    latest = now + MOST_AHEAD
    if before.done_at is not None and since <= before.done_at <= latest:
        return Duty.DONE, before
    held = before.until is not None and now < before.until <= latest
    if held and before.holder != worker:
        return Duty.HELD, before
    until = now + timedelta(seconds=seconds)
    return Duty.MINE, replace(before, holder=worker, until=until)


def finished(before: DutyRecord, worker: str, now: datetime) -> DutyRecord:
    """Return the record to keep when ``worker`` says that it is done."""
    if before.holder != worker:
        return before
    return DutyRecord(done_at=now)
