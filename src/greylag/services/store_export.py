"""Export of a whole store into a file, and import of one into a store."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import BinaryIO

from greylag.ports import (
    Archive,
    Finding,
    Stored,
    StoredProject,
    StoreInUseError,
    StoreNotEmptyError,
)
from greylag.services.store_file import Contents, ExportWriter, origin_of, read_export

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

    Each project is as it was at one moment, with its log and keys; keys that have expired, who
    works on what, and who is signed in stay behind.

    Args:
        archive: the store.
        write: takes the file, some lines at a time; it may block.
        now: the time.
        tell: hears of the progress.
        unreadable: hears of each record that cannot be read and is left out.
    """
    writer = ExportWriter()
    total = await archive.count()
    people = await archive.count_people()
    header = writer.header(now, archive.place, total, await archive.instance(), people)

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
    async for batch in archive.read():
        await asyncio.to_thread(write, b"".join(lines(batch)))
        done = writer.contents.projects + writer.contents.unreadable
        tell("exporting", done, max(done, total))
    await asyncio.to_thread(write, writer.end())
    return writer.contents


async def import_store(
    archive: Archive, file: BinaryIO, now: datetime, tell: Tell, *, replacing: bool
) -> Imported:
    """Put the records of an export into a store, in place of all that is there; users, tokens and
    members of that stay where the export holds none.

    Projects arrive without a lease and due, so that a worker looks at each. The store is then of
    the Greylag that the export is of: what that has on a cluster is its own. A store that an import
    has left incomplete is filled anew.

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
    instance, people = await asyncio.to_thread(origin_of, file)
    there = {"projects": await archive.count()}
    if people:
        there["users, tokens and members"] = await archive.count_people()
    if any(there.values()) and not replacing and not await archive.incomplete():
        held = " and ".join(f"{count} {name}" for name, count in there.items() if count)
        raise StoreNotEmptyError(f"{archive.place} is not empty: it holds {held}.")
    at_work = await archive.at_work(now)
    if at_work is not None:
        raise StoreInUseError(
            f"{archive.place} is being worked on: a worker has project {at_work.project_id!r} of "
            f"user {at_work.user_id!r}."
        )
    found, left_out = Contents(), 0
    reading = read_export(file, lambda done, total: tell("importing", done, total))
    async with archive.replacing(instance, people=people) as fill:
        while batch := await asyncio.to_thread(_next, reading):
            await fill([_arriving(stored, now) for stored in batch])
            for stored in batch:
                found.add(stored)
                extra = isinstance(stored, StoredProject) and stored.extra
                left_out += bool(extra) and not archive.keeps_extra
    return Imported(found, left_out)


def _next(reading: Iterator[Stored]) -> list[Stored]:
    return list(islice(reading, _AT_ONCE))


def _current(stored: Stored, now: datetime) -> Stored:
    if not isinstance(stored, StoredProject):
        return stored
    return replace(stored, keys=[key for key in stored.keys if key.expires_at > now])


def _arriving(stored: Stored, now: datetime) -> Stored:
    """Return a record as it arrives.

    Its environment may have seen newer claims than the export knows of. Claims go on from a number
    that no count of them comes to, lest the cluster takes each new one for an old one.
    """
    if not isinstance(stored, StoredProject):
        return stored
    due = stored.project.due_at
    due = now if due is None else min(due, now)
    claims = max(stored.claims, int(now.timestamp() * 1000))
    project = replace(stored.project, lease=None, due_at=due)
    return _current(replace(stored, project=project, claims=claims), now)
