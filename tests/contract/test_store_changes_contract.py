"""What every store promises to those who listen, and to those who leave."""

import asyncio

from tests.contract.store_adapters import IDLE, REF, at, claim, make_project
from tests.wishes import edit, want

from greylag.domain.project import Desired, ProjectRef
from greylag.ports import ProjectStore
from greylag.services.projects import Edit


async def test_only_those_who_asked_for_a_project_hear_of_it(store: ProjectStore) -> None:
    await store.create(make_project("other"))
    with (
        store.subscribe(REF) as mine,
        store.subscribe(ProjectRef("ada", "other")) as other,
        store.subscribe() as everything,
        store.subscribe("ada") as of_user,
        store.subscribe("bob") as of_another,
    ):
        await store.create(make_project())
        assert await mine.changed(5)
        assert await of_user.changed(5)
        assert not await of_another.changed(0)
        assert await everything.changed(5)
        assert not await mine.changed(0)
        assert not await other.changed(0)


async def test_every_change_is_heard_and_what_changes_nothing_is_not(store: ProjectStore) -> None:
    with store.subscribe(REF) as heard:
        await store.create(make_project(due_at=at(0)))
        assert await heard.changed(5)
        await edit(store, "ada", "demo", Edit(name="x"), at(1))
        assert await heard.changed(5)
        await edit(store, "ada", "demo", Edit(name="x"), at(1))
        await want(store, "ada", "demo", Desired.INACTIVE, at(1), at(9))
        claimed = await claim(store, 1)
        claimed = await store.renew(claimed, at(1), 30)
        assert not await heard.changed(0.01)
        await want(store, "ada", "demo", Desired.ACTIVE, at(1), at(9))
        assert await heard.changed(5)
        await store.poke(REF, at(1))
        assert await heard.changed(5)
        await store.poke_unsettled(at(1))
        assert await heard.changed(5)
        await store.record(claimed, IDLE, at(1), release=False)
        assert await heard.changed(5)
        await store.forget(claimed)
        assert await heard.changed(5)


async def test_changes_between_two_waits_are_heard_once(store: ProjectStore) -> None:
    await store.create(make_project())
    with store.subscribe(REF) as heard:
        await store.poke(REF, at(1))
        await store.poke(REF, at(2))
        assert await heard.changed(5)
        assert not await heard.changed(0)


async def test_a_wait_begun_before_the_change_ends_with_it(store: ProjectStore) -> None:
    with store.subscribe() as heard:
        waiting = asyncio.create_task(heard.changed(30))
        await store.create(make_project())
        assert await waiting


async def test_a_cancelled_wait_loses_nothing(store: ProjectStore) -> None:
    with store.subscribe(REF) as heard:
        waiting = asyncio.create_task(heard.changed(30))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        await store.create(make_project())
        assert await heard.changed(5)


async def test_cancelled_callers_leave_the_store_whole(store: ProjectStore) -> None:
    tasks = [asyncio.create_task(store.create(make_project(f"p{n}"))) for n in range(30)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    done, _ = await asyncio.wait(tasks)
    for n, task in enumerate(tasks):
        if task in done and not task.cancelled():
            assert await store.get("ada", f"p{n}") == task.result().project
    await store.create(make_project())
    assert (await store.get("ada", "demo")).project_id == "demo"
