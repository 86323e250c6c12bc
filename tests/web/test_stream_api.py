"""Streams over HTTP: messages, turns, the activation log, and readers that leave or are slow."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import psutil
import pytest
from starlette.types import Message, Receive, Scope, Send
from tests.services.house import House
from tests.web.server import Site, served, settings, site
from tests.web.test_people_api import signed_in

from greylag.common import sse
from greylag.domain.errors import AgentUnreachableError, LimitExceededError, StreamCutError
from greylag.domain.project import ProjectRef
from greylag.domain.users import OPERATOR, MemberRole
from greylag.web.auth import Authenticator
from greylag.web.request_log import RequestLogger
from greylag.web.stream import AccessWatch, EventRelay, Streams

REF = ProjectRef("ada", "notes")


async def events(answer: Any) -> AsyncIterator[tuple[str | None, dict[str, Any]]]:
    splitter = sse.FrameSplitter()
    async for data in answer.content.iter_any():
        for raw in splitter.feed(data):
            if frame := sse.parse(raw):
                yield frame.id, json.loads(frame.data)


async def said(running: Site, path: str, message: str, **more: str) -> list[dict[str, Any]]:
    async with running.http.post(f"{path}/messages", json={"message": message, **more}) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "text/event-stream"
        assert answer.headers["cache-control"] == "no-cache"
        return [event async for _, event in events(answer)]


async def test_a_message_to_a_sleeping_project_wakes_it_in_the_same_stream(running: Site) -> None:
    path = await running.project()
    found = await said(running, path, "hello")
    kinds = [event["type"] for event in found]
    assert kinds[0] == "status"
    assert kinds.index("turn") > kinds.index("status")
    assert kinds[-2:] == ["message", "complete"]
    assert "waking" in found[0]["content"]["message"]


async def test_a_turn_is_read_again_from_any_event(running: Site) -> None:
    path = await running.project(active=True)
    async with running.http.post(f"{path}/messages", json={"message": "hello"}) as answer:
        all_events = [one async for one in events(answer)]
    ids = [str(event_id) for event_id, _ in all_events]
    turn = ids[0].rpartition("-")[0]
    headers = {"last-event-id": ids[-1]}
    async with running.http.get(f"{path}/turns/{turn}/events", headers=headers) as answer:
        assert answer.status == 204
        assert await answer.read() == b""
    for after in range(len(ids) - 1):
        headers = {"last-event-id": ids[after]}
        async with running.http.get(f"{path}/turns/{turn}/events", headers=headers) as answer:
            assert [one async for one in events(answer)] == all_events[after + 1 :]
    async with running.http.get(f"{path}/turns/{turn}/events?after=no") as answer:
        assert answer.status == 422


async def test_the_activation_log_follows_and_resumes(running: Site) -> None:
    path = await running.project(active=True)
    async with running.http.get(f"{path}/events") as answer:
        seen: list[tuple[str | None, dict[str, Any]]] = []
        async for one in events(answer):
            seen.append(one)
            if one[1]["content"]["code"] == "active":
                break
    assert [int(str(event_id)) for event_id, _ in seen] == list(range(1, len(seen) + 1))
    headers = {"last-event-id": str(seen[1][0])}
    async with running.http.get(f"{path}/events", headers=headers) as answer:
        again = [await anext(events(answer))]
    assert again[0][0] == seen[2][0]


async def test_a_confirmation_and_a_cancel_reach_the_agent(running: Site) -> None:
    path = await running.project(active=True)
    async with running.http.post(f"{path}/messages", json={"message": "run: ls"}) as answer:
        stream = events(answer)
        asked = {}
        async for event_id, event in stream:
            if event["type"] == "tool_confirmation":
                asked = event["content"]
                turn = str(event_id).rpartition("-")[0]
                where = f"{path}/turns/{turn}/confirmations/{asked['id']}"
                decision = {"decision": "allow_once"}
                async with running.http.post(where, json=decision) as accepted:
                    assert accepted.status == 204
                async with running.http.post(where, json=decision) as again:
                    assert again.status == 204
                other = {"decision": "reject_once"}
                async with running.http.post(where, json=other) as settled:
                    assert settled.status == 409
        assert asked
    async with running.http.post(f"{path}/messages", json={"message": "wait: x"}) as answer:
        first = await anext(events(answer))
        turn = str(first[0]).rpartition("-")[0]
        async with running.http.post(f"{path}/turns/{turn}/cancel") as cancelled:
            assert cancelled.status == 200


async def test_a_client_that_leaves_frees_its_place_while_the_turn_goes_on() -> None:
    async with site(settings(streams_per_project=1)) as running:
        path = await running.project(active=True)
        body = {"message": "wait: x"}
        async with running.http.post(f"{path}/messages", json=body) as answer:
            first = await anext(events(answer))
            async with running.http.get(f"{path}/events") as refused:
                assert refused.status == 429
                assert (await refused.json(content_type=None))["code"] == "limit_exceeded"
        turn = str(first[0]).rpartition("-")[0]
        async with asyncio.timeout(10):
            while True:
                async with running.http.get(f"{path}/turns/{turn}/events") as answer:
                    if answer.status == 200:
                        break
        async with running.http.get(f"{path}/turns/{turn}") as answer:
            assert (await answer.json())["status"] == "running"


async def test_strangers_take_no_place_of_a_project_and_learn_of_none() -> None:
    async with site(settings(streams_per_project=1)) as running:
        path = await running.project(active=True)
        stranger = await signed_in(running, "eve")
        base = f"http://127.0.0.1:{running.port}"
        async with (
            running.http.get(f"{path}/events") as open_already,
            aiohttp.ClientSession(base, headers=stranger) as eve,
            eve.post(f"{path}/messages", json={"message": "hello"}) as refused,
        ):
            assert open_already.status == 200
            assert refused.status == 404
            assert (await refused.json(content_type=None))["code"] == "user_not_found"


async def test_what_others_have_open_takes_no_place_of_the_owner_s() -> None:
    async with site(settings(streams_per_project=1)) as running:
        path = await running.project(active=True)
        base = f"http://127.0.0.1:{running.port}"
        headers = await signed_in(running, "viewer")
        await running.house.use_cases.members.share(OPERATOR, REF, "viewer", MemberRole.VIEWER)
        async with (
            aiohttp.ClientSession(base, headers=headers) as viewer,
            viewer.get(f"{path}/events") as looked_at,
            viewer.get("/users/ada/live") as listed,
            running.http.get("/users/ada/live") as own_list,
            running.http.post(f"{path}/messages", json={"message": "wait: x"}) as said_here,
        ):
            assert (looked_at.status, listed.status) == (200, 200)
            assert (own_list.status, said_here.status) == (200, 200)
            async with viewer.get(f"{path}/logs") as refused:
                told = await refused.json(content_type=None)
                assert (refused.status, told["code"]) == (429, "limit_exceeded")
                assert told["detail"] == "You already have 1 open streams of project notes."


async def test_only_a_client_that_left_is_logged_so(capsys: pytest.CaptureFixture[str]) -> None:
    async with site() as running:
        path = await running.project(active=True)
        await said(running, path, "hello")
        async with running.http.get(f"{path}/turns/none/events") as refused:
            assert refused.status == 404
        async with running.http.post(f"{path}/messages", json={"message": "wait: x"}) as answer:
            await anext(events(answer))
    lines = "".join(capsys.readouterr()).splitlines()
    streams = [line for line in lines if "/messages" in line or "/events" in line]
    assert ["client_left" in line for line in streams] == [False, False, True]


async def test_a_silent_stream_has_heartbeats() -> None:
    async with site(settings(heartbeat_seconds=0.05)) as running:
        path = await running.project(active=True)
        async with running.http.post(f"{path}/messages", json={"message": "wait: x"}) as answer:
            got = b""
            async with asyncio.timeout(10):
                while got.count(b"\n:\n\n") + got.startswith(b":\n\n") < 2:
                    got += await answer.content.readany()


def streams_of(**chosen: Any) -> Streams:
    known, of = settings(**chosen), House().use_cases
    return Streams(known, AccessWatch(Authenticator(known, of), of.gate))


async def test_who_closes_one_of_their_streams_may_open_one_more() -> None:
    streams = streams_of(streams_per_project=2)
    first, second, third, fourth = (streams.place("ada", REF) for _ in range(4))
    for one in (first, second):
        one.__enter__()
    first.__exit__(None, None, None)
    with third:
        with pytest.raises(LimitExceededError):
            fourth.__enter__()
        second.__exit__(None, None, None)
    assert not streams._open


async def test_requests_to_shared_previews_wait_for_each_other_and_no_other_project() -> None:
    streams = streams_of(streams_per_project=1)

    async def ask(ref: ProjectRef) -> None:
        async with streams.request(ref):
            pass

    async with streams.request(REF):
        waiting = asyncio.create_task(ask(REF), name="waiting")
        left = asyncio.create_task(ask(REF), name="left")
        await ask(ProjectRef("ada", "another"))
        await asyncio.sleep(0)
        left.cancel()
        assert not waiting.done()
    await waiting
    await ask(REF)
    del left  # its error holds what it waited for
    gc.collect()
    assert dict(streams._requests) == {}


@asynccontextmanager
async def relaying(opening: Any) -> AsyncIterator[int]:
    """Serve one stream by the relay alone."""

    streams = streams_of(heartbeat_seconds=15)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await streams.events(OPERATOR, REF, opening())(scope, receive, send)

    async with served(RequestLogger(app)) as port:
        yield port


async def test_a_reader_that_does_not_read_holds_back_the_upstream_and_grows_no_memory() -> None:
    taken = 0
    closed = asyncio.Event()
    run = b"data: " + b"x" * 65_000 + b"\n\n"

    @asynccontextmanager
    async def flood() -> AsyncIterator[AsyncIterator[bytes]]:
        async def runs() -> AsyncIterator[bytes]:
            nonlocal taken
            while True:
                taken += 1
                yield run
                await asyncio.sleep(0)

        try:
            yield runs()
        finally:
            closed.set()

    async with relaying(flood) as port:
        before = psutil.Process().memory_info().rss
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        settled = -1
        async with asyncio.timeout(20):
            while settled != taken:
                settled = taken
                await asyncio.sleep(0.3)
        assert taken * len(run) < 32_000_000  # what the sockets hold, and no more
        assert psutil.Process().memory_info().rss - before < 40_000_000
        writer.transport.abort()
        async with asyncio.timeout(10):
            await closed.wait()


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (AgentUnreachableError("It does not answer."), b'"code":"agent_unreachable"'),
        (StreamCutError("It broke."), b"data: 1\n\n"),
        (RuntimeError("a fault with secrets"), b'"code":"internal_error"'),
    ],
)
async def test_an_error_on_the_way_is_an_event_and_a_cut_only_an_end(
    error: Exception, end: bytes
) -> None:
    @asynccontextmanager
    async def failing() -> AsyncIterator[AsyncIterator[bytes]]:
        async def runs() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            raise error

        yield runs()

    async with relaying(failing) as port:
        got = await _get(port)
    assert got.startswith(b"HTTP/1.1 200")
    assert end in got
    assert b"secrets" not in got
    assert (b'"type":"complete"' in got) is not isinstance(error, StreamCutError)


async def test_an_error_before_the_first_byte_is_a_problem_document() -> None:
    @asynccontextmanager
    async def refusing() -> AsyncIterator[AsyncIterator[bytes]]:
        raise AgentUnreachableError("It does not answer.")
        yield

    async with relaying(refusing) as port:
        got = await _get(port)
    assert got.startswith(b"HTTP/1.1 502")
    assert b"application/problem+json" in got


async def _get(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        got = await reader.read(1 << 20)
        while more := await reader.read(1 << 20):
            got += more
    writer.close()
    return got


class SlowServer:
    """Holds back what is sent until it ``flows``, as a server whose client does not read."""

    def __init__(self) -> None:
        self.flows = asyncio.Event()
        self.looked = asyncio.Event()  # whether it was waited for the client's leaving again
        self.waiting = self._receives = 0
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        self._receives += 1
        if self._receives > 3:
            self.looked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.waiting += 1
        if self.waiting > 1 and message["type"] == "http.response.body":
            self.looked.set()
        if message["type"] != "http.response.start":
            await self.flows.wait()
        self.waiting -= 1
        self.sent.append(message)


async def test_no_heartbeat_waits_behind_the_end_of_a_stream_that_is_held_back() -> None:
    server = SlowServer()
    answering = asyncio.create_task(answered(server), name="answering")
    await server.looked.wait()
    server.flows.set()
    await answering
    bodies = [one["body"] for one in server.sent[1:]]
    assert bodies == [b"data: 1\n\n", b""]  # what follows the end is an error


async def test_no_heartbeat_comes_before_the_stream_has_begun() -> None:
    server = SlowServer()
    server.flows.set()
    await answered(server, server.looked)
    assert [one["type"].rpartition(".")[2] for one in server.sent] == ["start", "body", "body"]


async def answered(server: SlowServer, begins: asyncio.Event | None = None) -> None:
    """Relay a stream of one event, which is open once it ``begins``, with frequent heartbeats."""

    @asynccontextmanager
    async def opening() -> AsyncIterator[AsyncIterator[bytes]]:
        async def runs() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"

        if begins is not None:
            await begins.wait()
        yield runs()

    @asynccontextmanager
    async def allowed(_scope: object) -> AsyncIterator[None]:
        yield

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}
    logged = RequestLogger(EventRelay(opening(), allowed, 0.001, None))
    await logged(scope, server.receive, server.send)
