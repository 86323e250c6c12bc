"""Two stores on one database, as in two processes: by change stream, and by looking."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.contract.store_adapters import REF, at, claim, make_project
from tests.store import mongo_servers
from tests.wishes import edit, hand_over, want

from greylag.domain.errors import StoreUnavailableError
from greylag.domain.project import Desired, ProjectRef
from greylag.services.projects import Edit
from greylag.store.mongo.store import MongoStore

Pair = tuple[MongoStore, MongoStore]


@pytest.fixture(params=["stream", "poll"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    server = mongo_servers.uri(single=request.param == "poll")
    async with mongo_servers.database(server) as name:
        ours = await MongoStore.open(server, name, limits=mongo_servers.PATIENT, poll_seconds=0.01)
        theirs = await MongoStore.open(
            server, name, limits=mongo_servers.PATIENT, poll_seconds=0.01
        )
        yield ours, theirs
        await ours.close()
        await theirs.close()


async def test_what_the_other_writes_is_heard_by_those_it_concerns(pair: Pair) -> None:
    ours, theirs = pair
    with (
        ours.subscribe(REF) as mine,
        ours.subscribe() as everything,
        ours.subscribe(ProjectRef("ada", "other")) as other,
    ):
        await theirs.create(make_project())
        assert await mine.changed(10)
        assert await everything.changed(10)
        assert not await other.changed(0)


async def test_each_kind_of_write_is_heard_once_and_leases_are_nobodys_news(pair: Pair) -> None:
    ours, theirs = pair
    with ours.subscribe(REF) as heard:
        await theirs.create(make_project(due_at=at(0)))
        assert await heard.changed(10)
        await edit(theirs, "ada", "demo", Edit(name="x"), at(1))
        assert await heard.changed(10)
        await want(theirs, "ada", "demo", Desired.ACTIVE, at(1), at(9))
        assert await heard.changed(10)
        await theirs.poke(REF, at(1))
        assert await heard.changed(10)
        claimed = await claim(theirs, 2)
        await theirs.renew(claimed, at(3), 30)
        assert not await heard.changed(0.2)
        await theirs.poke_unsettled(at(1))
        assert await heard.changed(10)
        await theirs.forget(claimed)
        assert await heard.changed(10)
        assert not await heard.changed(0.1)


async def test_who_had_a_project_hears_that_another_process_handed_it_over(pair: Pair) -> None:
    ours, theirs = pair
    await ours.create(make_project(observed_generation=1))
    with ours.subscribe("ada") as before, ours.subscribe("bob") as after:
        await hand_over(theirs, "ada", "demo", "bob", at(1))
        assert await before.changed(10)
        assert await after.changed(10)


async def test_our_own_writes_are_told_once(pair: Pair) -> None:
    ours, _ = pair
    with ours.subscribe(REF) as heard:
        await ours.create(make_project())
        assert await heard.changed(10)
        await ours.poke_unsettled(at(1))
        assert await heard.changed(10)
        assert not await heard.changed(0.2)


async def test_a_write_whose_caller_was_cancelled_is_told(pair: Pair) -> None:
    ours, theirs = pair
    await ours.create(make_project())
    with theirs.subscribe(REF) as far, ours.subscribe(REF) as near:
        await far.changed(0.2)
        wanting = asyncio.create_task(want(ours, "ada", "demo", Desired.ACTIVE, at(1), at(9)))
        async with asyncio.timeout(10):
            while not ours._begun:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)
        wanting.cancel()
        await asyncio.wait({wanting})
        assert await near.changed(10)
        assert await far.changed(10)
        assert (await theirs.get("ada", "demo")).desired is Desired.ACTIVE


async def test_simultaneous_claims_of_two_processes_give_each_project_to_one(pair: Pair) -> None:
    ours, theirs = pair
    for n in range(6):
        await ours.create(make_project(f"p{n}", due_at=at(0)))
    stores = [ours, theirs] * 6
    claims = await asyncio.gather(*(s.claim_due(f"w{n}", at(1), 30) for n, s in enumerate(stores)))
    won = [claimed.project.project_id for claimed in claims if claimed]
    assert sorted(won) == sorted(f"p{n}" for n in range(6))


async def test_simultaneous_edits_of_two_processes_are_both_kept(pair: Pair) -> None:
    ours, theirs = pair
    await ours.create(make_project())
    await asyncio.gather(
        *(edit(ours, "ada", "demo", Edit(name=f"n{n}"), at(n)) for n in range(5)),
        *(edit(theirs, "ada", "demo", Edit(metadata={"n": n}), at(n)) for n in range(5)),
    )
    project = await ours.get("ada", "demo")
    assert project.name.startswith("n")
    assert project.metadata.keys() == {"n"}


async def test_what_another_program_writes_is_heard_by_the_stream() -> None:
    server = mongo_servers.uri()
    async with mongo_servers.database(server) as name, mongo_servers.Client(server) as other:
        store = await MongoStore.open(server, name, limits=mongo_servers.PATIENT)
        await store.create(make_project())
        with store.subscribe(REF) as heard:
            await other[name]["projects"].update_one({}, {"$set": {"name": "x"}})
            assert await heard.changed(10)
            await other[name]["projects"].delete_many({})
            assert await heard.changed(10)
        await store.close()


async def test_when_the_follower_dies_listeners_get_its_error(pair: Pair) -> None:
    ours, theirs = pair
    fault = RuntimeError("a fault in the follower")

    async def broken() -> None:
        raise fault

    with ours.subscribe(REF) as heard:
        ours._follower._follow = broken  # type: ignore[method-assign]  # the fault to be noticed
        await theirs.create(make_project())
        with pytest.raises(StoreUnavailableError) as caught:  # noqa: PT012 - the first may be news
            for _ in range(2):
                await heard.changed(10)
        assert caught.value.__cause__ is fault
