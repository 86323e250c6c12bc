"""The JSON-RPC peer over a real socket pair."""

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from greylag.agentd.agent import acp
from greylag.agentd.agent.acp import AcpPeer
from greylag.agentd.agent.types import METHOD_NOT_FOUND, AgentDiedError, AgentRefusedError
from greylag.agentd.shortening import KEPT, LineShortener, mark


class Collecting:
    def __init__(self) -> None:
        self.got: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def notification(self, method: str, params: dict[str, Any]) -> None:
        await self.gate.wait()
        if method == "bad":
            raise TypeError("cannot use 'dict' as a set element")
        self.got.append((method, params))

    async def request(self, request_id: str | int, method: str, params: dict[str, Any]) -> None:
        if method == "bad":
            raise RecursionError
        self.got.append((request_id, method, params))


class Wire:
    """The peer under test, and the raw other end of its stream."""

    def __init__(
        self,
        peer: AcpPeer,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.peer = peer
        self.handler = Collecting()
        self.reader = reader
        self.writer = writer
        self.running = asyncio.create_task(peer.run(self.handler), name="peer")

    def say(self, *messages: Any) -> None:
        self.writer.writelines(json.dumps(message).encode() + b"\n" for message in messages)

    async def hear(self) -> Any:
        return json.loads(await self.reader.readline())

    async def hang_up(self) -> None:
        self.writer.close()
        await asyncio.wait({self.running}, timeout=5)


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    wire = Wire(AcpPeer(reader, writer), *await asyncio.open_connection(sock=theirs))
    try:
        yield wire
    finally:
        await wire.hang_up()
        writer.close()


async def test_answers_find_their_requests_in_any_order(wire: Wire) -> None:
    first = asyncio.create_task(wire.peer.request("a", {}))
    second = asyncio.create_task(wire.peer.request("b", {"x": 1}))
    asked = [await wire.hear(), await wire.hear()]
    assert [(m["method"], m["params"]) for m in asked] == [("a", {}), ("b", {"x": 1})]
    wire.say({"id": asked[1]["id"], "result": "B"}, {"id": asked[0]["id"], "result": "A"})
    assert (await first, await second) == ("A", "B")


async def test_an_error_answer_is_raised_with_its_code_and_data(wire: Wire) -> None:
    request = asyncio.create_task(wire.peer.request("a", {}))
    asked = await wire.hear()
    wire.say({"id": asked["id"], "error": {"code": -32000, "message": "no", "data": [1]}})
    with pytest.raises(AgentRefusedError) as caught:
        await request
    assert (caught.value.code, caught.value.message, caught.value.data) == (-32000, "no", [1])


async def test_half_a_character_is_heard_as_a_question_mark_and_a_whole_one_as_it_is(
    wire: Wire,
) -> None:
    request = asyncio.create_task(wire.peer.request("a", {}))
    asked = await wire.hear()
    wire.say({"id": asked["id"], "result": {"k\ud83d": ["\udc00x", "\ud83d\ude00", 1, None]}})
    assert await request == {"k?": ["?x", "\U0001f600", 1, None]}


async def test_the_end_of_the_stream_fails_open_and_later_requests(wire: Wire) -> None:
    request = asyncio.create_task(wire.peer.request("a", {}))
    await wire.hear()
    await wire.hang_up()
    with pytest.raises(AgentDiedError):
        await request
    with pytest.raises(AgentDiedError):
        await wire.peer.request("b", {})
    with pytest.raises(AgentDiedError):
        await wire.peer.notify("c", {})


async def test_messages_are_handled_in_order_and_an_answer_waits_for_those_before_it(
    wire: Wire,
) -> None:
    wire.handler.gate.clear()
    request = asyncio.create_task(wire.peer.request("a", {}))
    asked = await wire.hear()
    wire.say(*({"method": "u", "params": {"n": n}} for n in range(100)))
    wire.say({"id": asked["id"], "result": None}, {"id": "q", "method": "ask"})
    await asyncio.wait({request}, timeout=0.05)
    assert not request.done()
    wire.handler.gate.set()
    await request
    await wire.hang_up()
    assert wire.handler.got == [*(("u", {"n": n}) for n in range(100)), ("q", "ask", {})]


async def test_a_handler_that_waits_stops_the_sender(wire: Wire) -> None:
    wire.handler.gate.clear()
    line = json.dumps({"method": "u", "params": {"text": "x" * 1000}}).encode() + b"\n"
    sent = 0

    async def send() -> None:
        nonlocal sent
        for _ in range(50_000):
            wire.writer.write(line)
            await wire.writer.drain()
            sent += len(line)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(send(), 0.5)
    assert sent < 4_000_000
    wire.handler.gate.set()


async def test_of_lines_too_long_texts_are_shortened_and_the_rest_is_told_of(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acp, "LONG_LINE", 500_000)
    monkeypatch.setattr(acp, "LINE_LIMIT", 700_000)
    request = asyncio.create_task(wire.peer.request("a", {}))
    asked = await wire.hear()
    many = [1] * 400_000
    ended = {"sessionUpdate": "tool_call_update", "toolCallId": "c1", "status": "completed"}
    messages: list[dict[str, Any]] = [
        {"method": "u", "params": {"text": "ä" * 70_000}},
        {"method": "u", "params": {"text": "x" * 40_000_000, "after": ["it", 1]}},
        {"method": "u", "params": {"many": many}},
        {"method": "t", "params": {"sessionId": "s1", "update": {**ended, "rawOutput": many}}},
        {"jsonrpc": "2.0", "id": asked["id"], "result": many},
        {"method": "u", "params": {"text": "next"}},
    ]
    for message in messages:  # without blanks, as goose writes
        wire.writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
    with pytest.raises(AgentRefusedError, match="too large"):
        await asyncio.wait_for(request, 20)
    await wire.hang_up()
    whole, cut, (method, params), last = wire.handler.got
    assert whole == ("u", {"text": "ä" * 70_000})
    assert cut == ("u", {"text": "x" * KEPT + mark(40_000_000), "after": ["it", 1]})
    assert (method, params["sessionId"]) == ("session/update", "s1")
    assert params["update"] | ended == params["update"]
    assert "too large to keep" in params["update"]["content"][0]["content"]["text"]
    assert last == ("u", {"text": "next"})


async def test_a_line_of_more_values_than_can_be_read_soon_is_told_of_and_one_of_texts_is_read(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acp, "MOST_VALUES", 1000)
    request = asyncio.create_task(wire.peer.request("a", {}))
    asked = await wire.hear()
    for message in (
        {"method": "u", "params": {"text": ",[{" * 5000}},
        {"method": "u", "params": {"many": [1] * 1001}},
        {"jsonrpc": "2.0", "id": asked["id"], "result": [[]] * 501},
    ):
        wire.writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
    with pytest.raises(AgentRefusedError, match="too large"):
        await asyncio.wait_for(request, 20)
    await wire.hang_up()
    assert wire.handler.got == [("u", {"text": ",[{" * 5000})]


class Ready:
    """A stream whose bytes are all there: no read of it lets others run."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    async def read(self, n: int) -> bytes:
        return self._data.read(n)


async def test_others_run_while_a_long_line_is_taken_and_what_it_has_too_many_of_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acp, "LONG_LINE", 1_000_000)
    monkeypatch.setattr(acp, "MOST_VALUES", 100_000)
    kept: list[int] = []

    class Watched(LineShortener):
        def feed(self, data: bytes) -> None:
            super().feed(data)
            kept.append(len(self.line))

    monkeypatch.setattr(acp, "LineShortener", Watched)
    rounds = 0

    async def others() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=ours)
    handler = Collecting()
    line = b'{"method":"u","params":{"a":[' + b'"",' * 1_000_000 + b'""]}}\n{"method":"v"}\n'
    await AcpPeer(Ready(line), writer).run(handler)
    running.cancel()
    writer.close()
    theirs.close()
    assert handler.got == [("v", {})]
    assert rounds > len(line) // 65_536
    assert max(kept) < 400_000


async def test_garbage_and_answers_to_nothing_are_passed_over(wire: Wire) -> None:
    wire.writer.write(b"garbage\n[1]\n\n3\n" + b"[" * 100_000 + b"\n")
    wire.say({"id": 99, "result": 1}, {"id": None, "error": {}}, {"method": "u"})
    wire.say({"id": "x" * 10_000, "method": "an id that would be kept as long as it is open"})
    await wire.hang_up()
    assert wire.handler.got == [("u", {})]
    assert wire.running.exception() is None


async def test_a_message_that_cannot_be_handled_is_dropped_and_a_question_is_refused(
    wire: Wire,
) -> None:
    with capture_logs() as logs:
        wire.say({"method": "bad"}, {"id": "q", "method": "bad"}, {"method": "u"})
        heard = await wire.hear()
        await wire.hang_up()
    assert (heard["id"], heard["error"]["code"]) == ("q", -32603)
    assert wire.handler.got == [("u", {})]
    assert wire.running.exception() is None
    assert [one["event"] for one in logs] == ["acp_message_not_handled"] * 2


async def test_an_error_without_words_is_refused_all_the_same(wire: Wire) -> None:
    request = asyncio.create_task(wire.peer.request("a", {}))
    asked = await wire.hear()
    wire.say({"id": asked["id"], "error": {"code": "x", "message": [[]]}})
    with pytest.raises(AgentRefusedError, match="gave no reason"):
        await request


async def test_a_torn_last_line_is_dropped(wire: Wire) -> None:
    wire.say({"method": "u"})
    wire.writer.write(b'{"method": "v"')
    await wire.hang_up()
    assert wire.handler.got == [("u", {})]


async def test_requests_of_the_other_side_can_be_answered_and_refused(wire: Wire) -> None:
    await wire.peer.respond("q1", {"ok": True})
    await wire.peer.refuse(2, METHOD_NOT_FOUND, "no")
    assert await wire.hear() == {"jsonrpc": "2.0", "id": "q1", "result": {"ok": True}}
    assert (await wire.hear())["error"] == {"code": -32601, "message": "no"}
