"""Copying a whole store into another: cut off anywhere, the same call again goes on.

It is not remembered how far a copy came. Each run compares what is there with what should be, and
writes what differs; so a second run is quick, and right whatever has happened between.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice

from greylag.domain.errors import StoreUnavailableError
from greylag.ports import (
    Archive,
    Bundle,
    StoreCopyDiffersError,
    StoreIncompleteError,
    StoreInUseError,
    StoreNotEmptyError,
)
from greylag.services.store_digest import Tally, content, current, readable_sheets

_NAMED = 3
_GOES_ON = "What was copied stays: run the same command again, and it goes on."


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: ``done`` of ``total`` records of a ``step`` (``copying``, ``verifying``)."""

    step: str
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the target holds now. ``written`` projects differed or were not there before this run;
    ``left_out`` had fields of others that the target cannot keep.
    """

    source: str
    target: str
    projects: int
    events: int
    keys: int
    digest: str
    written: int
    left_out: int


class StoreCopy:
    """One run of a copy; ``now`` is its time, and ``tell`` hears of its progress."""

    def __init__(
        self, source: Archive, target: Archive, now: datetime, tell: Callable[[Progress], None]
    ) -> None:
        self._source = source
        self._target = target
        self._now = now
        self._tell = tell
        self._same_kind = source.kind == target.kind
        self._left_out = 0

    async def run(self) -> Summary:
        """Make the target hold all that the source holds, and verify it by count and digest.

        Records arrive with no lease and due, so that a worker looks at each. Idempotency keys that
        have expired are left behind, and so are events and keys of no project.

        Raises:
            StoreInUseError: a worker holds a lease on a project of the source.
            StoreNotEmptyError: the target holds what no copy from this source has put there.
            StoreIncompleteError: the source itself is only partly filled.
            StoreUnreadableError: a record cannot be read.
            StoreCopyDiffersError: it was verified, and is not the same.
            StoreUnavailableError: a store cannot be reached.
        """
        try:
            return await self._run()
        except StoreUnavailableError as error:
            raise StoreUnavailableError(str(error), hint=_GOES_ON) from error

    async def _run(self) -> Summary:
        await self._check_source()
        if not await self._target.begin(self._source.place):
            return await self._done_before()
        written = await self._copy()
        tally = await self._verify()
        await self._target.finish()
        return self._summary(tally, written)

    async def _check_source(self) -> None:
        origin = await self._source.unfinished()
        if origin is not None:
            raise StoreIncompleteError(
                f"{self._source.place} holds only a part of what is being copied from {origin}."
            )
        held = await self._source.held(self._now)
        if held is not None:
            raise StoreInUseError(
                f"{self._source.place} is being worked on: worker {held.worker} has project "
                f"{held.ref.project_id!r} of user {held.ref.user_id!r} until "
                f"{held.until:%H:%M:%S} UTC."
            )

    async def _copy(self) -> int:
        """Write what differs; return how many projects that was."""
        total = await self._source.count()
        done = written = 0
        async for sheet in readable_sheets(self._source):
            wanted = [current(bundle, self._now) for bundle in sheet.bundles]
            differing = await self._differing(wanted)
            await self._target.write([_arriving(bundle, self._now) for bundle in differing])
            done += len(wanted)
            written += len(differing)
            self._tell(Progress("copying", done, total))
        return written

    async def _differing(self, wanted: Sequence[Bundle]) -> list[Bundle]:
        there = await self._target.find([bundle.project.id for bundle in wanted])
        return [bundle for bundle in wanted if not self._same(bundle, there.get(bundle.project.id))]

    def _same(self, wanted: Bundle, there: Bundle | None) -> bool:
        if there is None or (self._same_kind and wanted.extra != there.extra):
            return False
        return content(wanted) == content(current(there, self._now))

    async def _verify(self) -> Tally:
        """Return what both hold; raise ``StoreCopyDiffersError`` if they hold different things."""
        expected, found = await self._tallies()
        surplus = await self._surplus() if found.projects > expected.projects else ""
        if surplus:
            raise StoreCopyDiffersError(
                f"{self._target.place} holds what {self._source.place} does not: {surplus}.",
                hint="Nothing is removed by a copy: if it is not needed, empty the target and copy "
                "again.",
            )
        if not self._equal(expected, found):
            raise StoreCopyDiffersError(
                f"{self._target.place} holds {_words(found)}, but {self._source.place} "
                f"{_words(expected)}."
            )
        await self._check_source()
        return found

    async def _tallies(self) -> tuple[Tally, Tally]:
        # Both are read, the source too: it may have been written to while it was copied.
        total = await self._source.count() + await self._target.count()
        expected = await self._tally(self._source, 0, total)
        self._left_out = expected.with_extra
        return expected, await self._tally(self._target, expected.projects, total)

    async def _tally(self, archive: Archive, before: int, total: int) -> Tally:
        tally = Tally()
        async for sheet in readable_sheets(archive):
            for bundle in sheet.bundles:
                tally.add(current(bundle, self._now))
            self._tell(Progress("verifying", before + tally.projects, total))
        return tally

    def _equal(self, one: Tally, other: Tally) -> bool:
        same_extra = one.digest_with_extra == other.digest_with_extra or not self._same_kind
        return one.digest == other.digest and one.projects == other.projects and same_extra

    async def _surplus(self) -> str:
        """Return in words some projects that only the target has."""
        names: list[str] = []
        async for sheet in readable_sheets(self._target):
            known = await self._source.find([bundle.project.id for bundle in sheet.bundles])
            unknown = (one.project for one in sheet.bundles if one.project.id not in known)
            names += [
                f"project {project.project_id!r} of user {project.user_id!r}"
                for project in islice(unknown, _NAMED - len(names))
            ]
            if len(names) == _NAMED:
                break
        return ", ".join(names)

    async def _done_before(self) -> Summary:
        """Return the summary of a copy that was done before, else raise ``StoreNotEmptyError``."""
        origin = await self._target.unfinished()
        if origin is not None:
            raise StoreNotEmptyError(
                f"{self._target.place} holds an unfinished copy from another place, {origin}."
            )
        count = await self._target.count()
        if count == await self._source.count():
            expected, found = await self._tallies()
            if self._equal(expected, found):
                return self._summary(found, 0)
        raise StoreNotEmptyError(f"{self._target.place} is not empty: it holds {count} projects.")

    def _summary(self, tally: Tally, written: int) -> Summary:
        return Summary(
            source=self._source.place,
            target=self._target.place,
            projects=tally.projects,
            events=tally.events,
            keys=tally.keys,
            digest=tally.digest,
            written=written,
            left_out=0 if self._same_kind else self._left_out,
        )


def _arriving(bundle: Bundle, now: datetime) -> Bundle:
    """Return ``bundle`` as it arrives: nobody works on it, and a worker is to look at it."""
    due = bundle.project.due_at
    due = now if due is None else min(due, now)
    return replace(bundle, project=replace(bundle.project, lease=None, due_at=due))


def _words(tally: Tally) -> str:
    return (
        f"{tally.projects} projects, {tally.events} events and {tally.keys} keys "
        f"(digest {tally.digest[:12]})"
    )
