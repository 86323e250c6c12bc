"""What every store promises about creation and its idempotency keys."""

import asyncio
from dataclasses import replace

import pytest
from tests.contract.store_adapters import at, claim, make_project
from tests.wishes import edit

from greylag.domain.errors import IdempotencyConflictError, ProjectExistsError, ProjectNotFoundError
from greylag.ports import IdempotencyKey, PageQuery, ProjectStore
from greylag.services.projects import Edit

KEY = IdempotencyKey("key", "print")
DAY = 24 * 3600


async def test_an_id_that_exists_is_refused_and_the_first_project_stays(
    store: ProjectStore,
) -> None:
    first = make_project(name="first")
    await store.create(first)
    with pytest.raises(ProjectExistsError):
        await store.create(make_project(name="second"), KEY)
    assert await store.get("ada", "demo") == first
    # The refused creation has not used up its key.
    assert (await store.create(make_project("other"), KEY)).new


async def test_the_same_key_again_returns_the_first_project_as_it_is_now(
    store: ProjectStore,
) -> None:
    first = await store.create(make_project("one"), KEY)
    await edit(store, "ada", "one", Edit(name="renamed"), at(1))
    again = await store.create(make_project("two"), KEY)
    assert first.new
    assert not again.new
    assert again.project == replace(first.project, name="renamed", updated_at=at(1))
    with pytest.raises(ProjectNotFoundError):
        await store.get("ada", "two")


async def test_the_same_key_for_another_request_is_a_conflict(store: ProjectStore) -> None:
    await store.create(make_project("one"), KEY)
    with pytest.raises(IdempotencyConflictError):
        await store.create(make_project("two"), IdempotencyKey("key", "other"))


async def test_a_key_belongs_to_its_owner(store: ProjectStore) -> None:
    await store.create(make_project("one"), KEY)
    assert (await store.create(make_project("one", "bob"), IdempotencyKey("key", "x"))).new


async def test_a_key_is_kept_for_a_day(store: ProjectStore) -> None:
    await store.create(make_project("one"), KEY)
    assert not (await store.create(make_project("two", created=DAY - 0.001), KEY)).new
    assert (await store.create(make_project("three", created=DAY), KEY)).new


async def test_a_key_is_forgotten_with_its_project(store: ProjectStore) -> None:
    await store.create(make_project(due_at=at(0)), KEY)
    await store.forget(await claim(store, 0))
    assert (await store.create(make_project(), KEY)).new


async def test_what_a_key_has_created_is_told_and_nothing_is_made(store: ProjectStore) -> None:
    assert await store.created("ada", KEY, at(0)) is None
    await store.create(make_project("one"), KEY)
    await edit(store, "ada", "one", Edit(name="renamed"), at(1))
    there = await store.get("ada", "one")
    assert await store.created("ada", KEY, at(DAY - 0.001)) == there
    assert await store.created("ada", KEY, at(DAY)) is None
    assert await store.created("bob", KEY, at(1)) is None
    with pytest.raises(IdempotencyConflictError):
        await store.created("ada", IdempotencyKey("key", "other"), at(1))


async def test_simultaneous_creations_with_one_key_make_one_project(store: ProjectStore) -> None:
    made = await asyncio.gather(*(store.create(make_project(f"p{n}"), KEY) for n in range(50)))
    assert sum(one.new for one in made) == 1
    assert len({one.project.id for one in made}) == 1
    assert len((await store.page("ada", PageQuery(limit=100))).projects) == 1
