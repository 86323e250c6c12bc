"""MongoDB's faults, made on the wire: what is retried, what is answered, how it recovers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    DuplicateKeyError,
    ServerSelectionTimeoutError,
    WriteConcernError,
)
from tests.contract.store_adapters import IDLE, REF, at, claim, log, make_project
from tests.store import mongo_servers
from tests.store.wire_proxy import Fault, WireProxy, proxied
from tests.wishes import want

from greylag.domain.audit import SYSTEM, AuditEvent, Link
from greylag.domain.errors import InvalidRequestError, StoreUnavailableError
from greylag.domain.project import Desired, NewEvent, Project
from greylag.ports import AuditFilter, Created, IdempotencyKey, Outcome
from greylag.store.mongo import audit_trail, indexes
from greylag.store.mongo.audit_trail import AuditTrail
from greylag.store.mongo.connection import MongoLimits, WriteAttempts, asking
from greylag.store.mongo.store import MongoStore

HANGS = 60
"""Seconds after which a wait that is bounded by one or two is taken for one without end."""

QUICK = MongoLimits(operation=1, connect=0.5, socket=3)
PATIENT = MongoLimits(operation=20)
RETRIED = [Fault.NOT_PRIMARY, Fault.STEP_DOWN, Fault.CUT_BEFORE, Fault.CUT_REPLY]
STARTED = Outcome(status=IDLE.status, events=[NewEvent("e", "E")])


@pytest.fixture
async def database() -> AsyncIterator[str]:
    async with mongo_servers.database(mongo_servers.uri()) as name:
        yield name


@pytest.fixture
async def proxy() -> AsyncIterator[WireProxy]:
    async with proxied(mongo_servers.uri()) as made:
        yield made


@pytest.fixture
async def patient(proxy: WireProxy, database: str) -> AsyncIterator[MongoStore]:
    """A store behind the proxy that waits longer than any fault lasts."""
    store = await MongoStore.open(proxy.uri, database, limits=PATIENT)
    yield store
    proxy.calm()
    await store.close()


@pytest.fixture
async def quick(proxy: WireProxy, database: str) -> AsyncIterator[MongoStore]:
    """A store behind the proxy that gives up soon."""
    store = await MongoStore.open(proxy.uri, database, limits=QUICK)
    yield store
    proxy.calm()
    proxy.hurry.set()
    await store.close()


@pytest.mark.parametrize("fault", RETRIED)
async def test_each_step_of_a_projects_life_survives_the_fault_and_is_done_once(
    patient: MongoStore, proxy: WireProxy, fault: Fault
) -> None:
    for command in ("insert", "update", "findAndModify", "delete", "find", "aggregate"):
        proxy.inject(command, fault)
    key = IdempotencyKey("k", "f")
    created = await patient.create(make_project(due_at=at(0)), key)
    assert created.new
    wanted = await want(patient, "ada", "demo", Desired.ACTIVE, at(1), at(99))
    assert wanted.generation == 2
    claimed = await claim(patient, 2)
    assert claimed.number == 1
    proxy.inject("update", fault)
    await patient.record(claimed, STARTED, at(3), release=False)
    proxy.inject("update", fault)
    await patient.record(claimed, STARTED, at(3), release=False)
    assert [event.seq for event in await log(patient)] == [1, 2]
    await patient.forget(claimed)
    assert proxy.made[fault] == 8


async def test_a_write_that_no_majority_has_is_not_acknowledged(
    quick: MongoStore, proxy: WireProxy
) -> None:
    await quick.create(make_project())
    proxy.inject("update", Fault.WRITE_CONCERN)
    with pytest.raises(StoreUnavailableError, match="majority"):
        await want(quick, "ada", "demo", Desired.ACTIVE, at(1), at(9))
    # It may have happened, and is the same when it is asked again.
    assert (await want(quick, "ada", "demo", Desired.ACTIVE, at(2), at(9))).generation == 2


async def test_a_server_that_refuses_connections_is_said_soon_and_found_again(
    quick: MongoStore, proxy: WireProxy
) -> None:
    await quick.create(make_project())
    await proxy.refuse()
    async with asyncio.timeout(HANGS):
        with pytest.raises(StoreUnavailableError):
            await quick.get("ada", "demo")
        with pytest.raises(StoreUnavailableError):
            await quick.ping()
    await proxy.accept()
    assert (await until_it_answers(quick)).project_id == "demo"


async def test_a_server_that_does_not_answer_holds_nobody_for_long(
    quick: MongoStore, proxy: WireProxy
) -> None:
    await quick.create(make_project())
    proxy.inject("find", Fault.SLOW, times=50)
    # It would not answer before it is hurried, which is after this.
    async with asyncio.timeout(HANGS):
        with pytest.raises(StoreUnavailableError, match="in time"):
            await quick.get("ada", "demo")
    proxy.calm()
    proxy.hurry.set()
    assert (await until_it_answers(quick)).project_id == "demo"


async def test_a_primary_that_never_comes_is_said_soon(quick: MongoStore, proxy: WireProxy) -> None:
    proxy.inject("insert", Fault.NOT_PRIMARY, times=10_000)
    with pytest.raises(StoreUnavailableError):
        await quick.create(make_project())


async def test_who_may_only_read_opens_what_others_have_made_before_there_were_marks(
    proxy: WireProxy, database: str
) -> None:
    await (await MongoStore.open(proxy.uri, database, limits=PATIENT)).close()
    async with mongo_servers.Client(mongo_servers.uri()) as raw:
        await raw[database][indexes.INSTANCE].delete_many({})
    proxy.inject("update", Fault.UNAUTHORIZED)
    await (await MongoStore.open(proxy.uri, database, limits=PATIENT)).close()
    assert proxy.made[Fault.UNAUTHORIZED] == 1


async def test_a_stream_of_changes_that_was_cut_goes_on_where_it_was(
    patient: MongoStore, proxy: WireProxy, database: str
) -> None:
    other = await MongoStore.open(mongo_servers.uri(), database, limits=PATIENT)
    await other.create(make_project())
    with patient.subscribe(REF) as heard:
        await heard.changed(0.2)
        proxy.inject("getMore", Fault.CUT_REPLY)
        proxy.inject("getMore", Fault.CUT_BEFORE)
        for second in range(6):
            await other.poke(REF, at(second))
            assert await heard.changed(10)
    await other.close()


async def test_while_changes_cannot_be_followed_listeners_look_for_themselves(
    quick: MongoStore, proxy: WireProxy, database: str
) -> None:
    other = await MongoStore.open(mongo_servers.uri(), database, limits=PATIENT)
    with quick.subscribe(REF) as heard:
        await proxy.refuse()
        assert await heard.changed(10)
        # Made while the stream is down, heard when it is up again.
        await other.create(make_project())
        await proxy.accept()
        assert await heard.changed(30)
        assert (await until_it_answers(quick)).project_id == "demo"
    await other.close()


async def test_an_activation_costs_so_many_commands(patient: MongoStore, proxy: WireProxy) -> None:
    await patient.create(make_project())
    proxy.seen.clear()
    await want(patient, "ada", "demo", Desired.ACTIVE, at(1), at(99))
    claimed = await claim(patient, 2)
    for release in (False, False, True):
        await patient.record(claimed, STARTED, at(3), release=release)
    seen = {command: proxy.seen[command] for command in ("update", "findAndModify", "insert")}
    assert seen == {"update": 6, "findAndModify": 1, "insert": 0}
    assert proxy.seen["find"] + proxy.seen["aggregate"] == 6


async def until_it_answers(store: MongoStore) -> Project:
    async with asyncio.timeout(30):
        while True:
            try:
                return await store.get("ada", "demo")
            except StoreUnavailableError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("step", ["append", "change"])
async def test_who_waits_for_a_turn_has_all_their_time_after(
    patient: MongoStore, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail, begun = patient._audit, asyncio.Event()

    def begin(seconds: float) -> WriteAttempts:
        begun.set()
        return WriteAttempts(seconds)

    async def write(_session: object) -> bool:
        return False

    monkeypatch.setattr(audit_trail, "WriteAttempts", begin)
    told = AuditEvent(at=at(0), actor=SYSTEM, action="test", object="user/ada")
    first, end = await held_up(trail, told)
    begun.clear()
    work = trail.recorded(told, write) if step == "change" else trail.append(told)
    waiting = asyncio.create_task(work, name="waiting")
    await asyncio.sleep(0)
    assert not begun.is_set()
    end.set()
    await asyncio.gather(first, waiting)
    assert begun.is_set()


async def held_up(trail: AuditTrail, told: AuditEvent) -> tuple[asyncio.Task[bool], asyncio.Event]:
    """Have a step of the trail begun, which lasts until the event is set."""
    begun, end = asyncio.Event(), asyncio.Event()

    async def write(_session: object) -> bool:
        begun.set()
        await end.wait()
        return True

    held = asyncio.create_task(trail.recorded(told, write), name="held")
    async with asyncio.timeout(HANGS):
        await begun.wait()
    return held, end


async def test_entries_that_are_wanted_at_once_wait_for_few_answers(
    patient: MongoStore, proxy: WireProxy
) -> None:
    told = AuditEvent(at=at(0), actor=SYSTEM, action="test", object="user/ada")
    await patient.append_audit(told)
    before = proxy.seen.copy()
    entries = await asyncio.gather(*(patient.append_audit(told) for _ in range(16)))
    asked = proxy.seen - before
    assert sorted(entry.number for entry in entries) == list(range(2, 18))
    assert asked["insert"] <= 3
    assert asked["find"] <= 2


async def test_what_no_document_can_hold_is_refused_to_nobody_else(patient: MongoStore) -> None:
    told = AuditEvent(at=at(0), actor=SYSTEM, action="test", object="user/ada")
    first, end = await held_up(patient._audit, told)
    names = ("a", "\ud800", "b")
    behind = [patient.create(make_project(name, name=name), audit=told) for name in names]
    waiting = asyncio.ensure_future(asyncio.gather(*behind, return_exceptions=True))
    await asyncio.sleep(0)
    end.set()
    await first
    made = await waiting
    assert isinstance(made.pop(1), InvalidRequestError)
    assert [one.project.name for one in made if isinstance(one, Created)] == ["a", "b"]


async def test_a_change_that_is_refused_cuts_no_question_of_the_driver_s_off(
    patient: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = AuditEvent(at=at(0), actor=SYSTEM, action="test", object="user/ada")
    trail, asked = patient._audit, list[str]()
    end = trail._end

    async def late() -> Link:
        asked.append("begun")
        for _ in range(100):
            await asyncio.sleep(0)
        found = await end()
        asked.append("answered")
        return found

    async def refused(_session: object) -> bool:
        raise DuplicateKeyError("there")

    monkeypatch.setattr(trail, "_end", late)
    with pytest.raises(DuplicateKeyError):
        await trail.recorded(told, refused)
    assert asked == ["begun", "answered"]


async def test_what_may_be_done_is_not_done_again(
    patient: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = AuditEvent(at=at(0), actor=SYSTEM, action="test", object="user/ada")
    trail = patient._audit
    first, end = await held_up(trail, told)
    write_line = trail._try

    async def unknown(group: Any) -> Any:
        await write_line(group)
        error = WriteConcernError("stepped down", 11602)
        error._add_error_label("UnknownTransactionCommitResult")
        raise error

    behind = [patient.append_audit(told) for _ in range(2)]
    waiting = asyncio.ensure_future(asyncio.gather(*behind, return_exceptions=True))
    await asyncio.sleep(0)
    monkeypatch.setattr(trail, "_try", unknown)
    end.set()
    refused = await waiting
    unsure = [one for one in refused if isinstance(one, StoreUnavailableError)]
    assert ["may have been" in one.info.hint for one in unsure] == [True, True]
    await first
    assert len(await patient.audit_entries(AuditFilter(), 10)) == 3


async def test_an_entry_that_could_not_be_made_durable_is_told_as_that(
    patient: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = AuditEvent(at=at(0), actor=SYSTEM, action="test", object="user/ada")

    async def insert_many(*_: object, **__: object) -> None:
        concern = {"code": 64, "errmsg": "waiting for replication timed out"}
        raise BulkWriteError({"writeErrors": [], "writeConcernErrors": [concern]})

    monkeypatch.setattr(patient._audit._entries, "insert_many", insert_many)
    with pytest.raises(StoreUnavailableError) as refused:
        await patient.append_audit(told)
    assert "may have been" in refused.value.info.hint


async def test_a_chain_whose_end_was_not_kept_goes_on_from_what_was_trimmed(
    patient: MongoStore,
) -> None:
    told = AuditEvent(at=at(0), actor=SYSTEM, action="test", object="user/ada")
    for _ in range(3):
        await patient.append_audit(told)
    trail = patient._audit
    await trail.finish()
    await trail._bounds.delete_one({"_id": "end"})
    trail._last = None
    assert await patient.trim_audit(at(1)) == 3
    assert (await patient.append_audit(told)).number == 4


async def test_nobody_waits_for_more_than_one_time_limit_where_the_server_is_away(
    patient: MongoStore,
) -> None:
    told = AuditEvent(at=at(0), actor=SYSTEM, action="test", object="user/ada")
    begun, end = asyncio.Event(), asyncio.Event()

    async def write(_session: object) -> bool:
        begun.set()
        await end.wait()
        raise AutoReconnect("gone")

    first = asyncio.create_task(patient._audit.recorded(told, write), name="first")
    await begun.wait()
    behind = [asyncio.ensure_future(patient.append_audit(told)) for _ in range(20)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(patient._audit._line) == len(behind)
    end.set()
    assert {type(one) for one in await asyncio.gather(*behind, return_exceptions=True)} == {
        StoreUnavailableError
    }
    with pytest.raises(AutoReconnect):
        await first
    assert (await patient.append_audit(told)).number == 1


async def test_of_changes_that_are_written_together_each_has_its_own_answer(
    patient: MongoStore, proxy: WireProxy
) -> None:
    told = AuditEvent(at=at(0), actor=SYSTEM, action="test", object="user/ada")
    await patient.revoke("used", at(9), at(0), audit=told)
    before = proxy.seen["commitTransaction"]
    first, end = await held_up(patient._audit, told)
    # What the server refuses of one of them ends the step of all.
    behind = [patient.revoke(name, at(9), at(0), audit=told) for name in ("a", "used", "b", "c")]
    waiting = asyncio.ensure_future(asyncio.gather(*behind))
    await asyncio.sleep(0)
    end.set()
    assert await waiting == [True, False, True, True]
    assert proxy.seen["commitTransaction"] - before == 3
    assert await first
    found = await patient.audit_entries(AuditFilter(), 10)
    assert [number for number, _ in found] == [1, 2, 3, 4, 5]


async def test_a_change_whose_answer_is_lost_is_not_said_to_have_changed_nothing(
    quick: MongoStore, proxy: WireProxy
) -> None:
    proxy.inject("insert", Fault.SLOW, 99)
    with pytest.raises(StoreUnavailableError, match="in time") as lost:
        await quick.create(make_project())
    proxy.hurry.set()
    proxy.calm()
    assert (await quick.get("ada", "demo")).name == make_project().name
    assert "Nothing was changed" not in lost.value.info.hint
    told = AuditEvent(at=at(0), actor=SYSTEM, action="test", object="user/ada")
    proxy.inject("insert", Fault.CUT_BEFORE, 9999)
    with pytest.raises(StoreUnavailableError) as busy:
        await quick.revoke("used", at(9), at(0), audit=told)
    assert "Others" not in busy.value.info.message
    with pytest.raises(StoreUnavailableError, match="cannot be reached") as away, asking(1):
        raise ServerSelectionTimeoutError
    assert "Nothing was changed" in away.value.info.hint
