"""A record and what each write makes of it: pure, so that every store changes it alike."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from greylag.domain.errors import (
    ConflictError,
    IdempotencyConflictError,
    InvalidRequestError,
    LeaseLostError,
    ProjectDeletingError,
    ProjectExistsError,
    ProjectNotFoundError,
)
from greylag.domain.project import Desired, Event, Lease, Project, ProjectRef, Status
from greylag.ports import (
    CURSOR_FORM,
    Claim,
    Duty,
    Edit,
    Finding,
    IdempotencyKey,
    Outcome,
    ProjectPage,
)

LOG_LENGTH = 500
KEY_LIFETIME = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ProjectRecord:
    """A project and what only its store knows of it.

    ``claims`` counts the claims so far; ``woken`` says that it was poked after the present claim,
    so that it is due again when the claim ends.
    """

    project: Project
    claims: int = 0
    woken: bool = False

    @property
    def claimable_at(self) -> datetime | None:
        """When it can be claimed: a lease holds until it runs out, and then it is due."""
        lease = self.project.lease
        return self.project.due_at if lease is None else lease.until


def new_record(project: Project) -> ProjectRecord:
    """Return the record of a project that is being created."""
    return ProjectRecord(project, claims=project.lease.number if project.lease else 0)


def edited(record: ProjectRecord, edit: Edit, now: datetime) -> ProjectRecord:
    """Return the record with the edit in it; the same record when that changes nothing."""
    project = record.project
    if project.desired is Desired.DELETED:
        raise ProjectDeletingError(f"Project {project.project_id!r} is being deleted.")
    name = project.name if edit.name is None else edit.name
    metadata = project.metadata if edit.metadata is None else edit.metadata
    if (name, metadata) == (project.name, project.metadata):
        return record
    return replace(record, project=replace(project, name=name, metadata=metadata, updated_at=now))


def wanted(
    record: ProjectRecord, desired: Desired, now: datetime, deadline: datetime, *, again: bool
) -> ProjectRecord:
    """Return the record with the wish in it; the same record when it changes nothing, or is to be
    made ``again`` and was not made.
    """
    project = record.project
    if project.desired is Desired.DELETED and desired is not Desired.DELETED:
        raise ProjectDeletingError(f"Project {project.project_id!r} is being deleted.")
    same = desired is project.desired
    if (again and not same) or (same and project.status is not Status.ERROR):
        return record
    changed = replace(
        project,
        desired=desired,
        generation=project.generation + 1,
        due_at=now,
        deadline_at=deadline,
        attempts=0,
        error_terminal=False,
        updated_at=now,
    )
    return replace(record, project=changed)


def refreshed(record: ProjectRecord, now: datetime) -> ProjectRecord:
    """Return the record with the wish that what runs gets the settings which it lacks, due now; the
    same record when it lacks none or has the wish.
    """
    project = record.project
    if project.outdated is None or project.refresh == project.outdated:
        return record
    return poked(replace(record, project=replace(project, refresh=project.outdated)), now)


def handed_over(record: ProjectRecord, new_owner: str, now: datetime) -> ProjectRecord:
    """Return the record as another user's; the same record when it is theirs already."""
    project = record.project
    if project.desired is Desired.DELETED:
        raise ProjectDeletingError(f"Project {project.project_id!r} is being deleted.")
    if project.user_id == new_owner:
        return record
    if unsettled(project) or project.lease is not None:
        raise ConflictError(
            f"Project {project.project_id!r} is not asleep, or is being worked on.",
            hint="Deactivate it, wait until it is inactive, and try again.",
        )
    made_for = project.made_for.user_id
    changed = replace(
        project,
        user_id=new_owner,
        environment_user=None if made_for == new_owner else made_for,
        updated_at=now,
    )
    return replace(record, project=changed)


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


def poked(record: ProjectRecord, now: datetime) -> ProjectRecord:
    """Return the record due now; one that is due already keeps its place in the queue."""
    due_at = record.project.due_at
    due_at = now if due_at is None else min(due_at, now)
    return replace(record, project=replace(record.project, due_at=due_at), woken=True)


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
    project = replace(
        before,
        status=outcome.status,
        endpoint=outcome.endpoint,
        error=outcome.error,
        observed_generation=outcome.observed_generation,
        last_activated_at=outcome.last_activated_at,
        last_deactivated_at=outcome.last_deactivated_at,
        outdated=outcome.outdated,
        due_at=now if again else outcome.due_at,
        lease=None if release else lease,
    )
    # A wish that came meanwhile has set these for itself; what the worker knows of them is older.
    if not overtaken:
        project = replace(
            project,
            error_terminal=outcome.error_terminal,
            attempts=outcome.attempts,
            deadline_at=outcome.deadline_at,
        )
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
    lease = record.project.lease if record else None
    if record is None or lease is None or lease.number != claim.number:
        raise lease_lost(claim)
    return record, lease


def lease_lost(claim: Claim) -> LeaseLostError:
    """Return the error for a claim that holds no more."""
    ref = claim.project.ref
    return LeaseLostError(
        f"The claim on project {ref.project_id!r} of {ref.user_id!r} is no longer valid."
    )


def unsettled(project: Project) -> bool:
    """Tell whether it runs, should run, or is on its way."""
    return (
        project.status is not Status.INACTIVE
        or project.desired is not Desired.INACTIVE
        or not project.settled
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
_MAX_MILLIS = 253_402_300_799_999
_CURSOR = re.compile(CURSOR_FORM)
"""The last millisecond of the year 9999, where ``datetime`` ends."""


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
    return f"{place.created}.{place.record_id}"


def decode(cursor: str) -> Position:
    """Return the place that ``encode`` made ``cursor`` from.

    Raises:
        InvalidRequestError: it is none of ours.
    """
    if not _CURSOR.fullmatch(cursor):
        raise InvalidRequestError("The cursor is not one that a page of projects gave.")
    created, _, record_id = cursor.partition(".")
    return Position(min(int(created), _MAX_MILLIS), record_id)


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
