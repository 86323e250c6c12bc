"""What is done with a whole store: its export into a file, the import of one, and a look at all
of it for faults.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import BinaryIO

from greylag.common.sealing import SealError, Sealing
from greylag.domain.audit import START, Actor, AuditAction, AuditBounds
from greylag.domain.errors import StoreUnavailableError
from greylag.domain.project import Desired, Project, unsettled
from greylag.ports import (
    Archive,
    AuditFilter,
    Finding,
    Origin,
    Stored,
    StoredEntry,
    StoredPerson,
    StoredProject,
    StoreIncompleteError,
    StoreInUseError,
    StoreNotEmptyError,
)
from greylag.services.audit import event_of
from greylag.services.store_file import (
    Contents,
    ExportUnusableError,
    ExportWriter,
    origin_of,
    read_export,
)

Tell = Callable[[str, int, int], None]
"""Hears of a step (one word), how many projects are done, and of how many about."""

_AT_ONCE = 100
_STEP = timedelta(seconds=30)
"""So long after each such number of projects the next of those that rest are due: nobody waits for
them, and a worker that starts looks by itself at what is to run and at what the cluster has.
"""


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of an import; of ``left_out`` projects the store cannot keep what others added, and
    ``entries_left_out`` of another audit trail than its own.
    """

    contents: Contents
    left_out: int
    entries_left_out: int = 0


async def export_store(
    archive: Archive,
    write: Callable[[bytes], object],
    now: datetime,
    tell: Tell,
    unreadable: Callable[[Finding], None],
) -> Contents:
    """Write all that can be read of a store, which may be worked on meanwhile.

    Each project is as it was at one moment, with its log and keys; keys that have expired, who
    works on what, and who is signed in stay behind. The audit trail is as it was at the beginning.

    Args:
        archive: the store.
        write: takes the file, some lines at a time; it may block.
        now: the time.
        tell: hears of the progress.
        unreadable: hears of each record that cannot be read and is left out.

    Raises:
        StoreIncompleteError: an import into it has not ended.
        StoreInUseError: one has ended meanwhile. What was written is no whole export, either way.
    """
    await _check_complete(archive)
    last_import = await _last_import(archive)
    writer = ExportWriter()
    total = await archive.count()
    people, trail = await archive.count_people(), await archive.audit_bounds()
    origin = Origin(await archive.instance(), people, None if trail.end == START else trail)
    header = writer.header(now, archive.place, total, origin)

    def lines(batch: Sequence[Stored | Finding]) -> Iterator[bytes]:
        for one in batch:
            if isinstance(one, Finding):
                writer.contents.unreadable += 1
                unreadable(one)
            else:
                yield writer.record(_current(one, now))

    await asyncio.to_thread(write, header)
    if people:  # who comes later is not in an export that was begun without any
        async for some in archive.people():
            await asyncio.to_thread(write, b"".join(lines(some)))
    async for entries in _entries(archive, trail):
        await asyncio.to_thread(write, b"".join(lines(entries)))
    async for batch in archive.read():
        await asyncio.to_thread(write, b"".join(lines(batch)))
        done = writer.contents.projects + writer.contents.unreadable
        tell("exporting", done, max(done, total))
    await _check_complete(archive)  # an import may have emptied it meanwhile
    if await _last_import(archive) > last_import:
        raise StoreInUseError(
            f"Other records were put into {archive.place} while they were exported.",
            hint="Export again.",
        )
    await asyncio.to_thread(write, writer.end())
    return writer.contents


async def _check_complete(archive: Archive) -> None:
    if await archive.incomplete():
        raise StoreIncompleteError(
            f"{archive.place} holds only a part of its records: an import into it has not ended."
        )


async def _last_import(archive: Archive) -> int:
    """Return the number of the audit trail's newest entry that tells of an import; 0: of none."""
    newest = (await archive.audit_bounds()).end.number
    imports = AuditFilter(action=AuditAction.RECORDS_IMPORT)
    found = await archive.audit_entries(imports, 1, before=newest + 1)
    return found[0][0] if found else 0


async def _entries(
    archive: Archive, trail: AuditBounds
) -> AsyncIterator[Sequence[StoredEntry | Finding]]:
    """Yield the audit trail, some entries at a time, and what is missing in it."""
    last = trail.start.number
    while last < trail.end.number:
        found = await archive.audit_entries(AuditFilter(), _AT_ONCE, after=last)
        batch: list[StoredEntry | Finding] = []
        for number, body in found or [(trail.end.number + 1, {})]:
            if number > last + 1:
                batch.append(_missing(last + 1))
            if number <= trail.end.number:
                batch.append(StoredEntry(number, body))
            last = number
            if last >= trail.end.number:
                break
        yield batch


def _missing(number: int) -> Finding:
    return Finding(
        f"audit {number}",
        f"The entry {number} of the audit trail, and maybe others after it, is missing.",
        "If it was old enough to be removed meanwhile, export again; else see "
        "`greylag audit verify`.",
    )


async def import_store(  # noqa: PLR0913 - what goes where, when, by whom
    archive: Archive, file: BinaryIO, now: datetime, tell: Tell, by: Actor, *, replacing: bool
) -> Imported:
    """Put the records of an export into a store, in place of all that is there; users, tokens and
    members of that stay where the export holds none.

    Projects arrive without a lease and due, so that a worker looks at each: of many that rest some
    at a time, lest a wish waits for all of them. The store is then of
    the Greylag that the export is of: what that has on a cluster is its own. A store that an import
    has left incomplete is filled anew.

    What was signed before, such as an operator's sign-in, counts no more: which of it was ended or
    used is in no export.

    The audit trail comes too where the store has none. Where it has one, that goes on, since
    nothing may end a trail. Either one then tells of the import.

    Args:
        archive: the store.
        file: an export that was read to its end before, at its beginning.
        now: the time.
        tell: hears of the progress.
        by: who does it.
        replacing: whether the store may hold anything.

    Raises:
        ExportUnusableError: the file is not whole any more.
        StoreNotEmptyError: the store holds something.
        StoreInUseError: a worker holds a lease in it.
    """
    writes = False
    try:
        async with archive.alone():
            origin = await _let_in(archive, file, now, replacing=replacing)
            fresh = (await archive.audit_bounds()).end == START
            writes = True
            return await _import(
                archive, file, origin, now, tell, by, replacing=replacing, fresh=fresh
            )
    except (ExportUnusableError, StoreUnavailableError) as error:
        if not writes or not await _may_be_incomplete(archive):
            raise
        hint = "The store holds only a part of its records now: import a whole export again."
        raise type(error)(error.info.message, hint=hint) from error


async def _may_be_incomplete(archive: Archive) -> bool:
    try:
        return await archive.incomplete()
    except StoreUnavailableError:
        return True


async def _let_in(archive: Archive, file: BinaryIO, now: datetime, *, replacing: bool) -> Origin:
    """Return what an export is of, which may be put into the store as that is now."""
    origin = await asyncio.to_thread(origin_of, file)
    if not replacing:
        await _check_empty(archive, origin)
    at_work = await archive.at_work(now)
    if at_work is not None:
        raise StoreInUseError(
            f"{archive.place} is being worked on: a worker has project {at_work.project_id!r} of "
            f"user {at_work.user_id!r}."
        )
    return origin


async def _import(  # noqa: PLR0913, PLR0917 - as above
    archive: Archive,
    file: BinaryIO,
    origin: Origin,
    now: datetime,
    tell: Tell,
    by: Actor,
    *,
    replacing: bool,
    fresh: bool,
) -> Imported:
    trail = origin.trail if fresh else None
    found, left_out, entries_left_out = Contents(), 0, 0
    reading = read_export(file, lambda done, total: tell("importing", done, total))
    async with archive.replacing(replace(origin, trail=trail), now) as fill:
        while batch := await asyncio.to_thread(list, islice(reading, _AT_ONCE)):
            kept = [one for one in batch if trail or not isinstance(one, StoredEntry)]
            entries_left_out += len(batch) - len(kept)
            rested = now + found.projects // _AT_ONCE * _STEP
            await fill([_arriving(stored, now, rested) for stored in kept])
            for stored in kept:
                found.add(stored)
                extra = isinstance(stored, StoredProject) and stored.extra
                left_out += bool(extra) and not archive.keeps_extra
        end = origin.trail.end if origin.trail and not trail else None
        event = event_of(
            by,
            now,
            AuditAction.RECORDS_IMPORT,
            "",
            projects=found.projects,
            people=found.people,
            replaced=replacing,
            trail_left_out=end and f"{end.number}:{end.hash}",
        )
        await fill([event])
    return Imported(found, left_out, entries_left_out)


async def _check_empty(archive: Archive, origin: Origin) -> None:
    """Raise ``StoreNotEmptyError`` when a store holds some of what an export would replace."""
    there = {"projects": await archive.count()}
    if origin.people:
        there["users, tokens and members"] = await archive.count_people()
    if any(there.values()) and not await archive.incomplete():
        held = " and ".join(f"{count} {name}" for name, count in there.items() if count)
        raise StoreNotEmptyError(f"{archive.place} is not empty: it holds {held}.")


def _current(stored: Stored, now: datetime) -> Stored:
    if not isinstance(stored, StoredProject):
        return stored
    return replace(stored, keys=[key for key in stored.keys if key.expires_at > now])


def _arriving(stored: Stored, now: datetime, rested: datetime) -> Stored:
    """Return a record as it arrives: due at once, or at ``rested`` if it rests.

    Its environment may have seen newer claims than the export knows of. Claims go on from a number
    that no count of them comes to, lest the cluster takes each new one for an old one.
    """
    if not isinstance(stored, StoredProject):
        return stored
    arrives = now if unsettled(stored.project) else rested
    due = min(stored.project.due_at or arrives, arrives)
    claims = max(stored.claims, int(now.timestamp() * 1000))
    project = replace(stored.project, lease=None, due_at=due)
    return _current(replace(stored, project=project, claims=claims), now)


# What an operator must see to in a store, for ``greylag doctor``. Nothing is changed.

_LONG = timedelta(hours=1)
"""After this time, what should have gone on has stopped."""
_WAITED = timedelta(minutes=2)
"""Workers take on what is due within seconds."""
_APART = timedelta(minutes=1)
"""What clocks may differ by."""


@dataclass(frozen=True, slots=True)
class StoreReport:
    """How many records were looked at, what was found, which projects have an error, what of the
    sealed needs another key than the first one, and what waits for a worker: of that it is for who
    knows whether any is to run.
    """

    projects: int
    findings: Sequence[Finding]
    failing: Sequence[Finding] = ()
    sealed: Sequence[Finding] = ()
    waiting: Sequence[Finding] = ()


async def check_store(
    archive: Archive, now: datetime, sealing: Sealing | None = None
) -> StoreReport:
    """Look at the whole store: whether it is whole, can be read, gets on, and can be opened by
    ``sealing`` (``None``: there is no key) where it is sealed.
    """
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
    count, failing, waiting, newest = 0, [], [], now
    async for batch in archive.read():
        count += len(batch)
        projects = [one.project for one in batch if not isinstance(one, Finding)]
        found += [one for one in batch if isinstance(one, Finding)]
        found += [finding for one in projects for finding in stuck(one, now)]
        failing += [finding for one in projects for finding in failed(one)]
        waiting += [one for one in projects if one.waits_longer(_WAITED, now)]
        newest = max([newest, *(one.updated_at for one in projects)])
    found += clock_is_behind(newest, now)
    seals = _Seals(sealing)
    async for people in archive.people():
        found += [one for one in people if isinstance(one, Finding)]
        for one in people:
            if isinstance(one, StoredPerson):
                seals.look(one)
    found += seals.faults()
    return StoreReport(count, found, failing, list(seals.warnings()), list(nobody_works(waiting)))


@dataclass(slots=True)
class _Seals:
    """Looks which of the sealed a key opens, and by which it was sealed."""

    sealing: Sealing | None
    lost: list[str] = field(default_factory=list)
    old: list[str] = field(default_factory=list)

    def look(self, one: StoredPerson) -> None:
        """Look at one of the people, if it is sealed."""
        sealed, user = one.body.get("sealed"), one.body.get("user_id")
        if not isinstance(sealed, str):
            return
        what = {"secrets": "secret", "notifications": "notification"}.get(one.kind, "")
        name = one.body.get("name")
        told = f"{what} {name!r} of user {user!r}" if what else "key for pushes"
        try:
            if self.sealing is None or self.sealing.renewed(sealed) is not None:
                (self.old if self.sealing else self.lost).append(told)
        except SealError:
            self.lost.append(told)

    def faults(self) -> Iterator[Finding]:
        """Yield what none of the keys opens."""
        if self.lost and self.sealing is not None:
            yield Finding(
                "sealed",
                f"The key that there is does not open the {_counted(self.lost)}.",
                "Give the one that sealed them too: in GREYLAG_SECRET_KEY (`new,old`), or as the "
                "data folder's file `secret-key`, from a backup. Where it is lost, their users set "
                "them anew.",
            )

    def warnings(self) -> Iterator[Finding]:
        """Yield what the first key does not open, or what cannot be told."""
        if self.lost and self.sealing is None:
            yield Finding(
                "sealed",
                f"There is no key here to open the {_counted(self.lost)}.",
                "Ask again with the GREYLAG_SECRET_KEY of web and worker. Where they have none, "
                "give them the one that it was sealed by.",
            )
        if self.old:
            yield Finding(
                "sealed",
                f"An older key of GREYLAG_SECRET_KEY has sealed the {_counted(self.old)}.",
                "Start Greylag anew with `new,old`: it seals by the first, and the old can go.",
            )


def _counted(names: Sequence[str]) -> str:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{others}"


def nobody_works(waiting: Sequence[Project]) -> Iterator[Finding]:
    """Yield that projects wait for a worker."""
    if waiting:
        names = [f"project {one.project_id!r} of user {one.user_id!r}" for one in waiting]
        since = min(one.claimable_at for one in waiting if one.claimable_at is not None)
        yield Finding(
            "worker",
            f"No worker has taken on {_counted(names)}, since {since:%Y-%m-%d %H:%M:%S} (UTC): "
            "none runs on this store, or all are busy.",
            "Start a `greylag worker` on this store, or one more; `greylag up` has one.",
        )


def clock_is_behind(newest: datetime, now: datetime) -> Iterator[Finding]:
    """Yield that records were written at a time that is still to come."""
    if newest - now > _APART:
        yield Finding(
            "clock",
            f"A record was changed at {newest:%Y-%m-%d %H:%M:%S}, and here it is "
            f"{now:%Y-%m-%d %H:%M:%S} (UTC): this machine's clock is behind, or that of a worker "
            "was ahead.",
            "Set the clocks by NTP, and then start a worker anew: what was claimed by a clock that "
            "was ahead rests until that.",
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
