"""What is kept of conversations for when their environment sleeps; the test owns time."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

import pytest
from tests.reconcile.bench import PACE, REF, Bench

from greylag.common.agent_api import MOST_MESSAGES, ChatMessage, Session
from greylag.domain import transcript
from greylag.domain.errors import LeaseLostError, SessionNotFoundError, StoreUnavailableError
from greylag.domain.lifecycle import Verb
from greylag.domain.project import Desired, Status
from greylag.domain.transcript import (
    MOST_SESSIONS,
    SESSIONS,
    Transcript,
    pack_messages,
    unpack,
    unpack_messages,
)
from greylag.ports import AgentAddress, AgentAnswer, AgentRequest
from greylag.reconcile import transcripts
from greylag.reconcile.loop import Slot

ADDRESS = "memory://user-ada/demo-api"
AT = AgentAddress(ADDRESS, "")


async def active() -> Bench:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    return bench


async def say(bench: Bench, words: str, session_id: str | None = None) -> str:
    turn = await bench.gateway.start_turn(AT, session_id, words, words)
    return turn.session_id


async def look(bench: Bench) -> None:
    bench.clock.advance(PACE.resync * 2)
    await bench.loop.drain()


async def kept(bench: Bench) -> Transcript | None:
    return unpack(await bench.store.transcript(*tuple_of(), SESSIONS))


async def said(bench: Bench, session_id: str) -> list[str] | None:
    part = await bench.store.transcript(*tuple_of(), session_id)
    return None if part is None else [one.content for one in unpack_messages(part)]


def tuple_of() -> tuple[str, str]:
    return REF.user_id, REF.project_id


def asked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what the agent is asked from now on."""
    names: list[str] = []
    original = bench.gateway.relay

    def counted(at: AgentAddress, request: AgentRequest) -> Any:
        names.append(request.operation.name)
        return original(at, request)

    monkeypatch.setattr(bench.gateway, "relay", counted)
    return names


def answering(bench: Bench, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> None:
    """Have the agent answer so; what is no bytes is JSON."""

    @asynccontextmanager
    async def relay(_at: AgentAddress, request: AgentRequest) -> AsyncIterator[AgentAnswer]:
        told = answer(request)
        if isinstance(told, Exception):
            raise told

        async def body() -> AsyncIterator[bytes]:
            yield told if isinstance(told, bytes) else json.dumps(told).encode()

        yield AgentAnswer(200, {}, body())

    monkeypatch.setattr(bench.gateway, "relay", relay)


def session(number: int = 1, **more: Any) -> dict[str, Any]:
    moment = "2025-01-02T03:04:05.000Z"
    return asdict(Session(f"s{number}", moment, moment, 2, f"Session {number}")) | more


def message(index: int, **more: Any) -> dict[str, Any]:
    return asdict(ChatMessage("User", f"m{index}", None, index)) | more


async def test_what_was_said_is_kept_by_each_look_and_before_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await active()
    assert await kept(bench) is None
    one = await say(bench, "hello")
    await look(bench)
    names = asked(bench, monkeypatch)
    copy = await kept(bench)
    assert copy is not None
    assert [(each.session.title, each.session.message_count) for each in copy.sessions] == [
        ("hello", 2)
    ]
    assert await said(bench, one) == ["hello", "You said: hello"]
    await look(bench)
    assert names == ["list_sessions"]  # what is not new costs one small request, and no write
    assert await kept(bench) == copy
    await say(bench, "more", one)
    two = await say(bench, "another")
    project = await bench.reach(Desired.INACTIVE)
    assert (project.status, bench.verbs()[-1]) == (Status.INACTIVE, Verb.STOP)
    last = await kept(bench)
    assert last is not None
    assert [each.session.session_id for each in last.sessions] == [two, one]
    assert (last.kept_at, last.total) == (bench.clock.now(), 2)
    assert (await said(bench, one) or [])[2:] == ["more", "You said: more"]


async def test_a_session_that_was_deleted_or_named_is_so_in_the_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await active()
    one, two = await say(bench, "first"), await say(bench, "second")
    await look(bench)
    here = bench.gateway._at(AT)
    here.delete(here.session(one))
    here.sessions[two] = replace(here.sessions[two], title="Renamed")
    names = asked(bench, monkeypatch)
    await look(bench)
    copy = await kept(bench)
    assert copy is not None
    assert [each.session.title for each in copy.sessions] == ["Renamed"]
    assert await said(bench, one) is None
    assert names == ["list_sessions"]


async def test_an_agent_that_fails_leaves_the_copy_and_ends_as_wanted() -> None:
    bench = await active()
    one = await say(bench, "hello")
    await look(bench)
    copy = await kept(bench)
    bench.gateway.unreachable.add(ADDRESS)
    project = await bench.reach(Desired.INACTIVE)
    assert (project.status, bench.verbs()[-1]) == (Status.INACTIVE, Verb.STOP)
    assert await kept(bench) == copy
    assert await said(bench, one) == ["hello", "You said: hello"]


async def test_an_agent_that_does_not_answer_is_waited_for_so_long_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await active()
    monkeypatch.setattr(transcripts, "LONGEST", 0.02)
    begun = []

    @asynccontextmanager
    async def silent(_at: AgentAddress, _asked: AgentRequest) -> AsyncIterator[AgentAnswer]:
        begun.append(1)
        await asyncio.Event().wait()
        yield AgentAnswer(200, {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.gateway, "relay", silent)
    project = await bench.reach(Desired.INACTIVE)
    assert (project.status, len(begun)) == (Status.INACTIVE, 1)


async def test_what_is_left_of_a_lease_is_not_spent_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await active()
    await say(bench, "hello")
    await bench.want(Desired.INACTIVE)
    claimed = await bench.reconciler.claim()
    assert claimed is not None
    bench.clock.advance(PACE.lease - 0.02)
    answering(bench, monkeypatch, lambda _asked: {"sessions": []})
    monkeypatch.setattr(bench.store, "transcript", lambda *_args: asyncio.Event().wait())
    async with asyncio.timeout(2):
        await bench.reconciler._transcripts.look(claimed, last=True)


async def test_a_store_that_takes_no_copy_does_not_keep_it_awake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await active()
    await say(bench, "hello")

    async def full(*_args: Any, **_named: Any) -> None:
        raise StoreUnavailableError("The disk is full.")

    monkeypatch.setattr(bench.store, "keep_transcript", full)
    assert (await bench.reach(Desired.INACTIVE)).status is Status.INACTIVE


async def test_only_sleep_is_prepared_for_so_not_a_deletion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await active()
    await say(bench, "hello")
    names = asked(bench, monkeypatch)
    await bench.want(Desired.DELETED)
    await bench.loop.drain()
    assert bench.verbs()[-2:] == [Verb.STOP, Verb.DELETE]
    assert names == []
    assert bench.store._tables.transcripts == {}


async def test_what_is_cut_off_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await active()
    ids = [await say(bench, f"number {number}") for number in range(4)]
    original, left = bench.store.keep_transcript, [2]

    async def cut(*args: Any, **named: Any) -> None:
        if not left[0]:
            raise LeaseLostError("killed")
        left[0] -= 1
        await original(*args, **named)

    monkeypatch.setattr(bench.store, "keep_transcript", cut)
    await look(bench)
    copy = await kept(bench)
    assert copy is not None
    # The newest come first, and each is named with its messages.
    assert [each.copied_at is not None for each in copy.sessions] == [True, True, False, False]
    monkeypatch.setattr(bench.store, "keep_transcript", original)
    names = asked(bench, monkeypatch)
    await bench.store.poke(REF, bench.clock.now())
    await look(bench)
    assert names.count("list_messages") == 2
    assert [await said(bench, each) for each in ids] == [
        [f"number {number}", f"You said: number {number}"] for number in range(4)
    ]


async def test_so_many_sessions_and_bytes_are_kept_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await active()
    monkeypatch.setattr(transcripts, "MOST_PART", 1000)
    monkeypatch.setattr(transcripts, "MOST_BYTES", 1400)
    listed = [session(number) for number in range(MOST_SESSIONS + 50)]
    names: list[str] = []

    def answer(request: AgentRequest) -> Any:
        names.append(request.operation.name)
        if request.operation.name == "list_sessions":
            return {"sessions": listed, "total": 1}
        return {"messages": [message(0, content="short"), message(1)]}

    answering(bench, monkeypatch, answer)
    await look(bench)
    copy = await kept(bench)
    assert copy is not None
    assert (len(copy.sessions), copy.total) == (MOST_SESSIONS, MOST_SESSIONS + 50)
    count = sum(each.copied_at is not None for each in copy.sessions)
    assert 1 < count < 20
    assert sum(each.size for each in copy.sessions) <= 1400
    names.clear()
    await look(bench)
    assert names == ["list_sessions"]  # what has no room is not asked for again and again
    del listed[20:]  # to be quick
    for number in range(1000, 1020):
        listed.insert(0, session(number))
        await look(bench)
        copy = await kept(bench)
        assert copy is not None
        assert copy.sessions[0].copied_at is not None
        assert sum(each.size for each in copy.sessions) <= 1400


async def test_of_too_many_sessions_those_used_last_are_kept_in_the_order_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await active()
    monkeypatch.setattr(transcripts, "MOST_SESSIONS", 2)
    listed = [session(number) for number in range(4)]
    listed[3]["updated_at"] = "2026-03-01T00:00:00.000Z"
    listed[1]["updated_at"] = "2026-02-01T00:00:00.000Z"

    def answer(request: AgentRequest) -> Any:
        if request.operation.name == "list_sessions":
            return {"sessions": listed, "total": 4}
        return {"messages": []}

    answering(bench, monkeypatch, answer)
    await look(bench)
    copy = await kept(bench)
    assert copy is not None
    ids = [one.session.session_id for one in copy.sessions]
    assert ids == [listed[1]["session_id"], listed[3]["session_id"]]
    assert copy.total == 4


async def test_a_session_has_its_newest_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "MOST_PART", 4000)
    many = [
        ChatMessage("User", "".join(chr(33 + (n * i) % 90) for i in range(400)), None, n)
        for n in range(MOST_MESSAGES)
    ]
    part = pack_messages(many)
    left = unpack_messages(part)
    assert len(part) <= 4000
    assert 0 < len(left) < len(many)
    assert left == many[-len(left) :]


HOSTILE: list[Any] = [
    b"no JSON",
    b"[" * 100_000,
    b'"' + b"x" * (5 * 1024 * 1024) + b'"',
    [],
    {"sessions": None},
    {"sessions": [None]},
    {"sessions": [session() | {"message_count": "2"}]},
    {"sessions": [session() | {"updated_at": "never"}]},
    {"sessions": [session() | {"updated_at": "0001-01-01T00:00:00+23:00"}]},
    *({"sessions": [session() | {"session_id": name}]} for name in ("", "..", "a/b", "\ud800")),
]


@pytest.mark.parametrize("told", HOSTILE, ids=range(len(HOSTILE)))
async def test_a_hostile_list_changes_nothing(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await active()
    one = await say(bench, "hello")
    await look(bench)
    before = await kept(bench)
    answering(bench, monkeypatch, lambda _asked: told)
    await look(bench)
    assert (await bench.reach(Desired.INACTIVE)).status is Status.INACTIVE
    assert await kept(bench) == before
    assert await said(bench, one) == ["hello", "You said: hello"]


async def test_hostile_messages_hide_no_other_session(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await active()
    bad: list[Any] = [
        {"messages": {}},
        {"messages": [message(1), message(1)]},
        {"messages": [message(-1)]},
        {"messages": [message(0, content=None)]},
        {"messages": [message(0, turn_id="a/b")]},
        b"{",
        SessionNotFoundError("It has just gone."),
    ]

    def answer(request: AgentRequest) -> Any:
        if request.operation.name == "list_sessions":
            return {"sessions": [session(number) for number in range(len(bad) + 1)]}
        number = int(request.parts["session"][1:])
        words = "\ud800\x00" + "x" * 300_000
        long = message(7, content=words, role="R" * 99, author="A" * 999)
        good = {"messages": [long, message(8, shortened=True)]}
        return bad[number] if number < len(bad) else good

    answering(bench, monkeypatch, answer)
    await look(bench)
    copy = await kept(bench)
    assert copy is not None
    assert len(copy.sessions) == len(bad) + 1
    assert [one.session.session_id for one in copy.sessions if one.copied_at] == [f"s{len(bad)}"]
    part = await bench.store.transcript(*tuple_of(), f"s{len(bad)}")
    assert part is not None
    one, other = unpack_messages(part)
    assert (one.content[:3], len(one.content), one.shortened) == ("?\0x", 262_144, True)
    assert (other.content, other.shortened) == ("m8", True)
    assert (len(one.role), len(one.author or "")) == (40, 200)


async def test_titles_are_cut_and_twins_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await active()
    listed = [
        session(1, title="t" * 999, message_count=-5, mode="\ud800", model="m" * 999),
        session(1, title="again"),
    ]

    def answer(request: AgentRequest) -> Any:
        if request.operation.name == "list_sessions":
            return {"sessions": listed}
        return {"messages": []}

    answering(bench, monkeypatch, answer)
    await look(bench)
    copy = await kept(bench)
    assert copy is not None
    assert [one.session.title for one in copy.sessions] == ["again"]
    listed.pop()
    await look(bench)
    copy = await kept(bench)
    assert copy is not None
    (one,) = [one.session for one in copy.sessions]
    assert (len(one.title), one.message_count) == (200, 0)
    assert (one.mode, len(one.model or "")) == ("?", 200)


@pytest.mark.parametrize("desired", [Desired.ACTIVE, Desired.INACTIVE])
async def test_switched_off_it_removes_what_was_kept(desired: Desired) -> None:
    bench = await active()
    one = await say(bench, "hello")
    await look(bench)
    await bench.reach(desired)
    bench.reconciler._transcripts = replace(bench.reconciler._transcripts, wanted=False)
    await bench.store.poke(REF, bench.clock.now())
    await bench.loop.drain()
    assert await kept(bench) is None
    assert await said(bench, one) is None
    await bench.reach(Desired.INACTIVE)
    assert await kept(bench) is None


async def test_a_claim_that_was_lost_ends_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await active()
    await say(bench, "hello")
    verbs = bench.verbs()

    async def lost(*_args: Any, **_named: Any) -> None:
        monkeypatch.undo()
        raise LeaseLostError("Another worker has it.")

    monkeypatch.setattr(bench.store, "keep_transcript", lost)
    await bench.want(Desired.INACTIVE)
    claimed = await bench.reconciler.claim()
    assert claimed is not None
    await bench.reconciler.handle(claimed, Slot())
    assert bench.verbs() == verbs
