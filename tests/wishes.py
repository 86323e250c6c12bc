"""What requests make of a record, given to a store as the use cases give it."""

from datetime import datetime
from functools import partial

from greylag.domain.audit import AuditEvent
from greylag.domain.project import (
    Desired,
    Project,
    ProjectRef,
    edited,
    handed_over,
    refreshed,
    wanted,
)
from greylag.ports import ProjectStore
from greylag.services.projects import Edit


async def edit(
    store: ProjectStore,
    owner: str,
    project_id: str,
    change: Edit,
    now: datetime,
    *,
    audit: AuditEvent | None = None,
) -> Project:
    rule = partial(edited, name=change.name, metadata=change.metadata, now=now)
    return await store.change(ProjectRef(owner, project_id), rule, audit)


async def want(  # noqa: PLR0917 - whose, what, and when
    store: ProjectStore,
    owner: str,
    project_id: str,
    desired: Desired,
    now: datetime,
    deadline: datetime,
    *,
    again: bool = False,
    audit: AuditEvent | None = None,
) -> Project:
    rule = partial(wanted, desired=desired, now=now, deadline=deadline, again=again)
    return await store.change(ProjectRef(owner, project_id), rule, audit)


async def refresh(
    store: ProjectStore,
    owner: str,
    project_id: str,
    now: datetime,
    *,
    audit: AuditEvent | None = None,
) -> Project:
    rule = partial(refreshed, now=now)
    return await store.change(ProjectRef(owner, project_id), rule, audit)


async def hand_over(
    store: ProjectStore, owner: str, project_id: str, new_owner: str, now: datetime
) -> Project:
    rule = partial(handed_over, new_owner=new_owner, now=now)
    return await store.change(ProjectRef(owner, project_id), rule, None)
