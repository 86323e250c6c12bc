"""A stream that is cut anywhere goes on where it was: every event exactly once, in order."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from tests.browser.dropping import DroppingProxy
from tests.cli.program import finish, start
from tests.e2e.product import PATIENCE, Event, Product, RefusedError, product, real_goose, text_of

from greylag.cluster.local.processes import send

pytestmark = real_goose

CUTS = 100
CHUNKS = 400


async def test_a_stream_cut_a_hundred_times_has_every_event_once_in_order(tmp_path: Path) -> None:
    rng = random.Random(20261124)  # noqa: S311 - picks frames
    async with product(tmp_path) as up:
        path = await up.project("demo")
        message = f"[[delay ms=5]] [[chunks n={CHUNKS} size=5]]"
        body = {"message": message, "message_id": "cut"}
        found = [e async for e in _some(up.stream("POST", f"{path}/messages", body), 2)]
        turn = found[0].content["turn_id"]
        events = f"{path}/turns/{turn}/events"
        cuts = 1
        while found[-1].type != "complete":
            take = rng.randint(0, 7) if cuts < CUTS else CHUNKS
            stream = up.stream("GET", events, after=found[-1].id)
            found += [event async for event in _some(stream, take)]
            cuts += 1
        assert cuts >= CUTS
        assert [event.id for event in found] == [f"{turn}-{n}" for n in range(len(found))]
        assert text_of(found) == "".join(f"{number:04} " for number in range(CHUNKS))


async def test_a_connection_that_breaks_inside_a_frame_repeats_and_loses_nothing(
    tmp_path: Path,
) -> None:
    rng = random.Random(7)  # noqa: S311 - picks moments
    async with product(tmp_path) as up:
        path = await up.project("demo")
        proxy = DroppingProxy(up.port)
        async with proxy.running(), up.signed_in(proxy.address) as through:
            direct, up.http = up.http, through
            found: list[Event] = []
            body = {"message": "[[delay ms=3]] [[chunks n=600 size=5]]", "message_id": "cut"}
            while not found or found[-1].type != "complete":
                found += await _until_dropped(up, path, body, found, proxy, rng.randint(5, 60))
            up.http = direct
        turn = str(found[0].id).rpartition("-")[0]
        assert [event.id for event in found] == [f"{turn}-{n}" for n in range(len(found))]
        assert text_of(found) == "".join(f"{number:04} " for number in range(600))


async def test_a_turn_whose_environment_is_killed_is_told_to_its_end_without_anybody_s_help(
    tmp_path: Path,
) -> None:
    async with product(tmp_path) as up:
        path = await up.project("demo")
        began = await up.first(path, "message", "[[delay ms=20]] [[chunks n=2000 size=5]]")
        turn, last = str(began.id).rpartition("-")[0], began.id
        chat = await start("chat", "demo", "[[delay ms=20]] [[chunks n=2000 size=5]]", env=up.env)
        assert chat.stdout is not None
        await chat.stdout.readuntil(b"0010")
        send(up.processes(), signal.SIGKILL)
        refused: set[int] = set()
        found: list[Event] = []
        async with asyncio.timeout(PATIENCE):
            while not found or found[-1].type != "complete" or found[-1].id is None:
                try:
                    async for event in up.stream("GET", f"{path}/turns/{turn}/events", after=last):
                        found.append(event)
                        last = event.id or last
                except RefusedError as error:
                    refused.add(error.status)
                    await asyncio.sleep(0.05)
        assert refused <= {502, 503}
        told = [event.content["message"] for event in found if event.id is None]
        assert any("being started" in words for words in told)
        assert [event.type for event in found[-2:]] == ["error", "complete"]
        # The command line, in a session of its own, has waited for it too.
        talk = await finish(chat)
        assert talk.code == 1
        assert "The agent restarted while it answered." in talk.err


async def _until_dropped(  # noqa: PLR0917 - one loop's state
    up: Product,
    path: str,
    body: object,
    found: list[Event],
    proxy: DroppingProxy,
    events: int,
) -> list[Event]:
    """Read on through the proxy, which breaks everything after some events."""
    if found:
        turn = str(found[-1].id).rpartition("-")[0]
        stream = up.stream("GET", f"{path}/turns/{turn}/events", after=found[-1].id)
    else:
        stream = up.stream("POST", f"{path}/messages", body)
    seen: list[Event] = []
    try:
        async for event in stream:
            seen += [event] if event.id is not None else []
            if len(seen) == events:
                proxy.drop()
    except aiohttp.ClientError:
        pass
    return seen


async def _some(stream: AsyncIterator[Event], most: int) -> AsyncIterator[Event]:
    """Yield at most so many of the stream's own events, then close its connection."""
    left = most
    async for event in stream:
        if left == 0:
            break
        if event.id is not None:
            left -= 1
            yield event
    await stream.aclose()  # type: ignore[attr-defined] # it is a generator
