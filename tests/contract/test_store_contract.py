"""What every store promises about records, edits and wishes."""

from dataclasses import replace

import pytest
from tests.contract.store_adapters import at, make_project
from tests.wishes import edit, want

from greylag.domain.errors import (
    ErrorInfo,
    ProjectDeletingError,
    ProjectNotFoundError,
    StoreUnavailableError,
)
from greylag.domain.project import Desired, GitSource, Lease, Status
from greylag.ports import PageQuery, ProjectStore
from greylag.services.projects import Edit


async def test_every_field_of_a_project_comes_back_as_it_was_put_in(store: ProjectStore) -> None:
    project = make_project(
        name="Ein schöner Name \u2603 \U0001f9a2",
        metadata={"a": [1, 2.5, None, {"b": {"c": "\u0000 \ud800"}}], "": True, "n": 2**70},
        status=Status.ERROR,
        endpoint="http://127.0.0.1:1",
        error=ErrorInfo("image_not_found", "There is no such image: \udcff.", "Mend it."),
        error_terminal=True,
        last_activated_at=at(1),
        last_deactivated_at=at(2.001),
        desired=Desired.ACTIVE,
        generation=7,
        observed_generation=6,
        attempts=3,
        due_at=at(3),
        deadline_at=at(4),
        lease=Lease("worker", 5, at(5)),
        source=GitSource("https://example.org/a.git", "main", 3),
        environment_user="eve",
    )
    assert (await store.create(project)).project == project
    assert await store.get("ada", "demo") == project


async def test_what_a_caller_does_to_metadata_does_not_reach_the_store(
    store: ProjectStore,
) -> None:
    given = {"list": [1]}
    await store.create(make_project(metadata=given))
    given["list"].append(2)
    taken = await store.get("ada", "demo")
    taken.metadata["list"].append(3)
    assert (await store.get("ada", "demo")).metadata == {"list": [1]}


async def test_an_edit_changes_what_it_names_and_nothing_else(store: ProjectStore) -> None:
    project = make_project(metadata={"a": 1})
    await store.create(project)
    renamed = await edit(store, "ada", "demo", Edit(name="New"), at(1))
    assert renamed == replace(project, name="New", updated_at=at(1))
    tagged = await edit(store, "ada", "demo", Edit(metadata={"b": [2]}), at(2))
    assert tagged == replace(renamed, metadata={"b": [2]}, updated_at=at(2))
    assert await edit(store, "ada", "demo", Edit(metadata={"b": [2]}), at(3)) == tagged
    assert await store.get("ada", "demo") == tagged


async def test_a_wish_that_changes_something_starts_anew(store: ProjectStore) -> None:
    project = make_project(attempts=4, error_terminal=True, due_at=at(500))
    await store.create(project)
    wanted = await want(store, "ada", "demo", Desired.ACTIVE, at(1), at(121))
    assert wanted == replace(
        project,
        desired=Desired.ACTIVE,
        generation=2,
        due_at=at(1),
        deadline_at=at(121),
        attempts=0,
        error_terminal=False,
        updated_at=at(1),
    )
    assert await store.get("ada", "demo") == wanted


async def test_the_same_wish_again_changes_nothing(store: ProjectStore) -> None:
    await store.create(make_project())
    wanted = await want(store, "ada", "demo", Desired.ACTIVE, at(1), at(121))
    assert await want(store, "ada", "demo", Desired.ACTIVE, at(2), at(122)) == wanted


async def test_a_wish_that_is_made_again_alone_is_no_new_one(store: ProjectStore) -> None:
    project = (await store.create(make_project())).project
    for wish in (Desired.ACTIVE, Desired.DELETED):
        assert await want(store, "ada", "demo", wish, at(1), at(9), again=True) == project
    wanted = await want(store, "ada", "demo", Desired.ACTIVE, at(1), at(121))
    assert await want(store, "ada", "demo", Desired.ACTIVE, at(2), at(9), again=True) == wanted
    await store.create(make_project("bad", desired=Desired.ACTIVE, status=Status.ERROR))
    tried = await want(store, "ada", "bad", Desired.ACTIVE, at(2), at(122), again=True)
    assert (tried.generation, tried.due_at) == (2, at(2))


@pytest.mark.parametrize("desired", [Desired.ACTIVE, Desired.DELETED])
async def test_the_same_wish_for_a_project_in_error_tries_once_more(
    store: ProjectStore, desired: Desired
) -> None:
    await store.create(
        make_project(desired=desired, status=Status.ERROR, error_terminal=True, attempts=5)
    )
    again = await want(store, "ada", "demo", desired, at(2), at(122))
    assert (again.generation, again.attempts, again.error_terminal) == (2, 0, False)
    assert (again.due_at, again.deadline_at) == (at(2), at(122))


async def test_a_deletion_is_final(store: ProjectStore) -> None:
    await store.create(make_project())
    wanted = await want(store, "ada", "demo", Desired.DELETED, at(1), at(121))
    for other in (Desired.ACTIVE, Desired.INACTIVE):
        with pytest.raises(ProjectDeletingError):
            await want(store, "ada", "demo", other, at(2), at(122))
    with pytest.raises(ProjectDeletingError):
        await edit(store, "ada", "demo", Edit(name="x"), at(2))
    assert await want(store, "ada", "demo", Desired.DELETED, at(3), at(123)) == wanted
    assert await store.get("ada", "demo") == wanted


async def test_what_is_not_there_is_not_found(store: ProjectStore) -> None:
    with pytest.raises(ProjectNotFoundError):
        await store.get("ada", "demo")
    with pytest.raises(ProjectNotFoundError):
        await edit(store, "ada", "demo", Edit(), at(0))
    with pytest.raises(ProjectNotFoundError):
        await want(store, "ada", "demo", Desired.ACTIVE, at(0), at(1))
    with pytest.raises(ProjectNotFoundError):
        await store.events("ada", "demo", 0, 1)


async def test_a_closed_store_answers_nothing_and_can_be_closed_again(
    store: ProjectStore,
) -> None:
    await store.ping()
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailableError):
        await store.ping()
    with pytest.raises(StoreUnavailableError):
        await store.create(make_project())
    with pytest.raises(StoreUnavailableError):
        await store.page("ada", PageQuery())
