"""What is kept of the turns of conversations for when their environment sleeps."""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

import pytest
from tests.reconcile.bench import REF, Bench
from tests.reconcile.test_transcripts import (
    AT,
    active,
    answering,
    asked,
    kept,
    look,
    message,
    said,
    say,
    session,
    tuple_of,
)

from greylag.common import sse
from greylag.common.agent_api import Turn, TurnChanges
from greylag.domain import transcript
from greylag.domain.errors import (
    AgentFailedError,
    AgentUnreachableError,
    GreylagError,
    LeaseLostError,
    LimitExceededError,
    RefusalError,
    StreamCutError,
)
from greylag.domain.project import Desired, Status
from greylag.domain.transcript import (
    LEAST,
    MOST_BYTES,
    SESSIONS,
    KeptSession,
    fitting,
    part_of,
    unpack_events,
    unpack_turns,
)
from greylag.ports import AgentAddress, AgentRequest
from greylag.reconcile import transcripts

MOMENT = "2025-01-02T03:04:05.000Z"
END = {"message": "Response complete", "stop_reason": "end_turn"}
COMPLETE = ("complete", END)


def parts(bench: Bench) -> dict[str, bytes]:
    return bench.store._tables.transcripts[REF]


async def events(bench: Bench, session_id: str, turn_id: str) -> bytes | None:
    part = await bench.store.transcript(*tuple_of(), part_of(session_id, turn_id))
    return None if part is None else b"".join(unpack_events(part))


async def turns(bench: Bench, session_id: str) -> list[Turn]:
    part = await bench.store.transcript(*tuple_of(), part_of(session_id))
    return [] if part is None else list(unpack_turns(part))


def newest(bench: Bench, session_id: str) -> Any:
    return bench.gateway._at(AT).runs_of(session_id)[-1]


def streamed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return of which turns the events are asked for from now on."""
    ids: list[str] = []
    original = bench.gateway.stream_turn

    def counted(at: AgentAddress, turn_id: str, after: str | None) -> Any:
        ids.append(turn_id)
        return original(at, turn_id, after)

    monkeypatch.setattr(bench.gateway, "stream_turn", counted)
    return ids


def streaming(bench: Bench, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any]) -> list[str]:
    """Have the agent tell these runs of a turn's events, or fail so; return what it is asked."""
    ids: list[str] = []

    @asynccontextmanager
    async def stream(
        _at: AgentAddress, turn_id: str, _after: str | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        ids.append(turn_id)
        runs = told[turn_id]
        if isinstance(runs, GreylagError):
            raise runs

        async def body() -> AsyncIterator[bytes]:
            for run in runs:
                if isinstance(run, GreylagError):
                    raise run
                yield run

        yield body()

    monkeypatch.setattr(bench.gateway, "stream_turn", stream)
    return ids


def listing(bench: Bench, monkeypatch: pytest.MonkeyPatch, told: list[Any]) -> None:
    """Have the agent tell of one session with these turns, the newest first."""

    def answer(request: AgentRequest) -> Any:
        if request.operation.name == "list_sessions":
            return {"sessions": [session(1)]}
        return {"turns": told} if request.operation.name == "list_turns" else {"messages": []}

    answering(bench, monkeypatch, answer)


def turn(turn_id: str, **more: Any) -> dict[str, Any]:
    return asdict(Turn(turn_id, "s1", "m", "completed", "hello", MOMENT, MOMENT)) | more


def frames(turn_id: str, *told: Any) -> list[bytes]:
    return [
        sse.encode({"type": kind, "content": content}, id=f"{turn_id}-{number}")
        for number, (kind, content) in enumerate(told)
    ]


async def test_the_steps_of_a_turn_are_kept_as_they_were_told_and_asked_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await active()
    called = ["tool_request", {"id": "c", "tool_name": "shell", "arguments": {"command": "ls"}}]
    one = await say(bench, f"events: {json.dumps([called])}")
    first = newest(bench, one)
    await look(bench)
    assert await events(bench, one, first.turn.turn_id) == b"".join(first.frames)
    assert [each.turn_id for each in await turns(bench, one)] == [first.turn.turn_id]
    ids, names = streamed(bench, monkeypatch), asked(bench, monkeypatch)
    await look(bench)
    assert (ids, names) == ([], ["list_sessions"])
    await say(bench, "more", one)
    second = newest(bench, one)
    assert (await bench.reach(Desired.INACTIVE)).status is Status.INACTIVE
    assert ids == [second.turn.turn_id]
    assert await events(bench, one, second.turn.turn_id) == b"".join(second.frames)
    assert await events(bench, one, first.turn.turn_id) == b"".join(first.frames)


async def test_a_turn_that_runs_is_not_waited_for_and_kept_once_it_has_ended() -> None:
    bench = await active()
    one = await say(bench, "wait: long")
    run = newest(bench, one)
    await look(bench)
    assert await said(bench, one) == ["wait: long"]
    assert (await turns(bench, one), bench.gateway.open_streams) == ([], 0)
    await bench.gateway.cancel_turn(AT, run.turn.turn_id)
    await look(bench)
    assert [each.status for each in await turns(bench, one)] == ["cancelled"]
    assert await events(bench, one, run.turn.turn_id) == b"".join(run.frames)


async def test_steps_go_with_their_session() -> None:
    bench = await active()
    one, two = await say(bench, "first"), await say(bench, "second")
    await look(bench)
    assert len(parts(bench)) == 7
    here = bench.gateway._at(AT)
    here.delete(here.session(one))
    await look(bench)
    assert sorted(name.partition("/")[0] for name in parts(bench)) == ["", two, two, two]


@pytest.mark.parametrize("failure", [AgentFailedError("Old."), LimitExceededError("Later.")])
async def test_an_agent_that_lists_no_turns_is_no_failure(
    failure: GreylagError, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await active()
    one = await say(bench, "hello")
    original, names = bench.gateway.relay, []

    def older(at: AgentAddress, request: AgentRequest) -> Any:
        names.append(request.operation.name)
        if request.operation.name == "list_turns":
            raise failure
        return original(at, request)

    monkeypatch.setattr(bench.gateway, "relay", older)
    await look(bench)
    assert await said(bench, one) == ["hello", "You said: hello"]
    names.clear()
    await look(bench)
    assert names == ["list_sessions"]  # it is not asked again before the session changes


BAD: list[Any] = [
    [],
    [b"no event\n\n"],
    [b"id: t-0\ndata: {\n\n"],
    [b"id: t-0\ndata: []\n\n"],
    [b"id: t-0\ndata: " + b"[" * 100_000 + b"\n\n"],
    [b"id: t-0\ndata: {\ndata: }\n\n"],
    frames("t", ("thinking", {})),
    frames("t", ("thinking", []), COMPLETE),
    frames("t", (1, {}), COMPLETE),
    frames("t", COMPLETE, ("message", {})),
    frames("other", COMPLETE),
    [*frames("t", COMPLETE)] * 2,
    [sse.encode({"type": "complete", "content": END})],
    [sse.encode({"type": "complete", "content": END}, id="t-" + "9" * 30)],
    [sse.encode({"type": "complete", "content": END}, id="t-\u0663")],
    [
        b'id: t-0\ndata: {"type":"x","content":{"a":[' + b"[]," * 600_000 + b"1]}}\n\n",
        sse.encode({"type": "complete", "content": END}, id="t-1"),
    ],
    [b": " + b"x" * 1024 * 1024 + b"\n\n"] * 9 + frames("t", COMPLETE),
    frames("t", ("message", {"content": os.urandom(2**21).hex()}), COMPLETE),
    RefusalError("Gone.", "turn_not_found"),
    AgentFailedError("It is none."),
]


@pytest.mark.parametrize("told", BAD, ids=range(len(BAD)))
async def test_what_are_no_events_of_a_turn_hides_no_other_and_is_not_asked_for_again(
    told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await active()
    good = frames("good", COMPLETE)
    listing(bench, monkeypatch, [turn("t"), turn("good")])
    ids = streaming(bench, monkeypatch, {"t": told, "good": good})
    await look(bench)
    listed = [(each.turn_id, each.ended_at) for each in await turns(bench, "s1")]
    assert listed == [("t", MOMENT), ("good", MOMENT)]
    assert (await events(bench, "s1", "t"), await events(bench, "s1", "good")) == (None, good[0])
    changed(bench, monkeypatch, [turn("t"), turn("good")])
    await look(bench)
    assert ids == ["t", "good"]


def changed(bench: Bench, monkeypatch: pytest.MonkeyPatch, told: list[Any]) -> None:
    """Have the session changed since, and its turns be these."""

    def answer(request: AgentRequest) -> Any:
        if request.operation.name == "list_sessions":
            return {"sessions": [session(1, message_count=4)]}
        return {"turns": told} if request.operation.name == "list_turns" else {"messages": []}

    answering(bench, monkeypatch, answer)


async def test_a_stream_that_broke_off_is_asked_for_again_once_the_session_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await active()
    told: dict[str, Any] = {"t": [frames("t", ("thinking", {}))[0], StreamCutError("It broke.")]}
    listing(bench, monkeypatch, [turn("t")])
    ids = streaming(bench, monkeypatch, told)
    await look(bench)
    await look(bench)
    assert (ids, await events(bench, "s1", "t")) == (["t"], None)
    told["t"] = frames("t", COMPLETE)
    changed(bench, monkeypatch, [turn("t")])
    await look(bench)
    assert (ids, await events(bench, "s1", "t")) == (["t", "t"], told["t"][0])


async def test_what_was_copied_before_the_agent_was_lost_stays_and_the_rest_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await active()
    told: dict[str, Any] = {name: frames(name, COMPLETE) for name in ("c", "b", "a")}
    listing(bench, monkeypatch, [turn("c"), turn("b"), turn("a")])
    told["b"] = AgentUnreachableError("It is gone.")
    ids = streaming(bench, monkeypatch, told)
    await look(bench)
    assert await events(bench, "s1", "c") == told["c"][0]
    told["b"] = frames("b", COMPLETE)
    await bench.store.poke(REF, bench.clock.now())
    await look(bench)
    assert ids == ["c", "b", "b", "a"]
    assert [await events(bench, "s1", name) for name in "cba"] == [told[n][0] for n in "cba"]


async def test_messages_are_kept_though_steps_take_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await active()
    one, two = await say(bench, "first"), await say(bench, "second")
    monkeypatch.setattr(transcripts, "LONGEST", 0.2)

    @asynccontextmanager
    async def silent(*_args: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        await asyncio.Event().wait()
        yield None  # type: ignore[misc]

    monkeypatch.setattr(bench.gateway, "stream_turn", silent)
    project = await bench.reach(Desired.INACTIVE)
    copy = await kept(bench)
    assert copy is not None
    assert (project.status, copy.kept_at) == (Status.INACTIVE, bench.clock.now())
    assert [await said(bench, each) for each in (one, two)] == [
        [words, f"You said: {words}"] for words in ("first", "second")
    ]


async def test_a_claim_that_was_lost_ends_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await active()
    one = await say(bench, "hello")
    original = bench.store.keep_transcript

    async def lost(claim: Any, given: Any, **named: Any) -> None:
        if any("/" in name for name in given):
            raise LeaseLostError("Another worker has it.")
        await original(claim, given, **named)

    monkeypatch.setattr(bench.store, "keep_transcript", lost)
    await look(bench)
    assert (await said(bench, one), await turns(bench, one)) == (["hello", "You said: hello"], [])


async def test_pictures_that_are_too_large_are_told_of_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await active()
    data = base64.b64encode(os.urandom(2**20)).decode()
    small = {"type": "image", "data": "R0lGODlh", "mimeType": "image/gif"}
    text = {"type": "text", "text": "seen"}
    blocks = [text, small, {"type": "image", "data": data}, {"resource": {"blob": data}}, "odd", 1]
    results = [{"Ok": blocks}, {"Err": "no", "content": blocks}, {"Ok": None}, None, "x" * 99_999]
    answers = [("tool_response", {"id": "c", "result": result}) for result in results]
    listing(bench, monkeypatch, [turn("t")])
    streaming(bench, monkeypatch, {"t": frames("t", *answers, COMPLETE)})
    await look(bench)
    whole = await events(bench, "s1", "t")
    assert whole is not None
    found = [sse.parse(one) for one in sse.FrameSplitter().feed(whole)]
    told = [json.loads(one.data)["content"].get("result") for one in found if one]
    words = {"type": "text", "text": transcripts._LATER}
    lean = [text, small, words, words, "odd", 1]
    assert told == [{"Ok": lean}, {"Err": "no", "content": lean}, *results[2:], None]
    assert [one.id for one in found if one] == [f"t-{number}" for number in range(6)]


async def test_the_newest_turns_are_kept_in_the_room_that_messages_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await active()
    for module in (transcripts, transcript):
        monkeypatch.setattr(module, "MOST_PART", 2 * LEAST)
        monkeypatch.setattr(module, "MOST_BYTES", 16 * LEAST)
    sessions = [session(number) for number in (2, 1)]
    listed = {
        f"s{number}": [turn(f"{number}-{index}") for index in range(9, -1, -1)] for number in (1, 2)
    }

    def answer(request: AgentRequest) -> Any:
        match request.operation.name:
            case "list_sessions":
                return {"sessions": sessions}
            case "list_turns":
                return {"turns": listed[request.parts["session"]]}
            case _:
                return {"messages": [message(0)]}

    answering(bench, monkeypatch, answer)
    named = [each["turn_id"] for one in listed.values() for each in one]
    much, more = (
        ("message", {"content": os.urandom(size).hex()}) for size in (LEAST, LEAST * 3 // 2)
    )
    told = {name: frames(name, *([much] * (name[0] == "1")), COMPLETE) for name in named}
    ids = streaming(bench, monkeypatch, told)
    await look(bench)
    copy = await kept(bench)
    assert copy is not None
    two, one = copy.sessions
    assert list(two.turns) == ["", *(f"2-{index}" for index in range(9, -1, -1))]
    assert list(one.turns) == ["", "1-9", "1-8"]
    assert sum(each.size + sum(each.turns.values()) for each in copy.sessions) == sum(
        len(part) for name, part in parts(bench).items() if name != SESSIONS
    )
    assert ids == [*list(two.turns)[1:], "1-9", "1-8"]
    ids.clear()
    listed["s2"].insert(0, turn("2-10"))
    told["2-10"] = frames("2-10", more, COMPLETE)
    sessions[0] = session(2, message_count=9)
    await look(bench)
    assert ids == ["2-10"]
    assert await events(bench, "s2", "2-10") == b"".join(told["2-10"])
    assert await events(bench, "s1", "1-9") == b"".join(told["1-9"])
    assert await events(bench, "s1", "1-8") is None


def test_what_fits_are_the_first_turns_beside_all_messages() -> None:
    of = [session(1), session(2)]
    first, second = (
        replace(KeptSession(transcripts._session(one)), turns={"": 1, "a": 2 * LEAST, "b": 0})
        for one in of
    )
    assert fitting([first, second]) == [first, second]
    large = replace(second, size=MOST_BYTES - 5 * LEAST)
    assert [list(one.turns) for one in fitting([first, large])] == [["", "a", "b"], [""]]
    larger = replace(second, size=MOST_BYTES - 2 * LEAST)
    assert [list(one.turns) for one in fitting([first, larger])] == [[""], []]


async def test_hostile_lists_of_turns_are_cut_or_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await active()
    changes = asdict(TurnChanges(3, 2, 1, undo_id="u" * 9999))
    long = turn("t", message="\ud800" + "m" * 9999, error="e" * 9999, tool_calls_count=-1)
    told = [long | {"changes": changes, "session_id": "another", "question": None}, turn("t")]
    listing(bench, monkeypatch, told[:1] + [turn(f"n{number}") for number in range(300)])
    streaming(bench, monkeypatch, {"t": [], **{f"n{number}": [] for number in range(300)}})
    await look(bench)
    one, *rest = await turns(bench, "s1")
    assert len(rest) == 199
    assert (one.session_id, one.tool_calls_count) == ("s1", 0)
    assert (one.message[:2], len(one.message), len(one.error or "")) == ("?m", 1000, 1000)
    assert one.changes is not None
    assert (one.changes.files, len(one.changes.undo_id or "")) == (3, 200)
    before = await turns(bench, "s1")
    bad: Any
    for bad in (None, {}, [None], [{}], [turn("a/b")], [turn("t", started_at="never")]):
        changed(bench, monkeypatch, bad)
        await look(bench)
        assert await turns(bench, "s1") == before


async def test_a_copy_of_the_version_before_is_read_and_gets_its_steps() -> None:
    bench = await active()
    one = await say(bench, "hello")
    await look(bench)
    copy = await kept(bench)
    assert copy is not None
    new = ("turns", "steps_copied")
    before = [
        {name: value for name, value in asdict(each).items() if name not in new}
        for each in copy.sessions
    ]
    told = {"kept_at": MOMENT, "total": 1, "sessions": before}
    bench.store._tables.transcripts[REF] = {
        SESSIONS: transcript._packed(told),
        one: parts(bench)[one],
    }
    again = await kept(bench)
    assert again is not None
    assert [each.turns for each in again.sessions] == [{}]
    await look(bench)
    assert len(await turns(bench, one)) == 1
