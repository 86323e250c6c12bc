"""What every store keeps to when it is read and filled as a whole."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.store_adapters import IDLE, at, make_project
from tests.store.archive_places import (
    KINDS,
    Site,
    everything,
    leased,
    make_bundle,
    make_event,
    sites_in,
)

from greylag.domain.project import NewEvent, ProjectRef
from greylag.ports import Archive, IdempotencyKey, KeptKey, StoreNotEmptyError


@pytest.fixture(params=KINDS)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """Each kind of store in turn, empty and filled from nowhere yet."""
    async with sites_in(tmp_path) as sites:
        yield await sites.make(request.param)


@pytest.fixture
async def archive(site: Site) -> AsyncIterator[Archive]:
    """The store, ready to be filled from "there"."""
    async with site.archive() as opened:
        assert await opened.begin("there")
        yield opened


async def test_an_empty_store_has_nothing_on_its_sheets(archive: Archive) -> None:
    assert await everything(archive) == []
    assert await archive.count() == 0
    assert await archive.find(["65a000000000000000000001"]) == {}


async def test_all_that_was_written_comes_back(archive: Archive) -> None:
    full = leased(make_bundle(), at(60))
    bare = replace(make_bundle("bare"), project=make_project("bare"), events=[], keys=[])
    bare = replace(bare, last_seq=0, claims=0)
    await archive.write([full, bare])
    assert await everything(archive) == [full, bare]
    ids = [full.project.id, "65a000000000000000000001"]
    assert await archive.find(ids) == {full.project.id: full}


async def test_sheets_give_each_record_once_in_one_order(archive: Archive) -> None:
    written = [make_bundle(f"p{number}", events=1) for number in range(7)]
    await archive.write(written[4:])
    await archive.write(written[:4])
    for limit in (1, 3, 7, 500):
        assert await everything(archive, limit) == written
    assert len((await archive.sheet(None, 3)).bundles) == 3
    assert await archive.count() == 7


async def test_long_logs_make_short_sheets(archive: Archive) -> None:
    await archive.write([make_bundle(f"p{number}", events=500) for number in range(12)])
    assert len((await archive.sheet(None, 500)).bundles) == 10
    found = await everything(archive)
    assert [len(bundle.events) for bundle in found] == [500] * 12


async def test_writing_again_puts_the_new_in_place_of_the_old(archive: Archive) -> None:
    first = make_bundle(events=5)
    await archive.write([first, make_bundle("other")])
    other_key = KeptKey("ada", "another", "f", at(1))
    second = replace(first, events=[make_event(2, message="New.")], keys=[other_key], claims=8)
    await archive.write([second])
    await archive.write([second])
    assert await archive.find([first.project.id]) == {first.project.id: second}
    assert await archive.count() == 2


async def test_a_key_of_nothing_gives_way(archive: Archive) -> None:
    bundle = make_bundle()
    await archive.write([bundle])
    # As a creation that was cut off leaves it: the key is there, under another record's id.
    stranger = make_bundle("stranger")
    await archive.write([replace(stranger, keys=bundle.keys)])
    assert (await archive.find([stranger.project.id]))[stranger.project.id].keys == bundle.keys


async def test_another_record_of_the_same_project_is_refused(archive: Archive) -> None:
    bundle = make_bundle()
    await archive.write([bundle])
    with pytest.raises(StoreNotEmptyError, match="'demo' of user 'ada'"):
        await archive.write([make_bundle()])
    assert await everything(archive) == [bundle]


async def test_only_a_lease_that_has_not_run_out_holds(archive: Archive) -> None:
    await archive.write([leased(make_bundle("past"), at(9)), leased(make_bundle(), at(60))])
    held = await archive.held(at(10))
    assert held is not None
    assert (held.ref, held.worker, held.until) == (ProjectRef("ada", "demo"), "worker", at(60))
    assert await archive.held(at(60)) is None


async def test_only_an_empty_store_or_ones_own_copy_can_be_filled(archive: Archive) -> None:
    assert await archive.unfinished() == "there"
    await archive.write([make_bundle()])
    assert await archive.begin("there")
    assert not await archive.begin("elsewhere")
    assert [flaw.code for flaw in await archive.flaws()] == ["unfinished_copy"]
    await archive.finish()
    await archive.finish()
    assert await archive.unfinished() is None
    assert not await archive.begin("there")
    assert await archive.unfinished() is None
    assert await archive.flaws() == []


async def test_the_programs_go_on_with_what_was_written(site: Site, archive: Archive) -> None:
    bundle = make_bundle(due_at=at(0))
    await archive.write([bundle])
    await archive.finish()
    async with site.store() as store:
        assert await store.get("ada", "demo") == bundle.project
        assert list(await store.events("ada", "demo", 1, 100)) == list(bundle.events[1:])
        key = IdempotencyKey("key of demo", "fingerprint")
        again = await store.create(make_project("demo"), key)
        assert (again.new, again.project) == (False, bundle.project)
        # Numbers of claims and of events go on where they were.
        claim = await store.claim_due("worker", at(1), 30)
        assert claim is not None
        assert claim.number == bundle.claims + 1
        outcome = replace(IDLE, events=[NewEvent("e", "E"), NewEvent("f", "F")])
        await store.record(claim, outcome, at(2), release=True)
        log = await store.events("ada", "demo", 0, 100)
        assert [event.seq for event in log] == [1, 2, 3, 4, 5]
    (found,) = await everything(archive)
    assert [event.seq for event in found.events] == [1, 2, 3, 4, 5]
    assert (found.last_seq, found.claims) == (5, 8)


async def test_a_closed_archive_may_be_closed_again(site: Site) -> None:
    async with site.archive() as opened:
        await opened.close()
