import asyncio
from pathlib import Path
from typing import NoReturn
from unittest.mock import AsyncMock

import pytest
from tests.agentd.doubles import AgentDouble, chunk, serving

from greylag.agentd.agent.types import PromptResult, TurnSink
from greylag.agentd.changes.capture import Capture
from greylag.agentd.changes.service import ChangeService
from greylag.agentd.changes.store import SnapshotStore
from greylag.agentd.execution import Execution
from greylag.agentd.journal.folder import Journals, repair
from greylag.agentd.journal.journal import event_id
from greylag.agentd.main import _end
from greylag.agentd.records import Records, TurnRecord
from greylag.agentd.turns.engine import TurnEngine
from greylag.agentd.turns.running import TurnPolicy
from greylag.common import sse

OPEN_TURN = TurnRecord("t", "s", "m", "hello", "running", "", 0, None, None, None, 1.0, None)
MESSAGE = ("message", {"content": "partial "})
TOOL = ("tool_request", {"id": "x"})
COMPLETE = ("complete", {"stop_reason": "end_turn"})


def frames(*events: tuple[str, dict[str, str]]) -> list[bytes]:
    return [
        sse.encode({"type": kind, "content": content}, id=event_id("t", number))
        for number, (kind, content) in enumerate(events)
    ]


def kinds_of(path: Path) -> list[str]:
    kinds: list[str] = []
    repair(path, "t", lambda kind, _: kinds.append(kind))
    return kinds


async def recovered(folder: Path, journal: bytes | None) -> TurnRecord:
    """Recover one turn that a crash left with this journal; return its record."""
    if journal is not None:
        (folder / "t.sse").write_bytes(journal)
    records = await Records.open(folder / "agentd.db")
    await records.turns.start(OPEN_TURN, "a session")
    journals = Journals(folder, 1 << 20, 1 << 30)
    now = iter([1.0, 2.0])
    policy = TurnPolicy(60, lambda: None, AsyncMock(), lambda: next(now))
    store = SnapshotStore(folder / "snapshots.db", 1 << 20)
    capture = Capture(Execution(folder / "execd"), folder, store)
    changes = ChangeService(store, capture, records.turns.forget)
    engine = TurnEngine(AgentDouble(), records, journals, asyncio.TaskGroup(), policy, changes)
    assert await engine.recover() == 1
    assert await engine.recover() == 0
    turn = await records.turns.get("t")
    await records.aclose()
    assert turn is not None
    return turn


@pytest.mark.parametrize("waits_for", ["the state before", "the state after"])
async def test_a_stop_ends_a_turn_that_waits_for_the_workspace_s_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits_for: str
) -> None:
    for name in ("_LISTED_WITHIN", "_READ_WITHIN", "_END_WITHIN"):
        monkeypatch.setattr(f"greylag.agentd.changes.service.{name}", 3600.0)
    for name in ("_TURNS_END_WITHIN", "_KILLED_TURNS_END_WITHIN"):
        monkeypatch.setattr(f"greylag.agentd.main.{name}", 0.1)
    waiting = asyncio.Event()

    async def never(_listed: object = None) -> NoReturn:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(tmp_path) as api:
        services = api.services

        async def answer(_agent: AgentDouble, _text: str, sink: TurnSink) -> PromptResult:
            monkeypatch.setattr(services.changes._capture, "take", never)
            await sink.update(chunk("whole answer"))
            return PromptResult("end_turn", None)

        api.agent.script = answer
        if waits_for == "the state before":
            monkeypatch.setattr(services.changes._capture, "take", never)
        turn_id = (await services.turns.start(None, "hello")).turn.turn_id
        await waiting.wait()
        agent_task = asyncio.create_task(asyncio.sleep(3600), name="agent")
        await _end(services.turns, services.changes, agent_task)
        async with asyncio.timeout(10):
            turn = await services.turns.wait_ended(turn_id)
        answered = ("completed", "whole answer")
        unsent = ("cancelled", "")
        expected = unsent if waits_for == "the state before" else answered
        assert (turn.status, turn.answer) == expected
        kinds: list[str] = []
        repair(services.turns._journals.path(turn_id), turn_id, lambda kind, _: kinds.append(kind))
        assert kinds[-1] == "complete"


async def test_a_turn_cut_in_a_frame_keeps_what_was_whole_and_ends_with_an_error(
    tmp_path: Path,
) -> None:
    whole = frames(("turn", {}), MESSAGE, TOOL, MESSAGE)
    turn = await recovered(tmp_path, b"".join(whole[:3]) + whole[3][:-1])
    assert (turn.status, turn.error_code, turn.ended_at) == ("error", "agent_restarted", 2.0)
    assert (turn.answer, turn.tool_calls_count) == ("partial ", 1)
    data = (tmp_path / "t.sse").read_bytes()
    assert data.startswith(b"".join(whole[:3]))
    ids = [sse.parse(frame) for frame in sse.FrameSplitter().feed(data)]
    assert [frame.id for frame in ids if frame] == [event_id("t", n) for n in range(5)]
    kinds = kinds_of(tmp_path / "t.sse")
    assert kinds[-2:] == ["error", "complete"]


async def test_a_turn_whose_end_was_written_ended_as_it_says(tmp_path: Path) -> None:
    journal = b"".join(frames(("turn", {}), MESSAGE, COMPLETE))
    turn = await recovered(tmp_path, journal)
    assert (turn.status, turn.stop_reason, turn.answer) == ("completed", "end_turn", "partial ")
    assert (tmp_path / "t.sse").read_bytes() == journal


@pytest.mark.parametrize("journal", [None, b"", b"id: t-0\ndata: {"])
async def test_a_turn_without_any_event_still_gets_all_it_needs(
    tmp_path: Path, journal: bytes | None
) -> None:
    turn = await recovered(tmp_path, journal)
    assert turn.status == "error"
    assert kinds_of(tmp_path / "t.sse") == ["turn", "error", "complete"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 5000 + frames(("turn", {}), MESSAGE)[1],
        b"id: t-1\ndata: 5\n\n",
        b'id: t-1\ndata: {"type": "message", "content": {}}\n\n',
        b"id: t-1\ndata: {\n\n",
        b"id: t-1\ndata: " + b"[" * 100_000 + b"\n\n",
        frames(MESSAGE)[0].replace(b"t-0", b"u-1"),
        frames(("turn", {}), MESSAGE, COMPLETE)[2],
    ],
    ids=["zeros", "a number", "no text", "no JSON", "deep", "another turn's", "a gap"],
)
async def test_what_is_no_event_of_the_turn_is_cut_off_with_all_that_follows(
    tmp_path: Path, garbage: bytes
) -> None:
    begin = frames(("turn", {}))[0]
    turn = await recovered(tmp_path, begin + garbage + begin)
    assert (turn.status, turn.error_code, turn.answer) == ("error", "agent_restarted", "")
    assert kinds_of(tmp_path / "t.sse") == ["turn", "error", "complete"]


async def test_a_journal_that_cannot_be_written_does_not_keep_agentd_from_starting(
    tmp_path: Path,
) -> None:
    (tmp_path / "t.sse").mkdir()
    turn = await recovered(tmp_path, None)
    assert (turn.status, turn.error_code) == ("error", "agent_restarted")


async def test_events_of_a_deleted_turn_go_where_a_crash_kept_them(tmp_path: Path) -> None:
    (tmp_path / "deleted.sse").write_bytes(b"what was said")
    await recovered(tmp_path, None)
    assert not (tmp_path / "deleted.sse").exists()
    assert (tmp_path / "t.sse").exists()
