"""Export of a whole store into a file, and import of one into a store."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import BinaryIO

from greylag.ports import Archive, Finding, StoredProject, StoreInUseError, StoreNotEmptyError
from greylag.services.store_file import Contents, ExportWriter, instance_of, read_export

Tell = Callable[[str, int, int], None]
"""Hears of a step (one word), how many projects are done, and of how many about."""

_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of an import; of ``left_out`` projects the store cannot keep what others added."""

    contents: Contents
    left_out: int


async def export_store(
    archive: Archive,
    write: Callable[[bytes], object],
    now: datetime,
    tell: Tell,
    unreadable: Callable[[Finding], None],
) -> Contents:
    """Write all that can be read of a store, which may be worked on meanwhile.

    Each project is as it was at one moment, with its log and keys; keys that have expired, and who
    works on what, stay behind.

    Args:
        archive: the store.
        write: takes the file, some lines at a time; it may block.
        now: the time.
        tell: hears of the progress.
        unreadable: hears of each record that cannot be read and is left out.
    """
    writer = ExportWriter()
    total = await archive.count()
    header = writer.header(now, archive.place, total, await archive.instance())
    await asyncio.to_thread(write, header)
    async for batch in archive.read():
        lines = []
        for one in batch:
            if isinstance(one, Finding):
                writer.contents.unreadable += 1
                unreadable(one)
            else:
                lines.append(writer.project(_current(one, now)))
        await asyncio.to_thread(write, b"".join(lines))
        done = writer.contents.projects + writer.contents.unreadable
        tell("exporting", done, max(done, total))
    await asyncio.to_thread(write, writer.end())
    return writer.contents


async def import_store(
    archive: Archive, file: BinaryIO, now: datetime, tell: Tell, *, replacing: bool
) -> Imported:
    """Put the projects of an export into a store, in place of all that is there.

    They arrive without a lease and due, so that a worker looks at each. The store is then of the
    Greylag that the export is of: what that has on a cluster is its own. A store that an import has
    left incomplete is filled anew.

    Args:
        archive: the store.
        file: an export that was read to its end before, at its beginning.
        now: the time.
        tell: hears of the progress.
        replacing: whether the store may hold anything.

    Raises:
        ExportUnusableError: the file is not whole any more.
        StoreNotEmptyError: the store holds something.
        StoreInUseError: a worker holds a lease in it.
    """
    count = await archive.count()
    if count and not replacing and not await archive.incomplete():
        raise StoreNotEmptyError(f"{archive.place} is not empty: it holds {count} projects.")
    at_work = await archive.at_work(now)
    if at_work is not None:
        raise StoreInUseError(
            f"{archive.place} is being worked on: a worker has project {at_work.project_id!r} of "
            f"user {at_work.user_id!r}."
        )
    found, left_out = Contents(), 0
    reading = read_export(file, lambda done, total: tell("importing", done, total))
    instance = await asyncio.to_thread(instance_of, file)
    async with archive.replacing(instance) as fill:
        while batch := await asyncio.to_thread(_next, reading):
            await fill([_arriving(stored, now) for stored in batch])
            for stored in batch:
                found.add(stored)
                left_out += bool(stored.extra) and not archive.keeps_extra
    return Imported(found, left_out)


def _next(reading: Iterator[StoredProject]) -> list[StoredProject]:
    return list(islice(reading, _AT_ONCE))


def _current(stored: StoredProject, now: datetime) -> StoredProject:
    return replace(stored, keys=[key for key in stored.keys if key.expires_at > now])


def _arriving(stored: StoredProject, now: datetime) -> StoredProject:
    """Return a project as it arrives.

    Its environment may have seen newer claims than the export knows of. Claims go on from a number
    that no count of them comes to, lest the cluster takes each new one for an old one.
    """
    due = stored.project.due_at
    due = now if due is None else min(due, now)
    claims = max(stored.claims, int(now.timestamp() * 1000))
    project = replace(stored.project, lease=None, due_at=due)
    return replace(_current(stored, now), project=project, claims=claims)
