"""Copies between stores: lossless both ways, right after any cut, and never over anything else."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.contract.store_adapters import at
from tests.store.archive_bundles import BUNDLES
from tests.store.archive_places import (
    KINDS,
    Site,
    Sites,
    everything,
    leased,
    make_bundle,
    raw_database,
    sites_in,
)

from greylag.domain.errors import StoreUnavailableError
from greylag.ports import (
    Archive,
    Bundle,
    PageQuery,
    StoreCopyDiffersError,
    StoreIncompleteError,
    StoreInUseError,
    StoreNotEmptyError,
    StoreUnreadableError,
)
from greylag.services import store_digest
from greylag.services.store_copy import Progress, StoreCopy, Summary

NOW = at(100)
WAYS = [(source, target) for source in KINDS for target in KINDS]


class CutError(Exception):
    """The copy ends here, as a killed process does."""


Spoil = Callable[[int, Sequence[Bundle]], Sequence[Bundle]]
"""Makes of what is to be written, as the n-th, what is written instead."""


class Spoiled:
    """An archive to which something happens as it writes."""

    def __init__(self, archive: Archive, spoil: Spoil, cut_after: int | None) -> None:
        self._archive = archive
        self._spoil = spoil
        self._cut_after = cut_after
        self._writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._archive, name)

    async def write(self, bundles: Sequence[Bundle]) -> None:
        await self._archive.write(self._spoil(self._writes, bundles))
        if self._writes == self._cut_after:
            raise CutError
        self._writes += 1


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[Sites]:
    async with sites_in(tmp_path) as made:
        yield made


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_digest, "AT_ONCE", 3)


async def copied(
    source: Site,
    target: Site,
    *,
    spoil: Spoil = lambda _, bundles: bundles,
    cut_after: int | None = None,
    tell: Callable[[Progress], None] = lambda _: None,
) -> Summary:
    async with source.archive(write=False) as reading, target.archive() as writing:
        spoiled: Any = Spoiled(writing, spoil, cut_after)
        return await StoreCopy(reading, spoiled, NOW, tell).run()


async def held_by(site: Site) -> list[Bundle]:
    async with site.archive(write=False) as archive:
        return await everything(archive)


def arrived(bundle: Bundle) -> Bundle:
    """Return what should be there in the end."""
    due = min(bundle.project.due_at or NOW, NOW)
    keys = [key for key in bundle.keys if key.expires_at > NOW]
    project = replace(bundle.project, lease=None, due_at=due)
    return replace(bundle, project=project, keys=keys)


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.parametrize(("kind", "other"), WAYS)
async def test_everything_arrives_unleased_and_due(sites: Sites, kind: str, other: str) -> None:
    bundles = [make_bundle(f"p{number}") for number in range(5)]
    bundles += [leased(make_bundle("led"), NOW - timedelta(seconds=1))]
    bundles += [make_bundle("later", due_at=NOW + timedelta(hours=1))]
    bundles += [make_bundle("never", due_at=None)]
    source, target = await sites.filled(kind, bundles), await sites.make(other)
    told: list[Progress] = []
    summary = await copied(source, target, tell=told.append)
    assert await held_by(target) == [arrived(bundle) for bundle in bundles]
    assert (summary.projects, summary.events, summary.keys, summary.written) == (8, 24, 8, 8)
    assert (summary.source, summary.target) == (source.place.shown, target.place.shown)
    assert sorted({(at.step, at.done, at.total) for at in told}) == [
        *(("copying", done, 8) for done in (3, 6, 8)),
        *(("verifying", done, 16) for done in (3, 6, 8, 11, 14, 16)),
    ]
    # Whoever did not see it end may do it again.
    assert await copied(source, target) == replace(summary, written=0)
    async with target.store() as store:
        assert len((await store.page("ada", PageQuery())).projects) == 8


async def test_keys_that_have_expired_stay_behind(sites: Sites) -> None:
    bundle = make_bundle()
    old = replace(bundle.keys[0], key="old", expires_at=NOW)
    source = await sites.filled("sqlite", [replace(bundle, keys=[*bundle.keys, old])])
    target = await sites.make("mongo")
    assert (await copied(source, target)).keys == 1
    assert await held_by(target) == [arrived(bundle)]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(BUNDLES, max_size=5, unique_by=lambda bundle: bundle.project.ref))
def test_a_copy_there_and_back_gives_equal_records(bundles: list[Bundle]) -> None:
    with TemporaryDirectory() as folder:
        asyncio.run(_there_and_back(Path(folder), _without_shared_keys(bundles)))


async def _there_and_back(folder: Path, bundles: list[Bundle]) -> None:
    async with sites_in(folder) as sites:
        first = await sites.filled("sqlite", bundles)
        middle, last = await sites.make("mongo"), await sites.make("sqlite")
        there, back = await copied(first, middle), await copied(middle, last)
        assert there.digest == back.digest
        for site in (middle, last):
            found = {bundle.project.id: _sorted(bundle) for bundle in await held_by(site)}
            assert found == {bundle.project.id: _sorted(arrived(bundle)) for bundle in bundles}


def _sorted(bundle: Bundle) -> Bundle:
    return replace(bundle, keys=sorted(bundle.keys, key=lambda key: key.key))


def _without_shared_keys(bundles: list[Bundle]) -> list[Bundle]:
    """A user's key stands for one project only."""
    taken: set[tuple[str, str]] = set()
    kept = []
    for bundle in bundles:
        keys = [key for key in bundle.keys if (key.user_id, key.key) not in taken]
        taken |= {(key.user_id, key.key) for key in keys}
        kept.append(replace(bundle, keys=keys))
    return kept


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.parametrize(("kind", "other"), [("sqlite", "mongo"), ("mongo", "sqlite")])
async def test_a_copy_that_is_cut_anywhere_goes_on(sites: Sites, kind: str, other: str) -> None:
    bundles = [make_bundle(f"p{number}") for number in range(10)]
    source, target = await sites.filled(kind, bundles), await sites.make(other)
    dice = random.Random(5)  # noqa: S311 - the same cuts again
    for cut in (0, 0, 1, 0):
        parts = [dice.randrange(3), 3]

        def part(number: int, wanted: Sequence[Bundle], cut: int = cut) -> Sequence[Bundle]:
            # The last write before the end has done only a part of its work.
            return wanted[: parts[number < cut]]  # noqa: B023 - used up before the next cut

        with pytest.raises(CutError):
            await copied(source, target, spoil=part, cut_after=cut)
        with pytest.raises(StoreIncompleteError, match="only a part"):
            await copied(target, source)
    summary = await copied(source, target)
    assert 0 < summary.written < 10
    assert await held_by(target) == [arrived(bundle) for bundle in bundles]
    async with target.archive(write=False) as archive:
        assert await archive.unfinished() is None


async def test_a_cut_copy_takes_over_what_has_changed_since(sites: Sites) -> None:
    first, second = make_bundle("first"), make_bundle("second")
    source, target = await sites.filled("sqlite", [first, second]), await sites.make("mongo")
    with pytest.raises(CutError):
        await copied(source, target, cut_after=0)
    newer = make_bundle("first", name="Newer", id=first.project.id)
    async with source.archive() as archive:
        await archive.write([newer])
    assert (await copied(source, target)).written == 1
    assert await held_by(target) == [arrived(newer), arrived(second)]


async def test_fields_of_others_go_from_mongodb_to_mongodb(sites: Sites) -> None:
    source, target = await sites.filled("mongo", [make_bundle()]), await sites.make("mongo")
    theirs = {"theirs": {"x": [ObjectId(), {"$odd": 1}]}, "metadata": {"since": at(0)}}
    async with raw_database(source) as raw:
        await raw["projects"].update_one({}, {"$set": theirs})
    summary = await copied(source, target)
    assert summary.left_out == 0
    async with raw_database(source) as raw, raw_database(target) as copy:
        before, after = await raw["projects"].find_one({}), await copy["projects"].find_one({})
        assert before is not None
        assert after is not None
        assert {name: after[name] for name in theirs} == {name: before[name] for name in theirs}
        # What differs only there is found and mended too.
        await copy["projects"].update_one({}, {"$unset": {"theirs": ""}})
    with pytest.raises(StoreNotEmptyError):
        await copied(source, target)
    other = await sites.make("sqlite")
    assert (await copied(source, other)).left_out == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_only_into_an_empty_store_or_ones_own(sites: Sites, kind: str) -> None:
    source = await sites.filled("sqlite", [make_bundle("mine")])
    target = await sites.filled(kind, [make_bundle("theirs")])
    before = await held_by(target)
    with pytest.raises(StoreNotEmptyError, match="is not empty: it holds 1 projects"):
        await copied(source, target)
    assert await held_by(target) == before
    begun = await sites.make(kind)
    async with begun.archive() as archive:
        assert await archive.begin("elsewhere")
    with pytest.raises(StoreNotEmptyError, match="unfinished copy from another place, elsewhere"):
        await copied(source, begun)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_source_that_is_worked_on_is_refused(sites: Sites, kind: str) -> None:
    source = await sites.filled(kind, [leased(make_bundle(), NOW + timedelta(seconds=1))])
    target = await sites.make("sqlite")
    with pytest.raises(StoreInUseError, match="worker worker has project 'demo' of user 'ada'"):
        await copied(source, target)
    async with target.archive() as archive:
        assert await archive.unfinished() is None


async def test_what_cannot_be_read_stops_the_copy_with_its_name(sites: Sites) -> None:
    source, target = await sites.filled("mongo", [make_bundle()]), await sites.make("sqlite")
    async with raw_database(source) as raw:
        await raw["projects"].update_one({}, {"$set": {"status": "?"}})
    with pytest.raises(StoreUnreadableError, match="'demo' of user 'ada' has the status"):
        await copied(source, target)


async def test_a_target_that_holds_other_things_in_the_end_is_an_error(sites: Sites) -> None:
    bundle = make_bundle()
    source, target = await sites.filled("sqlite", [bundle]), await sites.make("sqlite")
    wrong = [arrived(replace(bundle, events=bundle.events[:2]))]
    with pytest.raises(
        StoreCopyDiffersError, match=r"1 projects, 2 events .* 1 projects, 3 events"
    ):
        await copied(source, target, spoil=lambda *_: wrong)
    assert (await copied(source, target)).written == 1


async def test_what_somebody_adds_to_the_target_meanwhile_is_named_and_kept(sites: Sites) -> None:
    source, target = await sites.filled("sqlite", [make_bundle()]), await sites.make("mongo")
    added = make_bundle("added")
    both = [added, *map(arrived, await held_by(source))]
    with pytest.raises(StoreCopyDiffersError, match="project 'added' of user 'ada'"):
        await copied(source, target, spoil=lambda *_: both)
    assert added in await held_by(target)


async def test_a_write_to_the_source_meanwhile_is_noticed(sites: Sites) -> None:
    first, second = make_bundle("first"), make_bundle("second")
    source, target = await sites.filled("sqlite", [first]), await sites.make("sqlite")

    class Busy(Spoiled):
        async def write(self, bundles: Sequence[Bundle]) -> None:
            await super().write(bundles)
            async with source.archive() as archive:
                await archive.write([second])

    async with source.archive(write=False) as reading, target.archive() as writing:
        busy: Any = Busy(writing, lambda _, bundles: bundles, None)
        with pytest.raises(StoreCopyDiffersError, match=r"holds 1 projects.* 2 projects"):
            await StoreCopy(reading, busy, NOW, lambda _: None).run()
    assert (await copied(source, target)).written == 1


async def test_a_store_that_is_lost_on_the_way_is_told_with_what_to_do(sites: Sites) -> None:
    source, target = await sites.filled("sqlite", [make_bundle()]), await sites.make("sqlite")

    def lost(_: int, bundles: Sequence[Bundle]) -> Sequence[Bundle]:
        raise StoreUnavailableError("It is gone.")

    with pytest.raises(StoreUnavailableError, match="It is gone") as caught:
        await copied(source, target, spoil=lost)
    assert "run the same command again" in caught.value.info.hint
