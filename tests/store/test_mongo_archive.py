"""MongoDB databases as whole stores: what others keep in documents, and what is found wrong."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import ObjectId
from bson.datetime_ms import DatetimeMS
from hypothesis import given
from hypothesis import strategies as st
from pymongo.asynchronous.database import AsyncDatabase
from tests.contract.store_adapters import IDLE, at, claim, make_project
from tests.store.sites import Site, cut_off, sites_in, unreadable
from tests.store.stored_projects import STORED, make_event, make_stored

from greylag.domain.audit import AuditEvent
from greylag.domain.errors import StoreUnavailableError
from greylag.domain.project import NewEvent
from greylag.ports import (
    Finding,
    Outcome,
    Stored,
    StoredProject,
    StoreIncompleteError,
    StoreInUseError,
)
from greylag.store.mongo import indexes
from greylag.store.mongo.archive import MongoArchive, project_document, stored_project
from greylag.store.mongo.connection import OPTIONS, Database
from greylag.store.mongo.documents import event_fields, key_document
from greylag.store.mongo.store import MongoStore

Raw = AsyncDatabase[dict[str, Any]]

OLD: dict[str, Any] = {
    "_id": ObjectId("65a000000000000000000001"),
    "user_id": "ada",
    "project_id": "demo",
    "name": "Demo",
    "status": "active",
    "metadata": {"team": "x", "seen": datetime(2020, 1, 1, tzinfo=UTC)},
    "theirs": [{"$odd": 1, "price": bson.Decimal128("1.10")}],
}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A database that was made ready."""
    async with sites_in(tmp_path) as sites:
        yield await sites.filled("mongo", [])


@pytest.fixture
async def raw(site: Site) -> AsyncIterator[Raw]:
    async with site.raw() as database:
        yield database


@given(STORED)
def test_any_project_comes_back_from_its_document(stored: StoredProject) -> None:
    document = bson.decode(bson.encode(project_document(stored)), OPTIONS)
    keys = [key_document(stored.project.id, kept) for kept in stored.keys]
    assert stored_project(document, [], keys) == stored


@given(
    st.dictionaries(st.text(min_size=1).filter(lambda name: "\0" not in name), st.integers(0, 9))
)
def test_any_fields_of_others_are_carried_along(theirs: dict[str, int]) -> None:
    document = project_document(make_stored())
    other = {f"x{name}": value for name, value in theirs.items()}
    stored = stored_project(document | other, [], [])
    assert isinstance(stored, StoredProject)
    assert project_document(stored) == document | other


async def test_what_others_keep_in_a_document_moves_with_it(site: Site, raw: Raw) -> None:
    await raw["projects"].insert_one(OLD)
    (stored,) = await site.holds()
    async with site.archive() as archive, archive.replacing() as fill:
        await fill([stored])
    found = await raw["projects"].find_one({})
    assert found is not None
    assert {name: found[name] for name in OLD} == OLD
    assert found["created_at"] == OLD["_id"].generation_time


async def test_the_log_is_whole_wherever_its_events_stand(site: Site, raw: Raw) -> None:
    async with site.store() as store:
        assert isinstance(store, MongoStore)
        await store.create(make_project(due_at=at(0)))
        claimed = await claim(store, 0)
        outcome = Outcome(status=IDLE.status, events=[NewEvent("e", "E")] * 300)
        await store.record(claimed, outcome, at(1), release=False)
        await store.record(claimed, outcome, at(2), release=False)
        # As a worker leaves it that dies between moving events and writing the next ones.
        document = await raw["projects"].find_one({})
        assert document is not None
        await store._log.move(document)
        expected = list(await store.events("ada", "demo", 0, 1000))
    (stored,) = await site.holds()
    assert stored.events == expected
    assert [event.seq for event in stored.events] == list(range(101, 601))


def test_events_that_came_after_the_record_was_read_are_not_its_own() -> None:
    document = project_document(make_stored(events=3))
    newer = [event_fields(make_event(seq)) for seq in (3, 4, 5)]
    stored = stored_project(document, newer, [])
    assert isinstance(stored, StoredProject)
    assert [event.seq for event in stored.events] == [1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": "confused"}, "'confused'"),
        ({"status": None}, "ValueError"),
        ({"desired": "more"}, "'more'"),
        ({"user_id": 5}, "5 is not text"),
        ({"created_at": "then"}, "created_at is 'then', not datetime"),
        ({"generation": "1"}, "generation is '1', not int"),
        ({"lease": {"worker": "w"}}, "TypeError"),
        ({"error": {"code": 5}, "error_message": "x"}, "error.code"),
        ({"namespace": 7}, "namespace"),
        ({"tail": [{"seq": 1}], "last_seq": 1}, "KeyError"),
        ({"_id": "65a000000000000000000001"}, "no ObjectId"),
        ({"_id": 7}, "7"),
    ],
)
async def test_what_cannot_be_read_is_told_and_the_rest_is_read(
    site: Site, raw: Raw, fields: dict[str, Any], words: str
) -> None:
    await raw["projects"].insert_one(OLD | fields)
    await raw["projects"].insert_one(OLD | {"_id": ObjectId(), "project_id": "sound"})
    async with site.archive() as archive:
        (finding,) = await unreadable(archive)
        assert await archive.count() == 2
    assert finding.place == str((OLD | fields)["_id"])
    assert words in finding.sentence


def test_a_date_that_python_cannot_hold_is_told() -> None:
    document = bson.encode(OLD | {"updated_at": DatetimeMS(2**60)})
    finding = stored_project(bson.decode(document, OPTIONS), [], [])
    assert isinstance(finding, Finding)
    assert "updated_at is DatetimeMS" in finding.sentence


async def test_records_with_ids_of_their_own_are_read_too(site: Site, raw: Raw) -> None:
    for number, name in enumerate(["b", "a", "c"]):
        await raw["projects"].insert_one(
            OLD | {"_id": name, "project_id": name, "created_at": at(0)}
        )
        await raw["projects"].insert_one(OLD | {"_id": ObjectId(), "project_id": f"p{number}"})
    found = {stored.project.project_id for stored in await site.holds()}
    assert found == {"p0", "p1", "p2", "a", "b", "c"}


async def test_indexes_that_are_missing_or_wrong_are_named(site: Site, raw: Raw) -> None:
    await raw["projects"].drop_index("user_id_1_project_id_1")
    await raw["projects"].create_index([("user_id", 1), ("project_id", 1)], name="theirs")
    await raw["greylag_keys"].drop_index("record_id_1")
    async with site.archive() as archive:
        found = {finding.place for finding in await archive.findings()}
    assert found == {"projects.user_id_1_project_id_1", "greylag_keys.record_id_1"}


async def test_nothing_opens_on_a_store_that_an_import_has_left(site: Site, raw: Raw) -> None:
    async with site.archive() as archive:
        await cut_off(archive, make_stored())
    with pytest.raises(StoreIncompleteError, match="only a part"):
        async with site.store():
            pass
    async with site.archive() as archive, archive.replacing() as fill:
        await fill([make_stored()])
    async with site.store() as store:
        assert (await store.get("ada", "demo")).project_id == "demo"
    assert await raw["greylag_copying"].count_documents({}) == 0


async def test_of_two_imports_at_once_neither_is_taken_for_whole(site: Site) -> None:
    async with site.archive() as one, site.archive() as other:
        with pytest.raises(StoreInUseError, match="Another import"):
            async with one.replacing():
                await cut_off(other)
        assert await one.incomplete()


async def test_of_two_imports_at_once_the_later_ends_where_the_earlier_wrote_nothing_meanwhile(
    site: Site,
) -> None:
    async with site.archive() as one, site.archive() as other, AsyncExitStack() as earlier:
        fill_one = await earlier.enter_async_context(one.replacing())
        await fill_one([make_stored("one")])
        async with other.replacing() as fill_other:
            await fill_other([make_stored("other")])
        # By now programs may have started on the store.
        with pytest.raises(StoreInUseError, match="Another import"):
            await fill_one([make_stored("more")])
        with pytest.raises(StoreInUseError, match="Another import"):
            await earlier.aclose()
        assert not await one.incomplete()
    assert [stored.project.project_id for stored in await site.holds()] == ["other"]


@pytest.mark.parametrize("fails", [False, True], ids=["", "no answer in time"])
async def test_of_two_imports_at_once_that_both_wrote_neither_is_taken_for_whole(
    site: Site, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    async with site.archive() as one, site.archive() as other, AsyncExitStack() as later:
        assert isinstance(one, MongoArchive)
        fill = one._fill

        async def overtaken(records: Sequence[Stored | AuditEvent]) -> None:
            # The other one begins, and empties the store, as this batch is on its way.
            fill_other = await later.enter_async_context(other.replacing())
            await fill_other([make_stored("other")])
            await fill(records)
            if fails:
                raise StoreUnavailableError("no answer in time")

        monkeypatch.setattr(one, "_fill", overtaken)
        with pytest.raises(StoreInUseError, match="Another import"):
            async with one.replacing() as fill_one:
                await fill_one([make_stored("one")])
        with pytest.raises(StoreInUseError, match="Another import"):
            await later.aclose()
        assert await one.incomplete()


@pytest.mark.parametrize("fails", [False, True], ids=["", "no answer in time"])
async def test_an_import_that_empties_what_a_later_one_has_filled_leaves_neither_whole(
    site: Site, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    async with site.archive() as one, site.archive() as other, AsyncExitStack() as later:
        ensure = indexes.ensure

        async def overtaken(database: Database) -> None:
            monkeypatch.setattr(indexes, "ensure", ensure)
            await later.enter_async_context(other.replacing())
            await ensure(database)
            if fails:
                raise StoreUnavailableError("no answer in time")

        monkeypatch.setattr(indexes, "ensure", overtaken)
        with pytest.raises(StoreInUseError, match="Another import"):
            async with one.replacing():
                pass
        with pytest.raises(StoreInUseError, match="Another import"):
            await later.aclose()
        assert await one.incomplete()
