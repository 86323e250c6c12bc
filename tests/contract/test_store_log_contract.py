"""What every store promises about the activation log."""

from dataclasses import replace

import pytest
from tests.contract.store_adapters import IDLE, at, claim, log, make_project, state
from tests.wishes import want

from greylag.domain.errors import ProjectNotFoundError
from greylag.domain.project import Desired, Event, NewEvent, Status
from greylag.ports import Outcome, PageQuery, ProjectStore


async def test_the_log_is_empty_before_the_first_event(store: ProjectStore) -> None:
    await store.create(make_project(due_at=at(0)))
    assert list(await store.events("ada", "demo", 0, 10)) == []
    await store.record(await claim(store, 0), Outcome(status=Status.ACTIVE), at(0), release=True)
    assert list(await store.events("ada", "demo", 0, 10)) == []


async def test_events_are_numbered_kept_and_read_in_order(store: ProjectStore) -> None:
    await store.create(make_project(due_at=at(0)))
    claimed = await claim(store, 0)
    first = [NewEvent("a", "A \u2603 \udcff", "hint"), NewEvent("b", "B")]
    starting = Outcome(status=Status.ACTIVATING, events=first)
    assert (await store.record(claimed, starting, at(1), release=False)).last_seq == 2
    assert (await want(store, "ada", "demo", Desired.ACTIVE, at(2), at(3))).last_seq == 2
    ready = Outcome(status=Status.ACTIVE, events=[NewEvent("c", "C")])
    await store.record(claimed, ready, at(4), release=True)
    (listed,) = (await store.page("ada", PageQuery())).projects
    assert (listed.last_seq, (await store.get("ada", "demo")).last_seq) == (3, 3)
    expected = [
        Event(1, at(1), "a", "A \u2603 \udcff", Status.ACTIVATING, 1, "hint"),
        Event(2, at(1), "b", "B", Status.ACTIVATING, 1),
        Event(3, at(4), "c", "C", Status.ACTIVE, 1),
    ]
    assert list(await log(store)) == expected
    assert list(await log(store, after=1)) == expected[1:]
    assert list(await log(store, after=0, limit=2)) == expected[:2]
    assert list(await log(store, after=2**70, limit=2**70)) == []


async def test_the_log_keeps_the_newest_500_and_never_repeats_a_number(
    store: ProjectStore,
) -> None:
    await store.create(make_project(due_at=at(0)))
    claimed = await claim(store, 0)
    for batch in (200, 301, 700, 1):
        many = [NewEvent("n", "N")] * batch
        await store.record(claimed, replace(IDLE, events=many), at(1), release=False)
    assert [event.seq for event in await log(store)] == list(range(703, 1203))


async def test_a_project_made_again_begins_anew(store: ProjectStore) -> None:
    await store.create(make_project(due_at=at(0)))
    claimed = await claim(store, 0)
    gone = replace(IDLE, events=[NewEvent("gone", "Gone.")])
    await store.record(claimed, gone, at(1), release=False)
    await store.forget(claimed)
    with pytest.raises(ProjectNotFoundError):
        await state(store)
    assert await store.next_due() is None
    await store.create(make_project())
    assert (list(await log(store)), (await store.get("ada", "demo")).last_seq) == ([], 0)
