"""The use cases of projects over memory adapters."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.clocks import FakeClock
from tests.harness import Harness, settings
from tests.services.house import REF, House

from greylag.domain.errors import (
    ClusterError,
    IdempotencyConflictError,
    InvalidRequestError,
    ProjectDeletingError,
    ProjectExistsError,
    ProjectNotFoundError,
    UserNotFoundError,
    WaitTimeoutError,
)
from greylag.domain.lifecycle import Verb
from greylag.domain.project import Desired, Event, GitSource, NewEvent, ProjectRef, Status
from greylag.domain.users import OPERATOR, Principal
from greylag.ports import Outcome, PageQuery
from greylag.services.projects import Edit, NewProject


async def test_a_principal_bound_to_a_user_reaches_only_that_user() -> None:
    house = House()
    projects, gate = house.use_cases.projects, house.use_cases.gate
    zoe = Principal("zoe", "Zoë")
    created = await projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))
    assert [user.id for user in await gate.visible(zoe)] == ["Zoë"]
    assert [user.id for user in await gate.visible(OPERATOR)] == ["ada", "Zoë"]
    with pytest.raises(UserNotFoundError):
        await projects.get(zoe, created.project.ref)
    with pytest.raises(UserNotFoundError):
        await projects.want(zoe, REF, Desired.DELETED)
    with pytest.raises(ProjectNotFoundError):
        await projects.get(OPERATOR, ProjectRef("Zoë", "demo"))
    with pytest.raises(UserNotFoundError):
        await projects.page(OPERATOR, "nobody", PageQuery())


async def test_creation_is_idempotent_by_key_and_conflicts_are_told_apart() -> None:
    projects = House().use_cases.projects
    new = NewProject("Demo", metadata={"a": 1})
    first = await projects.create(OPERATOR, "ada", new, "key-1")
    again = await projects.create(OPERATOR, "ada", new, "key-1")
    assert (first.new, again.new) == (True, False)
    assert first.project == again.project
    with pytest.raises(IdempotencyConflictError):
        await projects.create(OPERATOR, "ada", NewProject("Other"), "key-1")
    cloned = replace(new, source=GitSource("https://example.org/a.git"))
    with pytest.raises(IdempotencyConflictError):
        await projects.create(OPERATOR, "ada", cloned, "key-1")
    taken = NewProject("Demo", first.project.project_id)
    with pytest.raises(ProjectExistsError):
        await projects.create(OPERATOR, "ada", taken)


@pytest.mark.parametrize(
    "new",
    [
        NewProject(""),
        NewProject("   "),
        NewProject("x" * 201),
        NewProject("bell\a"),
        NewProject("half \ud800"),
        NewProject("ok", "a/b"),
        NewProject("ok", source=GitSource("https://a:b@example.org/a.git")),
        NewProject("ok", ".."),
        NewProject("ok", "x" * 301),
        NewProject("ok", metadata={"n": float("nan")}),
        NewProject("ok", metadata={"big": "x" * 20_000}),
    ],
)
async def test_what_cannot_be_a_project_is_refused_and_nothing_is_made(new: NewProject) -> None:
    projects = House().use_cases.projects
    with pytest.raises(InvalidRequestError):
        await projects.create(OPERATOR, "ada", new)
    assert not (await projects.page(OPERATOR, "ada", PageQuery())).projects


@pytest.mark.parametrize("key", ["", "x" * 256, "line\nbreak"])
async def test_an_idempotency_key_of_the_wrong_form_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequestError):
        await House().use_cases.projects.create(OPERATOR, "ada", NewProject("Demo"), key)


async def test_names_of_any_script_up_to_200_characters_are_kept_as_they_are() -> None:
    projects = House().use_cases.projects
    name = "\U0001f9a2" * 200
    project = (await projects.create(OPERATOR, "Zoë", NewProject(name))).project
    assert (await projects.get(OPERATOR, project.ref)).name == name


async def test_edit_renames_and_replaces_metadata() -> None:
    projects = House().use_cases.projects
    await projects.create(OPERATOR, "ada", NewProject("Demo", "demo", {"a": 1}))
    edited = await projects.edit(OPERATOR, REF, Edit(name="New"))
    assert (edited.name, edited.metadata) == ("New", {"a": 1})
    edited = await projects.edit(OPERATOR, REF, Edit(metadata={}))
    assert (edited.name, edited.metadata) == ("New", {})
    with pytest.raises(InvalidRequestError):
        await projects.edit(OPERATOR, REF, Edit(name=""))


async def test_activation_waits_until_active_and_deletion_until_gone() -> None:
    house = House()
    projects = house.use_cases.projects
    async with house.working():
        await projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))
        active = await projects.settled(await _want(projects, Desired.ACTIVE))
        assert active is not None
        assert (active.status, active.endpoint is not None) == (Status.ACTIVE, True)
        wanted = await _want(projects, Desired.DELETED)
        with pytest.raises(ProjectDeletingError):
            await _want(projects, Desired.ACTIVE)
        assert await projects.settled(wanted) is None
        await projects.create(OPERATOR, "ada", NewProject("Another", "demo"))
        assert await projects.settled(wanted) is None


async def test_a_failed_activation_is_raised_with_the_causes_own_code() -> None:
    house = House()
    projects = house.use_cases.projects
    async with house.working():
        project = (await projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))).project
        cause = ClusterError("No image.", code="image_not_found", hint="Mend.", terminal=True)
        house.cluster.fail_next(project.ref, Verb.START, cause)
        with pytest.raises(ClusterError) as caught:
            await projects.settled(await _want(projects, Desired.ACTIVE))
        assert caught.value.info == cause.info


async def test_a_wait_that_ends_first_says_that_it_goes_on() -> None:
    house = House(auto=False)
    projects = house.use_cases.projects
    async with house.working():
        await projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))
        wanted = await _want(projects, Desired.ACTIVE)
        with pytest.raises(WaitTimeoutError, match="still becoming active"):
            await projects.settled(wanted, within=0.05)
        assert (await projects.get(OPERATOR, REF)).desired is Desired.ACTIVE


async def test_a_wait_for_what_no_worker_has_taken_on_says_so() -> None:
    clock = FakeClock()
    projects = Harness(settings(users="ada:Ada"), clock=clock).use_cases.projects
    await projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))
    wanted = await _want(projects, Desired.ACTIVE)
    with pytest.raises(WaitTimeoutError) as at_once:
        await projects.settled(wanted, within=0)
    clock.advance(6)
    with pytest.raises(WaitTimeoutError, match="No worker has taken it on yet"):
        await projects.settled(wanted, within=0)
    assert "worker" not in str(at_once.value)


async def test_the_log_is_followed_from_a_number_until_the_project_is_gone() -> None:
    house = House()
    projects = house.use_cases.projects
    async with house.working():
        await projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))
        stream = await projects.follow(OPERATOR, REF, 0)
        heard = [event async for event in _until(stream, "prepared")]
        await projects.settled(await _want(projects, Desired.ACTIVE))
        so_far = await _all(await projects.follow(OPERATOR, REF, 0, live=False))
        assert [event.seq for event in so_far][: len(heard)] == [event.seq for event in heard]
        rest = await projects.follow(OPERATOR, REF, heard[-1].seq)
        following = asyncio.create_task(_all(rest))
        await projects.settled(await _want(projects, Desired.DELETED))
        told = [event.seq for event in await following]
        assert told == list(range(heard[-1].seq + 1, heard[-1].seq + 1 + len(told)))
        with pytest.raises(ProjectNotFoundError):
            await projects.follow(OPERATOR, REF, 0)


async def test_whoever_follows_a_log_is_told_nothing_of_a_project_made_anew_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House()
    projects, events = house.use_cases.projects, house.store.events
    async with house.working():
        made = await projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))
        await projects.settled(made.project)
        stream = await projects.follow(OPERATOR, REF, 0)

        async def late(owner: str, project_id: str, after: int, limit: int) -> Sequence[Event]:
            monkeypatch.setattr(house.store, "events", events)
            await projects.settled(await _want(projects, Desired.DELETED))
            again = await projects.create(OPERATOR, "ada", NewProject("Another", "demo"))
            await projects.settled(again.project)
            await projects.settled(await _want(projects, Desired.ACTIVE))
            return await events(owner, project_id, after, limit)

        monkeypatch.setattr(house.store, "events", late)
        async with asyncio.timeout(10):
            assert [event.code for event in await _all(stream)] == ["preparing", "prepared"]


async def test_the_newest_events_are_the_end_of_a_log_that_was_cut() -> None:
    house = House()
    projects = house.use_cases.projects
    created = await projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))
    assert list(await projects.events(created.project)) == []
    now = house.clock.now()
    claim = await house.store.claim_due("w1", now, 15)
    assert claim is not None
    told = [NewEvent("step", f"Step {number}.") for number in range(700)]
    outcome = Outcome(status=Status.INACTIVE, observed_generation=1, events=told)
    recorded = await house.store.record(claim, outcome, now, release=True)
    newest = await projects.events(recorded)
    assert [event.seq for event in newest] == list(range(601, 701))


async def _want(projects: Any, desired: Desired) -> Any:
    return await projects.want(OPERATOR, REF, desired)


async def _until(stream: Any, code: str) -> Any:
    async for event in stream:
        yield event
        if event.code == code:
            break
    await stream.aclose()


async def _all(stream: Any) -> list[Any]:
    return [event async for event in stream]
