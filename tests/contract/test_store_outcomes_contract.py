"""What every store promises about what workers record, and what wakes them."""

from dataclasses import replace
from typing import Any

import pytest
from tests.contract.store_adapters import IDLE, REF, all_claims, at, claim, make_project
from tests.wishes import want

from greylag.domain.errors import ErrorInfo
from greylag.domain.project import Desired, ProjectRef, Status
from greylag.ports import Outcome, ProjectStore


async def test_an_outcome_is_the_whole_observed_half(store: ProjectStore) -> None:
    project = make_project(due_at=at(0), metadata={"a": 1})
    await store.create(project)
    claimed = await claim(store, 0)
    outcome = Outcome(
        status=Status.ERROR,
        endpoint="http://e",
        error=ErrorInfo("c", "m \udcff", "h"),
        error_terminal=True,
        observed_generation=1,
        attempts=3,
        last_activated_at=at(1),
        last_deactivated_at=at(2),
        deadline_at=at(3),
        due_at=at(4),
    )
    recorded = await store.record(claimed, outcome, at(5), release=True)
    assert recorded == replace(
        project,
        status=Status.ERROR,
        endpoint="http://e",
        error=outcome.error,
        error_terminal=True,
        observed_generation=1,
        attempts=3,
        last_activated_at=at(1),
        last_deactivated_at=at(2),
        deadline_at=at(3),
        due_at=at(4),
        updated_at=at(5),
        lease=None,
    )
    assert await store.get("ada", "demo") == recorded


async def test_without_release_the_lease_stays(store: ProjectStore) -> None:
    await store.create(make_project(due_at=at(0)))
    claimed = await claim(store, 0)
    recorded = await store.record(claimed, replace(IDLE, due_at=at(2)), at(1), release=False)
    assert recorded.lease == claimed.project.lease
    assert recorded.updated_at == at(0)  # nothing has changed that users see
    assert await all_claims(store, 5) == []
    await store.record(claimed, IDLE, at(6), release=True)


async def test_a_wish_during_a_lease_makes_the_project_due_after_it(store: ProjectStore) -> None:
    await store.create(make_project(due_at=at(0)))
    claimed = await claim(store, 0)
    wanted = await want(store, "ada", "demo", Desired.ACTIVE, at(1), at(121))
    assert (wanted.due_at, wanted.lease) == (at(1), claimed.project.lease)
    assert await all_claims(store, 2) == []
    stale = replace(IDLE, due_at=at(900), deadline_at=at(999), error_terminal=True, attempts=9)
    recorded = await store.record(claimed, stale, at(3), release=True)
    assert recorded.due_at == at(3)
    # What the wish has set is newer than what the worker knew.
    assert recorded.deadline_at == at(121)
    assert not recorded.error_terminal
    assert recorded.attempts == 0
    assert await all_claims(store, 3) == ["demo"]


async def test_a_wish_that_a_renewal_has_shown_leaves_the_due_time_to_the_outcome(
    store: ProjectStore,
) -> None:
    await store.create(make_project(due_at=at(0)))
    claimed = await claim(store, 0)
    await want(store, "ada", "demo", Desired.ACTIVE, at(1), at(121))
    renewed = await store.renew(claimed, at(2), 30)
    recorded = await store.record(renewed, replace(IDLE, due_at=at(50)), at(3), release=True)
    assert recorded.due_at == at(50)


async def test_a_poke_during_a_lease_makes_the_project_due_after_it(store: ProjectStore) -> None:
    await store.create(make_project(due_at=at(0)))
    claimed = await claim(store, 0)
    # The same moment as everything else: only order tells that the poke came later.
    await store.poke(REF, at(0))
    assert (await store.get("ada", "demo")).due_at == at(0)
    assert await all_claims(store, 1) == []
    working = await store.record(claimed, replace(IDLE, due_at=at(600)), at(1), release=False)
    assert working.due_at == at(600)
    await store.record(claimed, replace(IDLE, due_at=None), at(2), release=True)
    assert await store.next_due() == at(2)
    again = await claim(store, 2)
    assert (await store.record(again, IDLE, at(3), release=True)).due_at is None


async def test_a_poke_makes_due_now_but_keeps_an_older_place_in_the_queue(
    store: ProjectStore,
) -> None:
    for name, due in (("none", None), ("later", at(90)), ("sooner", at(1))):
        await store.create(make_project(name, due_at=due))
        await store.poke(ProjectRef("ada", name), at(5))
        poked = await store.get("ada", name)
        assert poked.due_at == (at(1) if name == "sooner" else at(5))
    await store.poke(ProjectRef("ada", "nobody"), at(5))
    assert await all_claims(store, 5) == ["sooner", "none", "later"]


@pytest.mark.parametrize("everything", [True, False])
async def test_a_poke_ends_a_lease_of_a_clock_that_was_ahead_and_no_other(
    store: ProjectStore, *, everything: bool
) -> None:
    for name, now in (("ahead", 3600), ("minutes", 600), ("here", 1)):
        await store.create(make_project(name, due_at=at(0)))
        assert (await claim(store, now)).project.project_id == name
    if everything:
        await store.poke_unsettled(at(2))
    else:
        for name in ("ahead", "minutes", "here"):
            await store.poke(ProjectRef("ada", name), at(2))
    again = await claim(store, 2)
    assert (again.project.project_id, again.number) == ("ahead", 2)
    assert await all_claims(store, 3) == []


async def test_what_runs_or_should_or_is_not_settled_is_poked(store: ProjectStore) -> None:
    settled: dict[str, Any] = {"observed_generation": 1}
    cases: dict[str, dict[str, Any]] = {
        "idle": settled,
        "running": {"status": Status.ACTIVE, **settled},
        "wanted": {"desired": Desired.ACTIVE, **settled},
        "going": {"desired": Desired.DELETED, **settled},
        "failed": {"status": Status.ERROR, **settled},
        "new": {},
    }
    for name, fields in cases.items():
        await store.create(make_project(name, **fields))
    await store.create(make_project("soon", due_at=at(1), status=Status.ACTIVE, **settled))
    leased = await claim(store, 1)
    assert await store.poke_unsettled(at(5)) == 6
    assert await store.poke_unsettled(at(6)) == 6
    assert sorted(await all_claims(store, 6)) == ["failed", "going", "new", "running", "wanted"]
    await store.record(leased, IDLE, at(7), release=True)
    assert await all_claims(store, 7) == ["soon"]
