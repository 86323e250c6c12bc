"""A project's record as its store has it, and what requests make of it: pure, so that every store
changes it alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from greylag.domain.errors import ConflictError, ProjectDeletingError
from greylag.domain.project import Desired, Project, Status


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


def edited(
    record: ProjectRecord, name: str | None, metadata: Mapping[str, Any] | None, now: datetime
) -> ProjectRecord:
    """Return the record with the edit in it; the same record when that changes nothing."""
    project = record.project
    if project.desired is Desired.DELETED:
        raise ProjectDeletingError(f"Project {project.project_id!r} is being deleted.")
    name = project.name if name is None else name
    metadata = project.metadata if metadata is None else metadata
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


def poked(record: ProjectRecord, now: datetime) -> ProjectRecord:
    """Return the record due now; one that is due already keeps its place in the queue."""
    due_at = record.project.due_at
    due_at = now if due_at is None else min(due_at, now)
    return replace(record, project=replace(record.project, due_at=due_at), woken=True)


def unsettled(project: Project) -> bool:
    """Tell whether it runs, should run, or is on its way."""
    return (
        project.status is not Status.INACTIVE
        or project.desired is not Desired.INACTIVE
        or not project.settled
    )
