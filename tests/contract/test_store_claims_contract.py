"""What every store promises about claims and their leases."""

import asyncio
from dataclasses import replace

import pytest
from tests.contract.store_adapters import IDLE, all_claims, at, claim, make_project, state
from tests.wishes import refresh, want

from greylag.domain.errors import LeaseLostError
from greylag.domain.project import Desired, Lease, NewEvent
from greylag.ports import Claim, ProjectStore


async def test_nothing_is_claimed_before_it_is_due(store: ProjectStore) -> None:
    await store.create(make_project("never"))
    await store.create(make_project("later", due_at=at(10)))
    assert await store.next_due() == at(10)
    assert await all_claims(store, 9.999) == []
    assert await all_claims(store, 10) == ["later"]


async def test_what_has_been_due_longest_is_claimed_first(store: ProjectStore) -> None:
    for name, due in (("b", 2), ("a", 1), ("c", 3), ("a2", 1), ("d", 99)):
        await store.create(make_project(name, due_at=at(due)))
    assert await all_claims(store, 50) == ["a", "a2", "b", "c"]
    assert await store.next_due() == at(80)


async def test_one_users_thousand_do_not_hold_back_anothers_one(store: ProjectStore) -> None:
    for n in range(40):
        await store.create(make_project(f"a{n}", "ada", due_at=at(0)))
    await store.create(make_project("b0", "bob", due_at=at(5)))
    await store.create(make_project("c0", "cy", due_at=at(6)))
    assert (await all_claims(store, 6))[:4] == ["a0", "b0", "c0", "a1"]


async def test_the_user_with_the_fewest_leases_comes_first(store: ProjectStore) -> None:
    for n in range(4):
        await store.create(make_project(f"a{n}", "ada", due_at=at(0)))
        await store.create(make_project(f"b{n}", "bob", due_at=at(n)))
    order = await all_claims(store, 9)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]


async def test_leases_that_ended_or_ran_out_do_not_count(store: ProjectStore) -> None:
    for n in range(3):
        await store.create(make_project(f"a{n}", "ada", due_at=at(0)))
        await store.create(make_project(f"b{n}", "bob", due_at=at(1)))
    short = await claim(store, 1, lease=2)
    ended = await claim(store, 1)
    assert (short.project.project_id, ended.project.project_id) == ("a0", "b0")
    await store.record(ended, IDLE, at(2), release=True)
    # Ada's lease lasts, bob's has ended.
    assert (await claim(store, 2.5)).project.project_id == "b1"
    # Now ada's has run out: it counts no more, and its project is due again since then.
    assert (await claim(store, 3)).project.project_id == "a1"


async def test_a_claim_carries_the_project_with_its_lease(store: ProjectStore) -> None:
    project = make_project(due_at=at(0))
    await store.create(project)
    claimed = await store.claim_due("w7", at(1), 2.5)
    assert claimed == Claim(replace(project, lease=Lease("w7", 1, at(3.5))))
    assert claimed.number == 1
    assert await store.get("ada", "demo") == claimed.project


async def test_of_simultaneous_claims_each_project_goes_to_one(store: ProjectStore) -> None:
    for n in range(20):
        await store.create(make_project(f"p{n}", due_at=at(0)))
    claims = await asyncio.gather(*(store.claim_due(f"w{n}", at(1), 30) for n in range(50)))
    won = [claimed.project.project_id for claimed in claims if claimed]
    assert sorted(won) == sorted(f"p{n}" for n in range(20))


async def test_a_lease_keeps_others_off_until_it_runs_out(store: ProjectStore) -> None:
    await store.create(make_project(due_at=at(0)))
    first = await claim(store, 0, lease=30)
    assert await store.next_due() == at(30)
    assert await store.claim_due("other", at(29.999), 30) is None
    second = await claim(store, 30)
    assert second.number == first.number + 1


async def test_a_dead_workers_project_is_due_whatever_it_had_recorded(
    store: ProjectStore,
) -> None:
    await store.create(make_project(due_at=at(0)))
    first = await claim(store, 0, lease=30)
    await store.record(first, replace(IDLE, due_at=None), at(1), release=False)
    assert await store.next_due() == at(30)
    assert await all_claims(store, 30) == ["demo"]


async def test_the_claim_number_grows_with_every_claim(store: ProjectStore) -> None:
    await store.create(make_project(due_at=at(0)))
    numbers = []
    for n in range(5):
        claimed = await claim(store, n)
        numbers.append(claimed.number)
        await store.record(claimed, replace(IDLE, due_at=at(n)), at(n), release=True)
    assert numbers == [1, 2, 3, 4, 5]


async def test_a_renewed_lease_holds_longer_and_shows_what_changed(store: ProjectStore) -> None:
    await store.create(make_project(due_at=at(0)))
    first = await claim(store, 0, lease=30)
    await want(store, "ada", "demo", Desired.ACTIVE, at(5), at(125))
    second = await store.renew(first, at(20), 30)
    assert second.number == first.number
    assert second.project == await store.get("ada", "demo")
    assert second.project.desired is Desired.ACTIVE
    assert second.project.lease == Lease("worker", 1, at(50))
    assert await all_claims(store, 49.999) == []


async def test_a_wish_for_the_settings_that_are_lacked_is_written_once(
    store: ProjectStore,
) -> None:
    await store.create(make_project(due_at=at(0)))
    assert await refresh(store, "ada", "demo", at(1)) == await store.get("ada", "demo")
    lacking = replace(IDLE, outdated="new-image", due_at=at(99))
    await store.record(await claim(store, 1), lacking, at(1), release=True)
    wished = await refresh(store, "ada", "demo", at(2))
    assert (wished.outdated, wished.refresh, wished.due_at) == ("new-image", "new-image", at(2))
    assert await refresh(store, "ada", "demo", at(3)) == wished
    await store.record(await claim(store, 3), replace(IDLE, due_at=None), at(4), release=True)
    assert (await store.get("ada", "demo")).outdated is None


async def test_a_claim_that_its_environment_has_outnumbered_goes_on_above_that(
    store: ProjectStore,
) -> None:
    await store.create(make_project(due_at=at(0)))
    first = await claim(store, 0, lease=30)
    assert await store.renew(first, at(1), 30, above=first.number) == await store.renew(
        first, at(1), 30
    )
    seen = 7_000_000_000_000
    second = await store.renew(first, at(2), 30, above=seen)
    assert second.number > seen
    assert second.project == await store.get("ada", "demo")
    with pytest.raises(LeaseLostError):
        await store.record(first, IDLE, at(3), release=True)
    third = await claim(store, 40)
    assert third.number == second.number + 1
    # Of two workers of one store the older is refused, whatever the environment has seen.
    with pytest.raises(LeaseLostError):
        await store.renew(second, at(41), 30, above=third.number)


async def test_a_claim_that_was_passed_on_can_write_nothing(store: ProjectStore) -> None:
    await store.create(make_project(due_at=at(0)))
    old = await claim(store, 0, lease=1)
    await claim(store, 1)
    before = await state(store)
    events = [NewEvent("late", "Too late.")]
    with pytest.raises(LeaseLostError):
        await store.record(old, replace(IDLE, events=events), at(2), release=True)
    with pytest.raises(LeaseLostError):
        await store.record(old, replace(IDLE, events=events), at(2), release=False)
    with pytest.raises(LeaseLostError):
        await store.renew(old, at(2), 30)
    with pytest.raises(LeaseLostError):
        await store.forget(old)
    assert await state(store) == before


async def test_a_claim_that_was_released_can_write_nothing(store: ProjectStore) -> None:
    await store.create(make_project(due_at=at(0)))
    claimed = await claim(store, 0)
    await store.record(claimed, IDLE, at(1), release=True)
    before = await state(store)
    with pytest.raises(LeaseLostError):
        await store.record(claimed, replace(IDLE, endpoint="x"), at(2), release=False)
    with pytest.raises(LeaseLostError):
        await store.renew(claimed, at(2), 30)
    assert await state(store) == before


async def test_a_claim_that_ran_out_still_writes_while_nobody_else_claimed(
    store: ProjectStore,
) -> None:
    await store.create(make_project(due_at=at(0)))
    claimed = await claim(store, 0, lease=1)
    assert (await store.record(claimed, IDLE, at(9), release=True)).lease is None


async def test_a_claim_does_not_reach_a_project_made_again(store: ProjectStore) -> None:
    await store.create(make_project(due_at=at(0)))
    old = await claim(store, 0)
    await store.forget(old)
    with pytest.raises(LeaseLostError):
        await store.forget(old)
    await store.create(make_project(due_at=at(0)))
    new = await claim(store, 1)
    assert new.number == old.number
    with pytest.raises(LeaseLostError):
        await store.record(old, IDLE, at(2), release=True)
    with pytest.raises(LeaseLostError):
        await store.renew(old, at(2), 30)
    assert await store.get("ada", "demo") == new.project
