"""What an operator must see to in a store, for ``greylag doctor``. Nothing is changed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from greylag.domain.project import Desired, Project
from greylag.ports import Archive, Finding

_LONG = timedelta(hours=1)
"""After this time, what should have gone on has stopped."""


@dataclass(frozen=True, slots=True)
class StoreReport:
    """How many records were looked at, and what was found."""

    projects: int
    findings: Sequence[Finding]


async def check_store(archive: Archive, now: datetime) -> StoreReport:
    """Look at the whole store: whether it is whole, can be read, and gets on."""
    found: list[Finding] = []
    if await archive.incomplete():
        found.append(
            Finding(
                "store",
                "An import into the store has not ended: it holds only a part of its records.",
                "Run the same `greylag import` again.",
            )
        )
    found += await archive.findings()
    count = 0
    async for batch in archive.read():
        count += len(batch)
        for one in batch:
            found += [one] if isinstance(one, Finding) else stuck(one.project, now)
    async for people in archive.people():
        found += [one for one in people if isinstance(one, Finding)]
    return StoreReport(count, found)


def stuck(project: Project, now: datetime) -> Iterator[Finding]:
    """Yield what should have happened to a project long ago, and has not."""
    who = f"Project {project.project_id!r} of user {project.user_id!r}"
    # Not by the last change alone: each try of a deletion that is refused is one.
    limit = project.deadline_at or project.updated_at
    if project.desired is Desired.DELETED and now - limit > _LONG:
        yield Finding(
            project.id,
            f"{who} was to be deleted by {limit:%Y-%m-%d %H:%M:%S} and is still there.",
            "See that a `greylag worker` runs on this store and can reach the cluster; the "
            "project's events say what it met.",
        )
    lease = project.lease
    if lease is not None and now - lease.until > _LONG:
        yield Finding(
            project.id,
            f"{who}: the lease of worker {lease.worker} ran out at "
            f"{lease.until:%Y-%m-%d %H:%M:%S}, and nobody has gone on.",
            "Start a `greylag worker` on this store: it takes over what a dead one has left.",
        )
