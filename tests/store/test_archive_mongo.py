"""MongoDB databases as whole stores: what others keep in documents, and what is found wrong."""

from collections.abc import AsyncIterator
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
from tests.store.archive_bundles import BUNDLES
from tests.store.archive_places import Site, everything, make_bundle, raw_database, sites_in

from greylag.domain.project import NewEvent
from greylag.ports import Bundle, Flaw, Outcome, StoreUnreadableError
from greylag.store.mongo.bundles import OPTIONS, from_bundle, key_document, to_bundle

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
    async with raw_database(site) as database:
        yield database


@given(BUNDLES)
def test_any_project_comes_back_from_its_document(bundle: Bundle) -> None:
    document = bson.decode(bson.encode(from_bundle(bundle)), OPTIONS)
    keys = [key_document(kept, document["_id"]) for kept in bundle.keys]
    assert to_bundle(document, [], keys) == bundle


@given(
    st.dictionaries(st.text(min_size=1).filter(lambda name: "\0" not in name), st.integers(0, 9))
)
def test_any_fields_of_others_are_carried_along(theirs: dict[str, int]) -> None:
    document = from_bundle(make_bundle())
    other = {f"x{name}": value for name, value in theirs.items()}
    bundle = to_bundle(document | other, [], [])
    assert isinstance(bundle, Bundle)
    assert from_bundle(bundle) == document | other


async def test_what_others_keep_in_a_document_moves_with_it(site: Site, raw: Raw) -> None:
    await raw["projects"].insert_one(OLD)
    async with site.archive() as archive:
        (bundle,) = await everything(archive)
        await raw["projects"].delete_many({})
        await archive.write([bundle])
    found = await raw["projects"].find_one({})
    assert found is not None
    assert {name: found[name] for name in OLD} == OLD
    assert found["created_at"] == OLD["_id"].generation_time


async def test_the_log_is_whole_wherever_its_events_stand(site: Site, raw: Raw) -> None:
    async with site.store() as store:
        await store.create(make_project(due_at=at(0)))
        claimed = await claim(store, 0)
        outcome = Outcome(status=IDLE.status, events=[NewEvent("e", "E")] * 300)
        await store.record(claimed, outcome, at(1), release=False)
        await store.record(claimed, outcome, at(2), release=False)
        # As a worker leaves it that dies between moving events and writing the next ones.
        document = await raw["projects"].find_one({})
        assert document is not None
        await store._parts.log.move(document)  # type: ignore[attr-defined] # it is a MongoStore
        expected = list(await store.events("ada", "demo", 0, 1000))
    async with site.archive() as archive:
        (bundle,) = await everything(archive)
    assert bundle.events == expected
    assert [event.seq for event in bundle.events] == list(range(101, 601))


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"status": "confused"}, "unknown_status", "'confused'"),
        ({"status": None}, "unreadable_record", "ValueError"),
        ({"desired": "more"}, "unknown_wish", "'more'"),
        ({"user_id": 5}, "unreadable_record", "5 is not text"),
        ({"created_at": "then"}, "unreadable_record", "created_at is 'then', not datetime"),
        ({"generation": "1"}, "unreadable_record", "generation is '1', not int"),
        ({"lease": {"worker": "w"}}, "unreadable_record", "TypeError"),
        ({"error": {"code": 5}, "error_message": "x"}, "unreadable_record", "error.code"),
        ({"namespace": 7}, "unreadable_record", "namespace"),
        ({"tail": [{"seq": 1}], "last_seq": 1}, "unreadable_event", "KeyError"),
        ({"_id": "65a000000000000000000001"}, "bad_record_id", "no ObjectId"),
        ({"_id": 7}, "bad_record_id", "7"),
    ],
)
async def test_what_cannot_be_read_is_told(
    site: Site, raw: Raw, fields: dict[str, Any], code: str, words: str
) -> None:
    await raw["projects"].insert_one(OLD | fields)
    async with site.archive() as archive:
        sheet = await archive.sheet(None, 500)
        found = [*sheet.unreadable]
        while sheet.after is not None:
            sheet = await archive.sheet(sheet.after, 500)
            found += sheet.unreadable
        (flaw,) = found
        assert (flaw.code, flaw.record) == (code, str((OLD | fields)["_id"]))
        assert words in flaw.sentence
        if code != "bad_record_id":
            with pytest.raises(StoreUnreadableError):
                await archive.find([flaw.record])


def test_a_date_that_python_cannot_hold_is_told() -> None:
    document = bson.encode(OLD | {"updated_at": DatetimeMS(2**60)})
    flaw = to_bundle(bson.decode(document, OPTIONS), [], [])
    assert isinstance(flaw, Flaw)
    assert "updated_at is DatetimeMS" in flaw.sentence


async def test_records_with_ids_of_their_own_are_read_too(site: Site, raw: Raw) -> None:
    for number, name in enumerate(["b", "a", "c"]):
        await raw["projects"].insert_one(
            OLD | {"_id": name, "project_id": name, "created_at": at(0)}
        )
        await raw["projects"].insert_one(OLD | {"_id": ObjectId(), "project_id": f"p{number}"})
    async with site.archive() as archive:
        for limit in (1, 2, 500):
            found = [bundle.project.project_id for bundle in await everything(archive, limit)]
            assert found == ["p0", "p1", "p2", "a", "b", "c"]


async def test_indexes_that_are_missing_or_wrong_are_named(site: Site, raw: Raw) -> None:
    await raw["projects"].drop_index("user_id_1_project_id_1")
    await raw["projects"].create_index([("user_id", 1), ("project_id", 1)], name="theirs")
    await raw["greylag_keys"].drop_index("record_id_1")
    for _id in ("65a000000000000000000002", "65a000000000000000000003"):
        await raw["projects"].insert_one(OLD | {"_id": ObjectId(_id)})
    async with site.archive() as archive:
        found = {flaw.code: flaw for flaw in await archive.flaws()}
    assert set(found) == {"wrong_index", "missing_index", "two_records"}
    assert "theirs" in found["wrong_index"].sentence
    assert found["missing_index"].record == "greylag_keys.record_id_1"
    assert found["two_records"].record == "65a000000000000000000002, 65a000000000000000000003"


async def test_events_of_nothing_are_found(site: Site, raw: Raw) -> None:
    gone = ObjectId()
    await raw["greylag_events"].insert_many(
        [{"record_id": gone, "seq": seq, "purge_at": datetime.now(UTC)} for seq in (1, 2)]
    )
    async with site.archive() as archive:
        (flaw,) = await archive.flaws()
    assert (flaw.code, flaw.record) == ("event_without_project", str(gone))
    assert flaw.sentence.startswith("2 events")
