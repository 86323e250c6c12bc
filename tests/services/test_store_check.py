"""What `greylag doctor` finds in a store, and that it finds nothing else and changes nothing."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.contract.store_adapters import at, make_project
from tests.reconcile.bench import REF, Bench
from tests.store.sites import KINDS, Site, sites_in
from tests.store.stored_projects import changed, leased, make_stored

from greylag.common.sealing import Sealing
from greylag.domain.errors import ClusterError
from greylag.domain.lifecycle import Verb
from greylag.domain.project import Desired, Status
from greylag.domain.users import UserSecret
from greylag.ports import StoredProject
from greylag.services.store_export import check_store, stuck

NOW = at(100)
DAY = timedelta(days=1)
SOUND = make_stored()


@pytest.fixture(params=KINDS)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with sites_in(tmp_path) as sites:
        dead = leased(make_stored("dead"), NOW - DAY)
        yield await sites.filled(request.param, [SOUND, dead])


@pytest.mark.parametrize(
    "stored",
    [
        SOUND,
        StoredProject(project=make_project()),
        changed(SOUND, status=Status.ACTIVE),
        changed(SOUND, desired=Desired.DELETED),
        changed(SOUND, desired=Desired.DELETED, updated_at=at(0), deadline_at=at(10_000)),
        leased(SOUND, NOW - timedelta(minutes=59)),
    ],
)
def test_a_project_that_gets_on_is_not_stuck(stored: StoredProject) -> None:
    assert list(stuck(stored.project, NOW)) == []


def test_a_deletion_that_nobody_does_is_told() -> None:
    (finding,) = stuck(changed(SOUND, desired=Desired.DELETED).project, NOW + DAY)
    assert "'demo' of user 'ada' was to be deleted by" in finding.sentence
    assert finding.hint


async def test_a_deletion_that_the_cluster_refuses_is_told_though_it_is_often_tried() -> None:
    bench = Bench()
    await bench.create()
    await bench.loop.drain()
    began = bench.clock.now()
    await bench.want(Desired.DELETED)
    while bench.clock.now() < began + timedelta(hours=2):
        bench.cluster.fail_next(REF, Verb.DELETE, ClusterError("No right.", code="no"))
        await bench.loop.drain()
        bench.clock.advance(61)
    project = await bench.project()
    assert project.deadline_at is not None
    assert list(stuck(project, project.deadline_at + timedelta(hours=1))) == []
    (finding,) = stuck(project, bench.clock.now())
    assert f"was to be deleted by {project.deadline_at:%Y-%m-%d %H:%M:%S}" in finding.sentence


def test_a_lease_that_ran_out_long_ago_is_told() -> None:
    (finding,) = stuck(leased(SOUND, NOW - DAY).project, NOW)
    assert "worker worker" in finding.sentence
    assert finding.hint


async def test_the_whole_store_is_looked_at_and_left_as_it_is(site: Site) -> None:
    before = await site.holds()
    async with site.archive(write=False) as archive:
        report = await check_store(archive, NOW)
        assert await check_store(archive, NOW) == report
    assert report.projects == 2
    (finding,) = report.findings
    assert "nobody has gone on" in finding.sentence
    assert await site.holds() == before


async def test_a_record_of_a_time_to_come_tells_of_a_clock_once(tmp_path: Path) -> None:
    async with sites_in(tmp_path) as sites:
        ahead = [changed(make_stored(name), updated_at=NOW + DAY) for name in ("one", "two")]
        site = await sites.filled("sqlite", [SOUND, *ahead])
        async with site.archive(write=False) as archive:
            report = await check_store(archive, NOW)
    (finding,) = report.findings
    assert f"changed at {NOW + DAY:%Y-%m-%d %H:%M:%S}" in finding.sentence
    assert "NTP" in finding.hint


async def test_projects_with_an_error_are_no_fault_of_the_store(site: Site) -> None:
    async with site.archive(write=False) as archive:
        report = await check_store(archive, NOW)
    assert ["[image_not_found]" in one.sentence for one in report.failing] == [True, True]


async def test_what_cannot_be_read_and_the_store_itself_are_told_too(tmp_path: Path) -> None:
    async with sites_in(tmp_path) as sites:
        site = await sites.filled("mongo", [SOUND])
        async with site.raw() as raw:
            await raw["projects"].update_one({}, {"$set": {"status": "?"}})
            await raw["greylag_keys"].drop_index("record_id_1")
            await raw["greylag_copying"].insert_one({"_id": "copy"})
        async with site.archive(write=False) as archive:
            report = await check_store(archive, NOW)
    assert report.projects == 1
    assert [finding.place for finding in report.findings] == [
        "store",
        "greylag_keys.record_id_1",
        SOUND.project.id,
    ]


async def test_what_no_key_or_only_an_older_one_opens_is_told(site: Site) -> None:
    sealed = Sealing(["old" * 11]).seal("value", "purpose")
    async with site.store() as store:
        for name in ("hub", "lab"):
            one = UserSecret("ada", name, f"{name}.example", "x", sealed, at(0), at(0))
            assert await store.put(one, at(0))
    told = {}
    async with site.archive(write=False) as archive:
        for keys in ("old", "new old", "new", ""):
            sealing = Sealing([key * 11 for key in keys.split()]) if keys else None
            report = await check_store(archive, NOW, sealing)
            faults = [one.sentence for one in report.findings if one.place == "sealed"]
            told[keys] = faults, [one.sentence for one in report.sealed]
    which = "the secret 'hub' of user 'ada' and 1 more."
    assert told == {
        "old": ([], []),
        "new old": ([], [f"An older key of GREYLAG_SECRET_KEY has sealed {which}"]),
        "new": ([f"The key that there is does not open {which}"], []),
        "": ([], [f"There is no key here to open {which}"]),
    }


async def test_what_no_worker_takes_on_is_told_once_and_soon(tmp_path: Path) -> None:
    async with sites_in(tmp_path) as sites:
        due = [make_stored(name) for name in ("one", "two")]
        # Of the one a worker died, which others may take from now on.
        leases = [
            leased(make_stored("dead"), NOW - timedelta(seconds=1)),
            leased(make_stored("held"), NOW + DAY),
        ]
        site = await sites.filled("sqlite", [*due, *leases])
        async with site.archive(write=False) as archive:
            soon = await check_store(archive, NOW + timedelta(minutes=1))
            report = await check_store(archive, NOW + timedelta(minutes=2))
    assert not soon.waiting
    (finding,) = report.waiting
    assert not report.findings
    assert "of user 'ada' and 2 more, since" in finding.sentence
    assert "greylag worker" in finding.hint
