"""Streams that end after GREYLAG_STREAM_SECONDS, so that a host need not cut them."""

import json

import aiohttp
from tests.web.server import settings, site

from greylag.common import sse


async def until_its_end(answer: aiohttp.ClientResponse) -> list[str | None]:
    """Return the ids of all events; the answer must end by itself, after a whole frame."""
    whole = await answer.read()
    assert whole == b"" or whole.endswith(b"\n\n")
    frames = [sse.parse(raw) for raw in sse.FrameSplitter().feed(whole)]
    found = [frame for frame in frames if frame is not None]
    assert all(json.loads(frame.data)["type"] == "status" for frame in found)
    return [frame.id for frame in found]


async def test_a_stream_ends_cleanly_after_its_time_and_is_resumed_where_it_was() -> None:
    async with site(settings(stream_seconds=0.25)) as running:
        path = await running.project(active=True)
        async with running.http.get(f"{path}/events") as answer:
            ids = await until_its_end(answer)
        assert len(ids) > 2
        async with running.http.get(
            f"{path}/events", headers={"last-event-id": str(ids[1])}
        ) as answer:
            assert await until_its_end(answer) == ids[2:]
        async with running.http.get(
            f"{path}/events", headers={"last-event-id": str(ids[-1])}
        ) as answer:
            assert await until_its_end(answer) == []


async def test_its_place_is_free_again_and_its_upstream_closed() -> None:
    async with site(settings(stream_seconds=0.25, streams_per_project=1)) as running:
        path = await running.project(active=True)
        for _ in range(2):
            async with running.http.get(f"{path}/events") as answer:
                assert answer.status == 200
                await until_its_end(answer)


async def test_a_message_that_ends_in_time_is_not_cut() -> None:
    async with site(settings(stream_seconds=30)) as running:
        path = await running.project(active=True)
        async with running.http.post(f"{path}/messages", json={"message": "hello"}) as answer:
            whole = await answer.text()
        assert '"type":"complete"' in whole.replace(" ", "")
