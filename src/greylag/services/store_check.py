"""What an operator must see to in a store, for ``greylag doctor``. Nothing is changed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from greylag.domain.project import Desired, Project
from greylag.ports import Archive, Finding

_LONG = timedelta(hours=1)
"""After this time, what should have gone on has stopped."""
_APART = timedelta(minutes=1)
"""What clocks may differ by."""


@dataclass(frozen=True, slots=True)
class StoreReport:
    """How many records were looked at, what was found, and which projects have an error."""

    projects: int
    findings: Sequence[Finding]
    failing: Sequence[Finding] = ()


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
    count, failing, newest = 0, [], now
    async for batch in archive.read():
        count += len(batch)
        projects = [one.project for one in batch if not isinstance(one, Finding)]
        found += [one for one in batch if isinstance(one, Finding)]
        found += [finding for one in projects for finding in stuck(one, now)]
        failing += [finding for one in projects for finding in failed(one)]
        newest = max([newest, *(one.updated_at for one in projects)])
    found += clock_is_behind(newest, now)
    async for people in archive.people():
        found += [one for one in people if isinstance(one, Finding)]
    return StoreReport(count, found, failing)


def clock_is_behind(newest: datetime, now: datetime) -> Iterator[Finding]:
    """Yield that records were written at a time that is still to come."""
    if newest - now > _APART:
        yield Finding(
            "clock",
            f"A record was changed at {newest:%Y-%m-%d %H:%M:%S}, and here it is "
            f"{now:%Y-%m-%d %H:%M:%S} (UTC): this machine's clock is behind, or that of a worker "
            "was ahead.",
            "Set the clocks by NTP. What was claimed by a clock that was ahead rests until then.",
        )


def failed(project: Project) -> Iterator[Finding]:
    """Yield why a project is not as it is wanted."""
    if (error := project.error) is not None:
        who = f"Project {project.project_id!r} of user {project.user_id!r}"
        yield Finding(project.id, f"{who}: {error.message} [{error.code}]", error.hint)


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
