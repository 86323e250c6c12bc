"""Copies of what was said, fenced where no one step can look at a record and write elsewhere."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.contract.store_adapters import at, claim, make_project
from tests.store import mongo_servers

from greylag.domain.errors import LeaseLostError
from greylag.ports import Claim
from greylag.store.mongo.store import MongoStore


@pytest.fixture
async def store() -> AsyncIterator[MongoStore]:
    async with mongo_servers.opened() as one:
        yield one


async def claimed(store: MongoStore) -> Claim:
    await store.create(make_project(due_at=at(0)))
    return await claim(store, 0)


def after_the_look(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Awaitable[None]]
) -> None:
    """Let this happen when the next writer has seen that it holds the project."""
    original = store._check_held

    async def look(held: Claim) -> None:
        await original(held)
        monkeypatch.undo()
        await happens()

    monkeypatch.setattr(store, "_check_held", look)


async def test_who_is_overtaken_after_its_look_overwrites_nothing(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await claimed(store)

    async def overtake() -> None:
        await store.keep_transcript(await claim(store, 60), {"": b"new", "s": b"new"})

    after_the_look(store, monkeypatch, overtake)
    with pytest.raises(LeaseLostError):
        await store.keep_transcript(old, {"": b"late"}, only=[""])
    assert [await store.transcript("ada", "demo", part) for part in ("", "s")] == [b"new"] * 2


async def test_nothing_is_left_of_a_project_that_went_after_the_look(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await claimed(store)
    after_the_look(store, monkeypatch, lambda: store.forget(held))
    await store.keep_transcript(held, {"": b"late"})
    assert await store._transcripts.count_documents({}) == 0


async def test_records_put_back_from_an_older_copy_hold_nothing_up(store: MongoStore) -> None:
    held = await claimed(store)
    await store.keep_transcript(held, {"": b"before"})
    await store._transcripts.update_many({}, {"$set": {"number": 10**12}})
    await store.keep_transcript(held, {"": b"after"})
    assert await store.transcript("ada", "demo", "") == b"after"
