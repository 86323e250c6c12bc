"""The web on a serverless host, the worker elsewhere, MongoDB between them."""

import aiohttp
import pytest
from tests.e2e import serverless_host
from tests.e2e.product import PROJECTS, Product, product
from tests.store import mongo_servers

from greylag.cli.chat import TurnStream
from greylag.cli.client import ApiClient, OutgoingMessage, ProjectPlace
from greylag.cli.transport import StreamEvent

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-many-letters"
MESSAGE = "Tell me a long story, please. " * 6


@pytest.mark.parametrize("host", [serverless_host.AS_IT_DOES, serverless_host.ITSELF])
async def test_a_message_is_answered_whole_by_streams_that_are_cut(
    tmp_path_factory: pytest.TempPathFactory, host: str
) -> None:
    folder = tmp_path_factory.mktemp("w")
    home = folder / "entry"
    home.mkdir()
    server = mongo_servers.uri()
    async with mongo_servers.database(server) as name:
        settings = {
            "MONGODB_URI": server,
            "MONGODB_DB": name,
            "GREYLAG_TOKEN": TOKEN,
            "GREYLAG_GOOSE": "scripted",
            "GREYLAG_SANDBOX": "none",
        }
        async with product(folder, "worker", **settings) as one:
            # The local environments' addresses are in their folder; a cluster tells them itself.
            more = {"GREYLAG_DATA": str(one.data), "GREYLAG_STREAM_SECONDS": "0.25"}
            async with serverless_host.hosted(host, home, {**settings, **more}) as (entry, port):
                one.programs["entry"] = entry
                await _use(one, f"http://127.0.0.1:{port}")
                await _through_it(one)
                await one.close()
    assert list(home.iterdir()) == []


async def _use(one: Product, address: str) -> None:
    await one.http.close()
    one.address = address
    one.http = aiohttp.ClientSession(address, headers={"Authorization": f"Bearer {TOKEN}"})


async def _through_it(one: Product) -> None:
    path = await one.project("demo")
    assert (await one.call("POST", f"{path}/deactivate"))[1]["status"] == "inactive"
    cuts: list[str] = []
    async with ApiClient(one.address, TOKEN) as api:
        message = OutgoingMessage(MESSAGE, "m1", None)
        stream = TurnStream(api, ProjectPlace("me", "demo"), message, cuts.append)
        events = [event async for event in stream.events()]
    assert len(cuts) > 3
    assert events[0].type == "status"
    numbered = [event.id for event in events if event.id is not None]
    assert numbered == [f"{stream.turn_id}-{number}" for number in range(len(numbered))]
    assert events[-1].type == "complete"
    _, kept = await one.call("GET", f"{PROJECTS}/demo/sessions/{stream.session_id}/messages")
    assert _said(events) == kept["messages"][-1]["content"]
    assert len(kept["messages"]) == 2


def _said(events: list[StreamEvent]) -> str:
    return "".join(event.text("content") for event in events if event.type == "message")
