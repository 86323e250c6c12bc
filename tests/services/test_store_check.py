"""What `greylag store check` finds wrong with a record, and that it finds nothing else."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.contract.store_adapters import at, make_project
from tests.store.archive_places import (
    KINDS,
    Site,
    leased,
    make_bundle,
    make_event,
    raw_database,
    sites_in,
)

from greylag.domain.names import environment_names
from greylag.domain.project import Desired, Status
from greylag.ports import Bundle
from greylag.services.store_check import check_store, record_flaws

NOW = at(100)
DAY = timedelta(days=1)
SOUND = make_bundle()
BAD = make_bundle("bad", status=Status.ACTIVE, endpoint=None)


def changed(**fields: Any) -> Bundle:
    return replace(SOUND, project=replace(SOUND.project, **fields))


@pytest.fixture(params=KINDS)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with sites_in(tmp_path) as sites:
        yield await sites.filled(request.param, [SOUND, BAD])


@pytest.mark.parametrize(
    "bundle",
    [
        SOUND,
        Bundle(project=make_project()),
        changed(status=Status.ACTIVE),
        changed(desired=Desired.DELETED),
        changed(desired=Desired.DELETED, updated_at=at(0), deadline_at=at(10_000)),
        leased(SOUND, NOW - timedelta(minutes=59)),
    ],
)
def test_a_sound_record_has_no_flaw(bundle: Bundle) -> None:
    assert list(record_flaws(bundle, NOW, "user-")) == []


@pytest.mark.parametrize(
    ("bundle", "code", "words"),
    [
        (changed(user_id="a/b", names=environment_names("a/b", "demo")), "bad_id", "user_id"),
        (changed(project_id="..", names=environment_names("ada", "..")), "bad_id", "project_id"),
        (changed(name=" "), "bad_name", "not only spaces"),
        (changed(names=environment_names("ada", "other")), "names_differ", "other-api"),
        (changed(names=environment_names("ada", "demo", prefix="team-")), "names_differ", "team-"),
        (changed(status=Status.ACTIVE, endpoint=None), "active_without_endpoint", "no endpoint"),
        (changed(observed_generation=5), "generation_behind", "(5) is above its generation (4)"),
        (changed(updated_at=at(-1)), "dates_out_of_order", "updated_at"),
        (changed(last_activated_at=at(-1)), "dates_out_of_order", "last_activated_at"),
        (changed(last_deactivated_at=NOW + DAY), "date_in_the_future", "last_deactivated_at"),
        (leased(SOUND, NOW - DAY), "lease_long_past", "worker worker"),
        (
            replace(SOUND, events=[*SOUND.events, make_event(4)]),
            "events_out_of_step",
            "an event 4, but its last_seq is 3",
        ),
    ],
)
def test_each_broken_rule_is_one_flaw_that_says_so(bundle: Bundle, code: str, words: str) -> None:
    (flaw,) = record_flaws(bundle, NOW, "user-")
    assert (flaw.code, flaw.record) == (code, bundle.project.id)
    assert words in flaw.sentence
    assert repr(bundle.project.project_id) in flaw.sentence
    assert flaw.hint


def test_a_deletion_that_nobody_does_is_told() -> None:
    (flaw,) = record_flaws(changed(desired=Desired.DELETED), NOW + DAY, "user-")
    assert flaw.code == "deletion_stuck"


async def test_the_whole_store_is_looked_at_and_left_as_it_is(site: Site) -> None:
    told: list[int] = []
    async with site.archive(write=False) as archive:
        first = await check_store(archive, NOW, "user-", told.append)
        assert await check_store(archive, NOW, "user-", told.append) == first
    assert (first.place, first.projects, told[-1]) == (site.place.shown, 2, 2)
    (flaw,) = first.flaws
    assert flaw.code == "active_without_endpoint"


async def test_what_cannot_be_read_and_the_store_itself_are_told_too(tmp_path: Path) -> None:
    async with sites_in(tmp_path) as sites:
        site = await sites.filled("mongo", [SOUND])
        async with raw_database(site) as raw:
            await raw["projects"].update_one({}, {"$set": {"status": "?"}})
            await raw["greylag_keys"].drop_index("record_id_1")
        async with site.archive(write=False) as archive:
            report = await check_store(archive, NOW, "user-", lambda _: None)
    assert report.projects == 1
    assert [flaw.code for flaw in report.flaws] == ["missing_index", "unknown_status"]
