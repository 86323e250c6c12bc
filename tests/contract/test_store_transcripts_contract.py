"""What every store promises about the copies of what was said in environments."""

import pytest
from tests.contract.store_adapters import IDLE, at, claim, make_project

from greylag.domain.errors import LeaseLostError, ProjectNotFoundError
from greylag.ports import Claim, ProjectStore

LIST, ONE, OTHER = "", "0d4f-1", "Zoë $.x"
BODY = bytes(range(256)) * 5000


async def claimed(store: ProjectStore, seconds: float = 0, project_id: str = "demo") -> Claim:
    await store.create(make_project(project_id, due_at=at(seconds)))
    return await claim(store, seconds)


async def kept(store: ProjectStore, part: str) -> bytes | None:
    return await store.transcript("ada", "demo", part)


async def test_parts_are_kept_replaced_and_removed(store: ProjectStore) -> None:
    held = await claimed(store)
    assert await kept(store, LIST) is None
    for _ in range(2):  # the same again is the same
        await store.keep_transcript(held, {ONE: BODY, LIST: b"\0list"})
    assert (await kept(store, ONE), await kept(store, LIST)) == (BODY, b"\0list")
    await store.keep_transcript(held, {OTHER: b"other", LIST: b"both"}, only=[LIST, OTHER])
    assert (await kept(store, ONE), await kept(store, OTHER)) == (None, b"other")
    assert await kept(store, LIST) == b"both"
    await store.keep_transcript(held, {}, only=())
    assert [await kept(store, part) for part in (LIST, ONE, OTHER)] == [None] * 3


async def test_a_thousand_parts_are_kept_beside_each_other(store: ProjectStore) -> None:
    held = await claimed(store)
    names = [f"{ONE}/{number:0300}" for number in range(1000)]
    await store.keep_transcript(held, dict.fromkeys(names[:20], b"steps"))
    await store.keep_transcript(held, {LIST: b"list"}, only={LIST, *names[10:]})
    assert [await kept(store, name) for name in names[8:12]] == [None, None, b"steps", b"steps"]


async def test_a_copy_is_its_owners_and_its_projects(store: ProjectStore) -> None:
    held = await claimed(store)
    await claimed(store, 1, "second")
    await store.keep_transcript(held, {LIST: b"list"})
    assert await store.transcript("ada", "second", LIST) is None
    for owner, project_id in (("bob", "demo"), ("ada", "none")):
        with pytest.raises(ProjectNotFoundError):
            await store.transcript(owner, project_id, LIST)


async def test_who_lost_the_project_changes_nothing(store: ProjectStore) -> None:
    old = await claimed(store)
    await store.keep_transcript(old, {LIST: b"old", ONE: b"old"})
    new = await claim(store, 60)
    for parts, only in (({LIST: b"late"}, None), ({}, ())):
        with pytest.raises(LeaseLostError):
            await store.keep_transcript(old, parts, only=only)
    assert (await kept(store, LIST), await kept(store, ONE)) == (b"old", b"old")
    await store.keep_transcript(new, {LIST: b"new"}, only=[LIST])
    assert (await kept(store, LIST), await kept(store, ONE)) == (b"new", None)


async def test_a_copy_goes_with_its_project(store: ProjectStore) -> None:
    held = await claimed(store)
    await store.keep_transcript(held, {LIST: b"list", ONE: b"one"})
    await store.record(held, IDLE, at(1), release=False)
    assert await kept(store, LIST) == b"list"
    await store.forget(held)
    with pytest.raises(LeaseLostError):
        await store.keep_transcript(held, {LIST: b"late"})
    await claimed(store, 2)
    assert [await kept(store, part) for part in (LIST, ONE)] == [None, None]
