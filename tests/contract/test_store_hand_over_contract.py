"""What every store promises about projects that change hands."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
from tests.contract.store_adapters import REF, at, claim, make_project
from tests.wishes import hand_over, want

from greylag.domain.errors import (
    ConflictError,
    IdempotencyConflictError,
    ProjectDeletingError,
    ProjectExistsError,
    ProjectNotFoundError,
)
from greylag.domain.project import Desired, Event, NewEvent, Project, ProjectRef, Status
from greylag.ports import IdempotencyKey, Outcome, PageQuery, ProjectStore

KEY = IdempotencyKey("key", "print")
ASLEEP = Outcome(
    status=Status.INACTIVE, observed_generation=1, events=[NewEvent("inactive", "It sleeps.")]
)


async def resting(store: ProjectStore) -> Project:
    """Return a project that a worker has made, and left."""
    await store.create(make_project(due_at=at(0)), KEY)
    return await store.record(await claim(store, 0), ASLEEP, at(0), release=True)


async def test_a_project_that_rests_is_anothers_with_its_log_and_environment(
    store: ProjectStore,
) -> None:
    before = await resting(store)
    bobs = ProjectRef("bob", "demo")
    with ExitStack() as listening:
        news = [listening.enter_context(store.subscribe(to)) for to in (REF, bobs, "ada", "bob")]
        given = await hand_over(store, "ada", "demo", "bob", at(1))
        assert all([await one.changed(5) for one in news])
    assert given == replace(before, user_id="bob", environment_user="ada", updated_at=at(1))
    assert await store.get("bob", "demo") == given
    assert given.environment.ref == REF
    assert given.names == before.names
    with pytest.raises(ProjectNotFoundError):
        await store.get("ada", "demo")
    assert not (await store.page("ada", PageQuery())).projects
    assert (await store.page("bob", PageQuery())).projects == [given]
    (told,) = await store.events("bob", "demo", 0, 9)
    assert isinstance(told, Event)
    # The cluster knows it by the name that it was made under.
    assert await store.of_environment(REF) == given
    with pytest.raises(ProjectNotFoundError):
        await store.of_environment(given.ref)
    await store.poke(given.ref, at(2))
    assert await store.claim_due("worker", at(2), 30) is None
    await store.poke(REF, at(2))
    claimed = await claim(store, 2)
    assert claimed.project.ref == given.ref
    await store.record(claimed, ASLEEP, at(3), release=True)
    home = await hand_over(store, "bob", "demo", "ada", at(4))
    assert home.environment_user is None
    assert await store.of_environment(REF) == home


async def test_neither_its_name_nor_its_key_makes_another_one_with_the_same_environment(
    store: ProjectStore,
) -> None:
    await resting(store)
    await hand_over(store, "ada", "demo", "bob", at(1))
    with pytest.raises(IdempotencyConflictError):
        await store.create(make_project(), KEY)
    with pytest.raises(IdempotencyConflictError):
        await store.created("ada", KEY, at(1))
    with pytest.raises(ProjectExistsError, match="handed over"):
        await store.create(make_project())
    with pytest.raises(ProjectExistsError, match="already"):
        await store.create(make_project(user_id="bob"))
    await store.create(make_project("other"))
    gone = await want(store, "bob", "demo", Desired.DELETED, at(2), at(9))
    await store.forget(await claim(store, 2))
    assert (await store.create(make_project())).new
    assert (await store.get("ada", "demo")).id != gone.id


async def test_only_what_rests_is_handed_over_and_to_whom_has_none_of_its_id(
    store: ProjectStore,
) -> None:
    await store.create(make_project(due_at=at(0)))
    with pytest.raises(ConflictError, match="not inactive"):
        await hand_over(store, "ada", "demo", "bob", at(0))
    claimed = await claim(store, 0)
    asleep = await store.record(claimed, ASLEEP, at(0), release=False)
    with pytest.raises(ConflictError, match="being worked on"):
        await hand_over(store, "ada", "demo", "bob", at(0))
    asleep = await store.record(claimed, ASLEEP, at(0), release=True)
    await store.create(make_project(user_id="bob"))
    with pytest.raises(ProjectExistsError):
        await hand_over(store, "ada", "demo", "bob", at(0))
    assert await hand_over(store, "ada", "demo", "ada", at(1)) == asleep
    with pytest.raises(ProjectNotFoundError):
        await hand_over(store, "eve", "demo", "ada", at(0))
    await want(store, "ada", "demo", Desired.ACTIVE, at(1), at(9))
    with pytest.raises(ConflictError):
        await hand_over(store, "ada", "demo", "cid", at(1))
    await want(store, "ada", "demo", Desired.DELETED, at(1), at(9))
    with pytest.raises(ProjectDeletingError):
        await hand_over(store, "ada", "demo", "cid", at(1))
    assert (await store.get("ada", "demo")).environment_user is None
