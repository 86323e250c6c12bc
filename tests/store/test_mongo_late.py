"""A store that is opened before its server can be reached."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.contract.store_adapters import make_project
from tests.store import mongo_servers
from tests.store.wire_proxy import WireProxy, proxied

from greylag.domain.errors import StoreUnavailableError
from greylag.ports import PageQuery, StoreIncompleteError
from greylag.store.mongo import indexes
from greylag.store.mongo import store as opening
from greylag.store.mongo.connection import MongoLimits
from greylag.store.mongo.store import MongoStore

QUICK = MongoLimits(operation=0.5, connect=0.5, socket=3)
PATIENCE = 30


@pytest.fixture
async def database() -> AsyncIterator[str]:
    async with mongo_servers.database(mongo_servers.uri()) as name:
        yield name


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WireProxy]:
    """The way to the server, closed at first."""
    monkeypatch.setattr(opening, "_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(opening, "_PAUSE_AFTER_FAULT_SECONDS", 0.05)
    async with proxied(mongo_servers.uri()) as made:
        await made.refuse()
        yield made


async def says(store: MongoStore, words: str) -> None:
    """Return once a ping says that this is missing, "" when it must say that the store is ready."""
    said = "nothing"
    async with asyncio.timeout(PATIENCE):
        while said != words and (not words or words not in said):
            try:
                await store.ping()
                said = ""
            except StoreUnavailableError as error:
                said = error.info.message
            await asyncio.sleep(0.02)


async def test_it_answers_at_once_that_there_is_no_server_and_is_ready_when_there_is(
    proxy: WireProxy, database: str
) -> None:
    store = await MongoStore.open(proxy.uri, database, limits=QUICK, patient=True)
    try:
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            # One step, so without a single wait.
            store.page("ada", PageQuery()).send(None)
        with store.subscribe() as news:
            await proxy.accept()
            assert await news.changed(PATIENCE)
        assert (await store.create(make_project())).new
        await store.create(make_project("other"))
        async with mongo_servers.Client(proxy.uri) as raw:
            made = await raw[database]["projects"].index_information()
        assert any(index.get("unique") for index in made.values() if len(index["key"]) == 2)
    finally:
        await store.close()


async def test_what_an_operator_has_to_mend_is_said_then_and_looked_at_again(
    proxy: WireProxy, database: str
) -> None:
    twin: dict[str, Any] = {"user_id": "ada", "project_id": "demo"}
    async with mongo_servers.Client(mongo_servers.uri()) as raw:
        await raw[database]["projects"].insert_many([dict(twin), dict(twin)])
        store = await MongoStore.open(proxy.uri, database, limits=QUICK, patient=True)
        try:
            await says(store, "cannot be reached")
            await proxy.accept()
            await says(store, "'ada' has 2 projects 'demo'")
            await raw[database]["projects"].delete_one(twin)
            await says(store, "")
        finally:
            await store.close()


async def test_what_stands_in_the_way_of_a_server_that_is_there_ends_the_opening(
    proxy: WireProxy, database: str
) -> None:
    async with mongo_servers.Client(mongo_servers.uri()) as raw:
        await raw[database][indexes.INCOMPLETE].insert_one({"_id": "copy", "source": "elsewhere"})
    await proxy.accept()
    for prepare in (True, False):
        with pytest.raises(StoreIncompleteError, match="only a part"):
            await MongoStore.open(proxy.uri, database, limits=QUICK, patient=True, prepare=prepare)


async def test_it_can_be_closed_while_it_waits(proxy: WireProxy, database: str) -> None:
    store = await MongoStore.open(proxy.uri, database, limits=QUICK, patient=True)
    await store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        await store.ping()


async def test_a_call_that_is_cancelled_while_its_connection_is_made_leaves_no_open_socket(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, connecting = asyncio.get_running_loop(), asyncio.Event()

    async def connect(*_: object) -> None:
        connecting.set()
        await asyncio.Event().wait()

    store = await MongoStore.open(mongo_servers.uri(), database, limits=mongo_servers.PATIENT)
    try:
        monkeypatch.setattr(loop, "sock_connect", connect)
        # More than there are connections.
        asking = [asyncio.create_task(store.page("ada", PageQuery())) for _ in range(9)]
        await connecting.wait()
        for one in asking:
            one.cancel()
        await asyncio.wait(asking)
    finally:
        await store.close()
    del one, asking
    gc.collect()  # so that what is wrong is told of here
