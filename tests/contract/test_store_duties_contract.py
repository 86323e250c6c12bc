"""What every store promises about work that one worker at a time does for all."""

import asyncio
from datetime import UTC, datetime

from tests.contract.store_adapters import at

from greylag.ports import Duty, ProjectStore


async def test_all_who_ask_are_told_one_id_for_good(store: ProjectStore) -> None:
    told = set(await asyncio.gather(*(store.instance() for _ in range(8))))
    assert told == {await store.instance()}
    assert all(told)


async def take(store: ProjectStore, worker: str, now: float, since: float = 0) -> Duty:
    return await store.take_duty("look", worker, since=at(since), now=at(now), seconds=10)


async def test_of_workers_that_come_together_one_gets_it(store: ProjectStore) -> None:
    told = await asyncio.gather(*(take(store, f"w{number}", now=1) for number in range(8)))
    assert sorted(told) == sorted([Duty.MINE, *[Duty.HELD] * 7])


async def test_its_holder_may_take_it_again_and_holds_it_longer(store: ProjectStore) -> None:
    assert await take(store, "a", now=1) is Duty.MINE
    assert await take(store, "a", now=9) is Duty.MINE
    assert await take(store, "b", now=12) is Duty.HELD


async def test_a_holder_that_does_not_come_back_loses_it(store: ProjectStore) -> None:
    assert await take(store, "a", now=1) is Duty.MINE
    assert await take(store, "b", now=11.5) is Duty.MINE
    await store.finish_duty("look", "a", at(12))
    assert await take(store, "c", now=13) is Duty.HELD


async def test_what_was_done_since_one_came_is_done(store: ProjectStore) -> None:
    assert await take(store, "a", now=1) is Duty.MINE
    await store.finish_duty("look", "a", at(5))
    assert await take(store, "b", now=6, since=1) is Duty.DONE
    assert await take(store, "c", now=6, since=5.5) is Duty.MINE


async def test_duties_of_other_names_are_others(store: ProjectStore) -> None:
    assert await take(store, "a", now=1) is Duty.MINE
    other = await store.take_duty("other", "b", since=at(0), now=at(1), seconds=10)
    assert other is Duty.MINE


async def test_what_is_to_be_done_anew_each_time_is_never_done(store: ProjectStore) -> None:
    anew = datetime.max.replace(tzinfo=UTC)
    for worker in ("a", "b"):
        told = await store.take_duty("look", worker, since=anew, now=at(1), seconds=10)
        assert told is Duty.MINE
        await store.finish_duty("look", worker, at(2))


async def test_what_was_held_or_done_by_a_clock_that_was_ahead_is_neither(
    store: ProjectStore,
) -> None:
    for ahead, told in ((600, Duty.HELD), (3600, Duty.MINE)):
        assert await take(store, f"of {ahead}", now=ahead) is Duty.MINE
        assert await take(store, "a", now=1) is told
        await store.finish_duty("look", "a", at(2))
    assert await take(store, "a", now=3, since=3) is Duty.MINE
    await store.finish_duty("look", "a", at(3600))
    assert await take(store, "b", now=5, since=4) is Duty.MINE
