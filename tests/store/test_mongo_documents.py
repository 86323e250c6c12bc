"""The documents as other programs see them: the documented fields, older ones, unknown ones."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64, ObjectId
from bson.datetime_ms import DatetimeMS
from hypothesis import given
from hypothesis import strategies as st
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from structlog.testing import capture_logs
from tests.contract.store_adapters import IDLE, all_claims, at, claim, log, make_project
from tests.store import mongo_servers
from tests.wishes import edit, want

from greylag.domain.errors import ConfigError, ErrorInfo, StoreUnavailableError
from greylag.domain.names import environment_names
from greylag.domain.project import Desired, NewEvent, Project, Status
from greylag.ports import IdempotencyKey, Outcome, PageQuery, RecordUnreadableError
from greylag.services.projects import Edit
from greylag.store.mongo import connection, documents, indexes
from greylag.store.mongo.connection import MongoLimits
from greylag.store.mongo.store import MongoStore

OLD: dict[str, Any] = {
    "_id": ObjectId("65a000000000000000000001"),
    "user_id": "ada",
    "project_id": "demo",
    "name": "Demo",
    "metadata": {"team": "x", "seen": datetime(2020, 1, 1, tzinfo=UTC)},
    "namespace": "old-namespace",
    "deployment": "old-deployment",
    "service": "old-service",
    "ingress": "old-ingress",
    "status": "active",
    "endpoint": "http://old",
    "error_message": None,
    "last_activated_at": at(1),
    "last_deactivated_at": None,
    "created_at": at(0),
    "updated_at": at(2),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text() | st.sampled_from(["$a", "a.b", "_json", ""]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@dataclass(frozen=True, slots=True)
class Place:
    """A database of a test, as the driver sees it."""

    uri: str
    name: str
    raw: AsyncDatabase[dict[str, Any]]

    async def open(self) -> MongoStore:
        return await MongoStore.open(self.uri, self.name, limits=mongo_servers.PATIENT)

    async def put(self, **fields: Any) -> None:
        await self.raw["projects"].insert_one(OLD | fields)

    async def form(self) -> int | None:
        found = await self.raw[indexes.INSTANCE].find_one(indexes.FORM_MARK)
        return None if found is None else found["lowest"]

    async def document(self) -> dict[str, Any]:
        found = await self.raw["projects"].find_one({"project_id": "demo"})
        assert found is not None
        return found


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    uri = mongo_servers.uri()
    async with (
        mongo_servers.database(uri) as name,
        AsyncMongoClient[dict[str, Any]](uri, tz_aware=True) as client,
    ):
        yield Place(uri, name, client[name])


@pytest.fixture
async def store(place: Place) -> AsyncIterator[MongoStore]:
    opened = await place.open()
    yield opened
    await opened.close()


@given(st.dictionaries(st.text(), JSON, max_size=3))
def test_any_json_object_comes_back_from_a_document(value: dict[str, Any]) -> None:
    assert documents.unpack(documents.pack(value)) == value


async def test_a_document_has_the_documented_fields(place: Place, store: MongoStore) -> None:
    error = ErrorInfo("code", "What \udcff happened.", "Do this.")
    project = make_project(metadata={"a": [1]}, status=Status.ERROR, error=error)
    await store.create(project)
    found = await place.document()
    assert found["_id"] == ObjectId(project.id)
    expected = {
        **{name: getattr(project, name) for name in ("user_id", "project_id", "name")},
        "metadata": {"a": [1]},
        "status": "error",
        "endpoint": None,
        "error_message": "What \\udcff happened.",
        "last_activated_at": None,
        "created_at": at(0),
        **asdict(project.names),
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("status", "desired", "observed"),
    [
        ("active", Desired.ACTIVE, 1),
        ("activating", Desired.ACTIVE, 0),
        ("inactive", Desired.INACTIVE, 1),
        ("deactivating", Desired.INACTIVE, 0),
        ("error", Desired.INACTIVE, 1),
    ],
)
async def test_an_older_document_is_adopted_as_it_is(
    place: Place, status: str, desired: Desired, observed: int
) -> None:
    await place.put(status=status, theirs={"x": 1})
    store = await place.open()
    project = await store.get("ada", "demo")
    assert (project.desired, project.generation, project.observed_generation) == (
        *(desired, 1),
        observed,
    )
    assert project.names.namespace == "old-namespace"
    assert project.endpoint == "http://old"
    found = await place.document()
    assert {name: found[name] for name in OLD} == OLD | {"status": status}
    assert found["theirs"] == {"x": 1}
    assert await store.poke_unsettled(at(5)) == (status != "inactive")
    assert await all_claims(store, 5) == ([] if status == "inactive" else ["demo"])
    await store.close()


async def test_what_an_older_document_leaves_out_is_derived(place: Place) -> None:
    names = ("user_id", "project_id", "status", "_id")
    await place.raw["projects"].insert_one({name: OLD[name] for name in names})
    store = await place.open()
    (project,) = (await store.page("ada", PageQuery())).projects
    assert project == Project(
        id=str(OLD["_id"]),
        user_id="ada",
        project_id="demo",
        name="demo",
        names=environment_names("ada", "demo"),
        created_at=OLD["_id"].generation_time,
        updated_at=OLD["_id"].generation_time,
        status=Status.ACTIVE,
        desired=Desired.ACTIVE,
        observed_generation=1,
    )
    await store.close()


async def test_fields_that_are_not_ours_survive_every_write(place: Place) -> None:
    await place.put(theirs=[{"$odd": 1}], due_at=at(0))
    store = await place.open()
    await edit(store, "ada", "demo", Edit(name="New"), at(1))
    await want(store, "ada", "demo", Desired.INACTIVE, at(1), at(9))
    claimed = await store.renew(await claim(store, 2), at(3), 30)
    outcome = Outcome(status=Status.INACTIVE, events=[NewEvent("e", "E")])
    await store.record(claimed, outcome, at(4), release=True)
    found = await place.document()
    assert found["theirs"] == [{"$odd": 1}]
    assert found["metadata"] == OLD["metadata"]
    assert (found["name"], found["status"], found["endpoint"]) == ("New", "inactive", None)
    await store.close()


async def test_a_document_that_is_no_project_is_told_of_and_harms_no_other(place: Place) -> None:
    await place.put(status="confused", created_at=at(9))
    await place.put(_id=ObjectId(), project_id="other")
    with capture_logs() as lines:
        store = await place.open()
        page = await store.page("ada", PageQuery(limit=1))
    assert [line["event"] for line in lines] == ["record_passed_over"] * 2
    assert [project.project_id for project in page.projects] == ["other"]
    with pytest.raises(StoreUnavailableError, match="confused"):
        await store.get("ada", "demo")
    await store.close()


def test_a_date_that_python_cannot_hold_is_a_fault_of_its_own_document() -> None:
    # As the store's own connection reads it; the server of the tests cannot hold such a date.
    raw = bson.decode(bson.encode(OLD | {"updated_at": DatetimeMS(2**60)}), connection.OPTIONS)
    with pytest.raises(RecordUnreadableError, match="updated_at is DatetimeMS"):
        documents.from_document(raw)


@pytest.mark.parametrize("strange", [7, str(OLD["_id"])])
async def test_a_document_that_no_write_would_find_is_never_claimed(
    place: Place, store: MongoStore, strange: int | str
) -> None:
    await place.put(_id=strange, claimable_at=at(0), revision=1)
    await store.create(make_project("other", due_at=at(1)))
    assert await all_claims(store, 2) == ["other"]
    assert [one.project_id for one in (await store.page("ada", PageQuery())).projects] == ["other"]
    with pytest.raises(RecordUnreadableError, match="which is no ObjectId"):
        await store.get("ada", "demo")


@pytest.mark.parametrize("revision", ["x", Decimal128("1"), {"a": 1}])
async def test_a_revision_that_is_no_number_cannot_be_read(
    place: Place, store: MongoStore, revision: object
) -> None:
    await place.put(revision=revision)
    for asked in (
        store.get("ada", "demo"),
        edit(store, "ada", "demo", Edit(name="New"), at(1)),
        want(store, "ada", "demo", Desired.ACTIVE, at(1), at(2)),
    ):
        with pytest.raises(RecordUnreadableError, match="revision is"):
            await asked
    assert not (await store.page("ada", PageQuery())).projects


@pytest.mark.parametrize("revision", [None, 2.0, Int64(3)])
async def test_a_revision_that_a_shell_has_written_is_counted_up(
    place: Place, store: MongoStore, revision: object
) -> None:
    await place.put(revision=revision)
    assert (await edit(store, "ada", "demo", Edit(name="New"), at(1))).name == "New"
    document = await place.raw["projects"].find_one({"project_id": "demo"})
    assert document is not None
    assert document["revision"] == (revision or 0) + 1  # type: ignore[operator]


async def test_users_whose_ids_are_none_take_part_in_no_count(
    place: Place, store: MongoStore
) -> None:
    await place.put(user_id={"a": 1}, claimable_at=at(0), revision="x", unsettled=True)
    await store.create(make_project("other", due_at=at(1)))
    assert await store.poke_unsettled(at(1)) == 2
    assert await all_claims(store, 2) == ["other"]


async def test_whole_numbers_that_a_shell_has_written_as_floats_are_read(
    place: Place, store: MongoStore
) -> None:
    await place.put(generation=3.0, attempts=1.0, claims=2.0, revision=1, last_seq=0.0)
    project = await store.get("ada", "demo")
    assert (project.generation, type(project.generation), project.attempts) == (3, int, 1)
    await place.raw["projects"].update_one({"project_id": "demo"}, {"$set": {"attempts": 1.5}})
    with pytest.raises(StoreUnavailableError, match="attempts is"):
        await store.get("ada", "demo")


async def test_a_log_that_cannot_be_read_ends_with_its_project(
    place: Place, store: MongoStore
) -> None:
    await store.create(make_project(due_at=at(0)))
    claimed = await claim(store, 0)
    for tail in (5, [5], [{"seq": 1}]):
        await place.raw["projects"].update_one({"project_id": "demo"}, {"$set": {"tail": tail}})
        with pytest.raises(RecordUnreadableError, match="The activation log of the record"):
            await store.events("ada", "demo", 0, 10)
        outcome = Outcome(status=IDLE.status, events=[NewEvent("e", "E")])
        with pytest.raises(RecordUnreadableError, match="The activation log of the record"):
            await store.record(claimed, outcome, at(1), release=True)


async def test_duplicates_are_named_when_the_unique_index_cannot_be_had(place: Place) -> None:
    await place.put()
    await place.put(_id=ObjectId("65a000000000000000000002"))
    with pytest.raises(ConfigError) as caught:
        await place.open()
    sentence = caught.value.info.message
    for part in ("'ada'", "'demo'", "65a000000000000000000001", "65a000000000000000000002"):
        assert part in sentence


async def test_an_index_that_stands_in_the_way_is_named(place: Place) -> None:
    await place.raw["projects"].create_index([("user_id", 1), ("project_id", 1)])
    with pytest.raises(ConfigError, match="user_id_1_project_id_1"):
        await place.open()


async def test_an_index_that_serves_under_another_name_will_do(place: Place) -> None:
    keys = [("user_id", 1), ("project_id", 1)]
    await place.raw["projects"].create_index(keys, unique=True, name="theirs")
    await (await place.open()).close()
    await (await place.open()).close()
    assert "theirs" in await place.raw["projects"].index_information()


async def test_a_store_may_be_opened_without_preparing_it(place: Place) -> None:
    store = await MongoStore.open(place.uri, place.name, prepare=False)
    await store.create(make_project())
    assert list(await place.raw["projects"].index_information()) == ["_id_"]
    await store.close()


async def test_a_database_without_a_mark_gets_it_from_whoever_prepares_it(place: Place) -> None:
    await (await place.open()).close()
    await place.raw[indexes.INSTANCE].delete_many({})
    await (await MongoStore.open(place.uri, place.name, prepare=False)).close()
    assert await place.form() is None
    stores = await asyncio.gather(*(place.open() for _ in range(4)))
    assert await place.form() == indexes.FORM
    for store in stores:
        await store.close()


@pytest.mark.parametrize("prepare", [True, False])
async def test_a_newer_form_is_marked_once_and_for_all(
    place: Place, monkeypatch: pytest.MonkeyPatch, *, prepare: bool
) -> None:
    older = await place.open()
    with monkeypatch.context() as newer:
        newer.setattr(indexes, "FORM", indexes.FORM + 1)
        await (await MongoStore.open(place.uri, place.name, prepare=prepare)).close()
        assert await place.form() == indexes.FORM
    # What runs goes on; what starts does not.
    await older.create(make_project())
    await older.close()
    for again in (True, False):
        with pytest.raises(ConfigError, match="newer Greylag than this one"):
            await MongoStore.open(place.uri, place.name, prepare=again, patient=True)
    assert await place.form() == indexes.FORM + 1


async def test_a_creation_that_was_cut_off_is_finished_by_whoever_asks_again(
    place: Place, store: MongoStore
) -> None:
    key = IdempotencyKey("k", "f")
    first = await store.create(make_project("one"), key)
    # As if the process had died between the key and the project.
    await place.raw["projects"].delete_many({})
    again = await store.create(make_project("two", due_at=at(0)), key)
    assert again.new
    assert again.project.id == first.project.id
    assert not (await store.create(make_project("three"), key)).new
    # Whatever was claimed under that id before holds nothing now.
    assert (await claim(store, 0)).number > 1_000_000


async def test_events_that_were_not_moved_before_a_kill_are_there_once(
    place: Place, store: MongoStore
) -> None:
    await store.create(make_project(due_at=at(0)))
    claimed = await claim(store, 0)
    outcome = Outcome(status=IDLE.status, events=[NewEvent("e", "E")] * 3)
    await store.record(claimed, outcome, at(1), release=False)
    document = await place.document()
    await store.record(claimed, outcome, at(1), release=False)
    # As if a worker that was killed, or paused since, had moved the first three as well.
    await store._log.move(document)
    assert [event.seq for event in await log(store)] == [1, 2, 3, 4, 5, 6]
    assert await place.raw["greylag_events"].count_documents({}) == 3


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://user:s3cret@",
        "mongodb://user:s3cret@@host/",
        "mongodb://user:s3cret@host:port/",
        "postgres://user:s3cret@host/",
        "s3cret",
        "mongodb://user:s3cret@127.0.0.1/?authMechanism=s3cret",
    ],
)
async def test_a_uri_that_is_none_is_refused_without_showing_it(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await MongoStore.open(uri, "goose")
    assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"
    assert caught.value.__context__ is None or caught.value.__suppress_context__


async def test_a_name_that_no_database_can_have_is_refused(place: Place) -> None:
    with pytest.raises(ConfigError, match="MONGODB_DB"):
        await MongoStore.open(place.uri, "a/b")


async def test_a_password_is_in_no_error_of_a_server_that_is_not_there() -> None:
    with pytest.raises(StoreUnavailableError) as caught:
        await MongoStore.open(
            "mongodb://user:s3cret@127.0.0.1:1/", limits=MongoLimits(operation=0.1)
        )
    assert "s3cret" not in f"{caught.value} {caught.value.__cause__!r}"
