"""Web and worker as programs of their own over MongoDB: any web goes on with what another began."""

import asyncio
from pathlib import Path

from tests.e2e.product import Product, product, real_goose, text_of, types_of
from tests.store import mongo_servers

pytestmark = real_goose


async def test_any_web_goes_on_with_what_another_began(tmp_path: Path) -> None:
    server = mongo_servers.uri()
    async with mongo_servers.database(server) as name:
        settings = {"MONGODB_URI": server, "MONGODB_DB": name, "GOOSE_MODE": "auto"}
        async with product(tmp_path, "serve", "worker", **settings) as one:
            other = Product(tmp_path, settings)
            await other.start("serve")
            try:
                await _through_both(one, other)
            finally:
                await other.http.close()
                assert await other.end("serve") == 0
            assert not (tmp_path / "data" / "greylag.db").exists()


async def _through_both(one: Product, other: Product) -> None:
    path = await one.project("demo", active=False)
    waiting = asyncio.create_task(other.call("POST", f"{path}/activate"), name="activation")
    assert (await waiting)[1]["status"] == "active"
    assert await one.status(path) == "active"
    first = await one.first(path, "message", "[[delay ms=20]] [[chunks n=40 size=5]]")
    turn = str(first.id).rpartition("-")[0]
    rest = await other.rest_of(path, turn, after=first.id)
    assert text_of([first, *rest]) == "".join(f"{number:04} " for number in range(40))
    log = await one.log(path, "active")
    again = await other.log(path, "active", after=log[2].id)
    assert [event.id for event in again] == [event.id for event in log[3:]]
    assert (await one.call("POST", f"{path}/deactivate"))[1]["status"] == "inactive"
    assert await other.status(path) == "inactive"
    woken = await other.say(path, "[[text good morning]]")
    assert types_of(woken)[0] == "status"
    assert text_of(woken) == "good morning"
    assert (await one.call("DELETE", path))[0] == 204
    assert await other.status(path) is None
    assert not one.processes()
