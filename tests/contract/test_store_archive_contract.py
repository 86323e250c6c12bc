"""What every store keeps to when it is read and filled as a whole."""

import contextlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.contract.store_adapters import ADAPTERS, IDLE, at, make_project
from tests.store.sites import KINDS, Site, cut_off, everything, sites_in
from tests.store.stored_projects import leased, make_event, make_stored

from greylag.domain.audit import SYSTEM
from greylag.domain.errors import ConfigError
from greylag.domain.project import NewEvent, ProjectRef
from greylag.ports import (
    LONGEST_SIGNED,
    Archive,
    Finding,
    IdempotencyKey,
    StoredKey,
    StoredProject,
    StoreIncompleteError,
    StoreInUseError,
)
from greylag.services.store_export import export_store, import_store


@pytest.fixture(params=ADAPTERS)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """Each kind of store in turn, empty."""
    async with sites_in(tmp_path) as sites:
        yield await sites.make(request.param)


@pytest.fixture
async def archive(site: Site) -> AsyncIterator[Archive]:
    async with site.archive() as opened:
        yield opened


def nobody(*_: object) -> None:
    """Hear nothing."""


def none_unreadable(finding: Finding) -> None:
    pytest.fail(finding.sentence)


async def exported(archive: Archive) -> bytes:
    written: list[bytes] = []
    await export_store(archive, written.append, at(0), nobody, none_unreadable)
    return b"".join(written)


async def fill(archive: Archive, *projects: StoredProject) -> None:
    async with archive.replacing() as put:
        await put(projects)


async def test_an_empty_store_has_nothing_in_it(site: Site, archive: Archive) -> None:
    async with site.store():
        # As the programs make it ready.
        pass
    assert await everything(archive) == []
    assert await archive.count() == 0
    assert not await archive.incomplete()
    assert await archive.findings() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_newer_greylag_has_written_is_refused_in_one_sentence_and_left_alone(
    tmp_path: Path, kind: str
) -> None:
    async with sites_in(tmp_path) as sites:
        stored = make_stored()
        site = await sites.filled(kind, [stored])
        async with site.archive() as earlier:
            await site.written_by_newer()
            with pytest.raises(ConfigError, match="written by a newer Greylag than this one"):
                async with site.store():
                    pass
            for write in (True, False):
                with pytest.raises(ConfigError, match="written by a newer Greylag than this one"):
                    async with site.archive(write=write):
                        pass
            assert await everything(earlier) == [stored]


async def test_all_that_was_put_there_comes_back(archive: Archive) -> None:
    full = leased(make_stored(), at(60))
    bare = StoredProject(project=make_project("bare"))
    await fill(archive, full, bare)
    assert await everything(archive) == [full, replace(bare, events=[], keys=[])]
    assert await archive.count() == 2
    assert not await archive.incomplete()
    assert await archive.findings() == []


async def test_many_come_back_once_in_the_order_of_their_ids(archive: Archive) -> None:
    projects = [make_stored(f"p{number}", events=1) for number in range(120)]
    async with archive.replacing() as put:
        await put(projects[70:])
        await put(projects[:70])
    assert await everything(archive) == projects


async def test_long_logs_come_back_whole(archive: Archive) -> None:
    await fill(archive, make_stored(events=500))
    (found,) = await everything(archive)
    assert [event.seq for event in found.events] == list(range(1, 501))


async def test_no_copy_of_what_was_said_outlives_an_import(site: Site) -> None:
    stored = make_stored()
    async with site.store() as store:
        await store.create(replace(stored.project, lease=None, due_at=at(0)))
        held = await store.claim_due("w", at(0), 30)
        assert held is not None
        await store.keep_transcript(held, {"": b"said"})
    async with site.archive() as archive:
        await fill(archive, stored)
    async with site.store() as store:
        ref = stored.project.ref
        assert await store.transcript(ref.user_id, ref.project_id, "") is None


async def test_others_take_the_place_of_all_that_was_there(archive: Archive) -> None:
    await fill(archive, make_stored("one"), make_stored("two"))
    third = make_stored("three")
    await fill(archive, third)
    assert await everything(archive) == [third]
    await fill(archive)
    assert await everything(archive) == []


async def test_what_is_cut_off_leaves_the_old_or_an_incomplete_store(
    site: Site, archive: Archive
) -> None:
    old, new = make_stored("old"), make_stored("new")
    await fill(archive, old)
    await cut_off(archive, new)
    async with site.archive(write=False) as again:
        assert await again.incomplete() or await everything(again) == [old]
    await fill(archive, new)
    assert not await archive.incomplete()
    assert await everything(archive) == [new]


async def test_a_store_that_is_not_whole_is_not_exported(site: Site, archive: Archive) -> None:
    await fill(archive, make_stored("one"), make_stored("two"))
    whole = await exported(archive)
    await cut_off(archive, make_stored("one"))
    if await archive.incomplete():
        with pytest.raises(StoreIncompleteError, match="only a part"):
            await exported(archive)
    else:
        assert await exported(archive) == whole


class Overtaken:
    """An archive with which something happens as it has been read."""

    def __init__(self, archive: Archive, happens: Callable[[], Awaitable[object]]) -> None:
        self._archive = archive
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._archive, name)

    async def read(self) -> AsyncIterator[Sequence[StoredProject | Finding]]:
        async for batch in self._archive.read():
            yield batch
        await self._happens()


async def test_an_export_during_which_an_import_begins_is_not_whole(archive: Archive) -> None:
    await fill(archive, make_stored("one"), make_stored("two"))
    written: list[bytes] = []
    with contextlib.suppress(StoreIncompleteError):
        emptied: Any = Overtaken(archive, lambda: cut_off(archive))
        await export_store(emptied, written.append, at(0), nobody, none_unreadable)
    assert (b'"end"' in written[-1]) is not await archive.incomplete()


@pytest.mark.parametrize("before", [0, 1])
async def test_an_export_during_which_an_import_ends_is_no_mixture_of_both(
    archive: Archive, before: int
) -> None:
    await fill(archive, make_stored("one"), make_stored("two"))
    file = await exported(archive)

    async def again() -> object:
        return await import_store(archive, io.BytesIO(file), at(0), nobody, SYSTEM, replacing=True)

    for _ in range(before):
        await again()
    written: list[bytes] = []
    refilled: Any = Overtaken(archive, again)
    with pytest.raises(StoreInUseError, match="Other records were put into"):
        await export_store(refilled, written.append, at(0), nobody, none_unreadable)
    assert b'"end"' not in written[-1]
    assert len(await exported(archive)) > 0


async def test_what_was_signed_before_an_import_is_revoked(site: Site, archive: Archive) -> None:
    # The real time: one of the stores lets its server forget what has run out.
    now = datetime.now(UTC)
    second = timedelta(seconds=1)
    async with site.store() as store:
        assert not await store.is_revoked("a", now - second)
        assert await store.revoke("used", now + second, now)
    async with archive.replacing(at=now) as put:
        await put([make_stored()])
    async with site.store() as store:
        assert await store.is_revoked("a", now - second)
        assert not await store.is_revoked("a", now.replace(microsecond=0))
        assert not await store.is_revoked("a")
        assert await store.is_revoked("used")
        # It is kept for as long as anything lives that was signed before.
        await store.revoke("b", now + second, now + LONGEST_SIGNED - second)
        assert await store.is_revoked("a", now - second)


async def test_of_two_records_of_one_project_the_later_counts(archive: Archive) -> None:
    earlier, later = make_stored(), make_stored()
    other_key = StoredKey("ada", "another", "f", at(1))
    later = replace(later, events=[make_event(2, message="New.")], keys=[other_key])
    async with archive.replacing() as put:
        await put([earlier, later])
        await put([later])
    assert await everything(archive) == [later]


async def test_only_a_lease_that_has_not_run_out_is_work(archive: Archive) -> None:
    await fill(archive, leased(make_stored("past"), at(9)), leased(make_stored(), at(60)))
    assert await archive.at_work(at(10)) == ProjectRef("ada", "demo")
    assert await archive.at_work(at(60)) is None


async def test_the_programs_go_on_with_what_was_put_there(site: Site, archive: Archive) -> None:
    stored = make_stored(due_at=at(0))
    await fill(archive, stored)
    async with site.store() as store:
        assert await store.get("ada", "demo") == stored.project
        assert list(await store.events("ada", "demo", 1, 100)) == list(stored.events[1:])
        key = IdempotencyKey("key of demo", "fingerprint")
        again = await store.create(make_project("demo"), key)
        assert (again.new, again.project) == (False, stored.project)
        # Numbers of claims and of events go on where they were.
        claim = await store.claim_due("worker", at(1), 30)
        assert claim is not None
        assert claim.number == stored.claims + 1
        outcome = replace(IDLE, events=[NewEvent("e", "E"), NewEvent("f", "F")])
        await store.record(claim, outcome, at(2), release=True)
        log = await store.events("ada", "demo", 0, 100)
        assert [event.seq for event in log] == [1, 2, 3, 4, 5]
    async with site.archive(write=False) as reading:
        (found,) = await everything(reading)
    assert [event.seq for event in found.events] == [1, 2, 3, 4, 5]
    assert (found.project.last_seq, found.claims) == (5, 8)


async def test_whoever_listens_looks_at_all_anew(site: Site, archive: Archive) -> None:
    async with site.store() as store:
        with store.subscribe(ProjectRef("ada", "demo")) as heard:
            await heard.changed(0.1)
            await fill(archive, make_stored())
            assert await heard.changed(10)


async def test_a_closed_archive_may_be_closed_again(site: Site) -> None:
    async with site.archive() as opened:
        await opened.close()
        await opened.close()
