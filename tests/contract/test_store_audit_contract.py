"""The audit trail over every store: one chain, an entry for each change and for nothing else."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.contract.store_adapters import T0, at, make_project
from tests.store import mongo_servers
from tests.wishes import edit, refresh, want

from greylag.domain.audit import (
    Actor,
    AuditEntry,
    AuditEvent,
    ChainBrokenError,
    ChainCheck,
    Result,
    to_json,
)
from greylag.domain.errors import ProjectExistsError
from greylag.domain.project import Desired
from greylag.domain.users import User
from greylag.ports import AuditFilter, IdempotencyKey, ProjectStore
from greylag.services.projects import Edit
from greylag.store.mongo.store import MongoStore
from greylag.store.sqlite import audit_trail

ALL = AuditFilter()
ADA = Actor("Ada Ω", "user", "ada", "session 1", "10.0.0.1")


def event(seconds: float = 0, **fields: Any) -> AuditEvent:
    values: dict[str, Any] = {"actor": ADA, "action": "test", "object": "user/ada"}
    return AuditEvent(at=at(seconds), **(values | fields))


async def checked(store: ProjectStore) -> list[Any]:
    """Return all entries, once the chain has been found whole."""
    bounds = await store.audit_bounds()
    check = ChainCheck(bounds.start)
    found = [one for _, one in await store.audit_entries(ALL, 1000, after=bounds.start.number)]
    check.follow(found)
    assert check.last == bounds.end
    return found


async def actions(store: ProjectStore) -> list[str]:
    return [one["action"] for one in await checked(store)]


async def test_a_change_leaves_its_entry_and_what_changes_nothing_leaves_none(
    store: ProjectStore,
) -> None:
    key = IdempotencyKey("k", "f")
    for _ in range(2):
        await store.create(make_project(), key, audit=event(action="create"))
    with pytest.raises(ProjectExistsError):
        await store.create(make_project(), audit=event(action="twice"))
    for _ in range(2):
        await edit(store, "ada", "demo", Edit(name="N"), at(1), audit=event(action="edit"))
        await want(store, "ada", "demo", Desired.ACTIVE, at(1), at(9), audit=event(action="want"))
    await refresh(store, "ada", "demo", at(2), audit=event(action="refresh"))
    for _ in range(2):
        await store.put(User("ada", "Ada"), T0, audit=event(action="put"))
    await store.put(User("ada", "Ada L", version=1), T0, audit=event(action="put again"))
    for _ in range(2):
        await store.remove(User, "ada", audit=event(action="remove"))
        await store.revoke("one", at(99), T0, audit=event(action="revoke"))
    wanted = ["create", "edit", "want", "put", "put again", "remove", "revoke"]
    assert await actions(store) == wanted


async def test_what_is_appended_at_once_is_one_chain_and_is_told(store: ProjectStore) -> None:
    told: list[AuditEntry] = []
    store.on_audit(told.append)
    made = (store.append_audit(event(i, changed={"n": i, "t": "Ω\0"})) for i in range(20))
    appended = await asyncio.gather(*made)
    await asyncio.sleep(0)
    assert sorted(one.number for one in appended) == list(range(1, 21))
    assert await checked(store) == [to_json(one) for one in sorted(told, key=lambda e: e.number)]


async def test_entries_are_found_by_what_they_say_and_in_pages(store: ProjectStore) -> None:
    other = replace(ADA, user="bob")
    told: list[dict[str, Any]] = [
        {"object": "project/ada/demo"},
        {"object": "project/ada/demo/files/a", "actor": other},
        {"object": "project/ada/demo2", "result": Result.REFUSED},
        {"object": "project/ada/demo.x", "action": "other"},
    ]
    for i, fields in enumerate(told):
        await store.append_audit(event(i, **fields))

    async def numbers(**asked: Any) -> list[int]:
        found = await store.audit_entries(AuditFilter(**asked), 10)
        return [number for number, _ in found]

    assert await numbers(object="project/ada/demo") == [1, 2]
    assert await numbers(user="bob") == [2]
    assert await numbers(result="refused") == [3]
    assert await numbers(action="other", user="ada") == [4]
    assert await numbers(since=at(1), until=at(3)) == [2, 3]
    newest = await store.audit_entries(ALL, 2, before=10**15)
    assert [number for number, _ in newest] == [4, 3]
    rest = await store.audit_entries(ALL, 9, before=3)
    assert [number for number, _ in rest] == [2, 1]


async def test_what_is_trimmed_leaves_a_chain_that_can_be_checked(store: ProjectStore) -> None:
    assert await store.trim_audit(at(9)) == 0
    for i in range(5):
        await store.append_audit(event(i))
    assert (await store.trim_audit(at(2)), await store.trim_audit(at(2))) == (2, 0)
    assert [one["number"] for one in await checked(store)] == [3, 4, 5]
    assert await store.trim_audit(at(99)) == 3
    assert await checked(store) == []
    await store.append_audit(event(6))
    assert [one["number"] for one in await checked(store)] == [6]


async def test_what_is_old_is_trimmed_in_steps(store: ProjectStore) -> None:
    for i in range(5):
        await store.append_audit(event(i))
    steps = [await store.trim_audit(at(3), 2) for _ in range(3)]
    assert steps == [2, 1, 0]
    assert [one["number"] for one in await checked(store)] == [4, 5]


@pytest.mark.parametrize("many", [1, 10_000])
async def test_filters_find_the_same_whichever_of_them_finds_the_fewest(
    store: ProjectStore, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(audit_trail, "_MANY", many)
    bob, eve = (replace(ADA, user=name) for name in ("bob", "eve"))
    # Clocks differ: what is appended later may be of before.
    for i, second in enumerate((3, 1, 2, 5, 4, 6)):
        done = Result.REFUSED if i == 4 else Result.DONE
        on = f"project/p{i % 2}/x" if i % 3 else f"project/p{i % 2}-2"
        await store.append_audit(
            event(second, actor=bob if i % 2 else eve, action=f"a{i % 3}", object=on, result=done)
        )

    async def numbers(before: int | None = None, **asked: Any) -> list[int]:
        found = await store.audit_entries(AuditFilter(**asked), 10, before=before)
        return [number for number, _ in found]

    assert await numbers(user="bob", action="a1") == [2]
    assert await numbers(user="eve", result="done") == [1, 3]
    assert await numbers(object="project/p0", action="a1") == [5]
    assert await numbers(object="project/p1", user="bob", result="done") == [2, 6]
    assert await numbers(7, object="project/p0", result="done") == [3]
    assert await numbers(since=at(2), until=at(5)) == [1, 3, 5]
    assert await numbers(7, since=at(2), until=at(5)) == [5, 3, 1]
    assert await numbers(6, since=at(3), user="eve") == [5, 1]
    assert await numbers(7, until=at(2)) == [2]
    assert await numbers(since=at(7)) == await numbers(7, until=at(1), user="bob") == []


async def test_each_kind_of_edit_is_found_and_named_by_its_number(store: ProjectStore) -> None:
    for i in range(4):
        await store.append_audit(event(i))
    good = await checked(store)
    end = (await store.audit_bounds()).end
    forged = {**good[1], "object": "user/eve"}
    edits: dict[str, list[Any]] = {
        "The entry 2 was changed.": [good[0], forged, *good[2:]],
        "The entry 3 is missing.": [*good[:2], good[3]],
        "The entry 1 is missing.": good[1:],
        "The entry 4 is missing.": good[:3],
        "The entry 2 is missing.": [good[0], good[2], good[1], good[3]],
    }
    for told, entries in edits.items():
        check = ChainCheck()
        with pytest.raises(ChainBrokenError, match=told):
            _follow(check, entries, end)


def _follow(check: ChainCheck, entries: list[Any], end: Any) -> None:
    check.follow(entries)
    check.end(end)


async def test_without_transactions_an_entry_comes_before_the_change_and_one_after() -> None:
    async with mongo_servers.opened() as store:
        store._audit._transactions = False
        for _ in range(2):
            await store.put(User("ada", "Ada"), T0, audit=event())
        results = [one["result"] for one in await checked(store)]
        assert results == ["begun", "done", "begun", "unchanged"]


@pytest.mark.parametrize("transactions", [True, False])
async def test_two_processes_on_one_server_make_one_chain(*, transactions: bool) -> None:
    server = mongo_servers.uri()
    async with mongo_servers.database(server) as name:
        stores = [
            await MongoStore.open(server, name, limits=mongo_servers.PATIENT) for _ in range(2)
        ]
        for one in stores:
            one._audit._transactions = transactions

        async def work(number: int) -> bool:
            user = User(f"u{number // 2}", "U")
            return await stores[number % 2].put(user, T0, audit=event(object=user.id))

        wrote = await asyncio.gather(*(work(number) for number in range(16)))
        told = await checked(stores[0])
        done = sorted(one["object"] for one in told if one["result"] == "done")
        assert done == [f"u{number}" for number in range(8)]
        assert wrote.count(True) == 8
        for one in stores:
            await one.close()
