"""Two stores on one file, as in two processes: each hears what the other writes."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.contract.store_adapters import REF, at, claim, make_project
from tests.wishes import edit, want

from greylag.domain.errors import StoreUnavailableError
from greylag.domain.project import Desired, ProjectRef
from greylag.ports import PageQuery
from greylag.services.projects import Edit
from greylag.store.sqlite import store
from greylag.store.sqlite.store import SqliteStore

Pair = tuple[SqliteStore, SqliteStore]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    path = tmp_path / "greylag.db"
    ours = await SqliteStore.open(path, poll_seconds=0.005)
    theirs = await SqliteStore.open(path, poll_seconds=0.005)
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


async def test_a_page_is_as_the_last_write_left_it_whoever_wrote(pair: Pair) -> None:
    for number in range(3):
        await pair[0].create(make_project(f"p{number}", created=number))
    for number in range(70):
        name = f"name {number}"
        await edit(pair[number % 2], "ada", "p1", Edit(name=name), at(9))
        for one, limit in product(pair, (2, 3, 50 + number)):
            page = await one.page("ada", PageQuery(limit))
            assert page.projects[1].name == name
            assert len(page.projects) == min(3, limit)
    first, again = [await pair[0].page("ada", PageQuery()) for _ in range(2)]
    assert first is again


async def test_each_kind_of_write_is_heard(pair: Pair) -> None:
    ours, theirs = pair
    await theirs.create(make_project(due_at=at(0)))
    with ours.subscribe(REF) as heard:
        # What came before may be told late; the rest is about what comes now.
        await heard.changed(0.05)
        await edit(theirs, "ada", "demo", Edit(name="x"), at(1))
        assert await heard.changed(10)
        await want(theirs, "ada", "demo", Desired.ACTIVE, at(1), at(9))
        assert await heard.changed(10)
        await theirs.poke(REF, at(1))
        assert await heard.changed(10)
        await theirs.poke_unsettled(at(1))
        assert await heard.changed(10)
        await theirs.forget(await claim(theirs, 2))
        assert await heard.changed(10)


async def test_our_own_writes_are_told_once(pair: Pair) -> None:
    ours, _ = pair
    with ours.subscribe(REF) as heard:
        await ours.create(make_project())
        assert await heard.changed(10)
        assert not await heard.changed(0.05)


async def test_a_change_while_nobody_looks_is_not_lost_to_who_listened_before_it(
    pair: Pair,
) -> None:
    ours, theirs = pair
    for n in range(20):
        await theirs.create(make_project(f"before{n}"))
    with ours.subscribe(REF) as heard:
        await theirs.create(make_project())
        assert await heard.changed(10)


async def test_rows_that_were_trimmed_unread_wake_everybody(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_KEPT", 3)
    ours, theirs = pair
    for n in range(10):
        await theirs.create(make_project(f"p{n}"))
    with ours.subscribe(ProjectRef("ada", "unchanged")) as heard:
        assert await heard.changed(10)


async def test_what_was_told_is_not_told_again(pair: Pair) -> None:
    ours, theirs = pair
    with ours.subscribe(REF) as heard, ours.subscribe(ProjectRef("ada", "next")) as later:
        await theirs.create(make_project())
        assert await heard.changed(10)
        await theirs.create(make_project("next"))
        assert await later.changed(10)
        assert not await heard.changed(0)


async def test_when_changes_cannot_be_read_listeners_look_for_themselves(
    pair: Pair, tmp_path: Path
) -> None:
    ours, _ = pair
    with closing(sqlite3.connect(tmp_path / "greylag.db")) as sql:
        sql.execute("DROP TABLE changes")
    with capture_logs() as lines, ours.subscribe(REF) as heard:
        assert await heard.changed(10)
    assert [line["event"] for line in lines] == ["changes_unreadable"]


async def test_when_the_follower_dies_listeners_get_its_error(pair: Pair) -> None:
    ours, _ = pair
    fault = RuntimeError("a fault in the follower")

    def broken(_: sqlite3.Connection) -> set[ProjectRef | None]:
        raise fault

    with ours.subscribe(REF) as heard:
        ours._follower._read = broken  # type: ignore[method-assign, assignment]  # the fault to be noticed
        for _ in range(2):
            with pytest.raises(StoreUnavailableError) as caught:
                await heard.changed(10)
            assert caught.value.__cause__ is fault


async def test_simultaneous_claims_of_two_processes_give_each_project_to_one(pair: Pair) -> None:
    ours, theirs = pair
    for n in range(10):
        await ours.create(make_project(f"p{n}", due_at=at(0)))
    stores = [ours, theirs] * 25
    claims = await asyncio.gather(*(s.claim_due(f"w{n}", at(1), 30) for n, s in enumerate(stores)))
    won = [claimed.project.project_id for claimed in claims if claimed]
    assert sorted(won) == sorted(f"p{n}" for n in range(10))
