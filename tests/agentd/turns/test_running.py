import asyncio
import gc
import json
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import AsyncMock

import pytest
from tests.agentd.doubles import chunk

from greylag.agentd.agent.types import PermissionRequest
from greylag.agentd.journal.journal import JournalFullError, TurnJournal
from greylag.agentd.records import new_turn
from greylag.agentd.turns.events import TurnEvent
from greylag.agentd.turns.running import RunningTurn, TurnPolicy
from greylag.common import sse
from greylag.common.agent_api import MOST_EVENT

REQUEST = PermissionRequest("call", "shell", {})


class Start(Protocol):
    def __call__(self, timeout: float, limit: int = ...) -> RunningTurn: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a turn, which holds its confirmations open for this many seconds."""
    turns: list[RunningTurn] = []

    def start(timeout: float, limit: int = 10_000) -> RunningTurn:
        record = new_turn("s", "hello", None, 1.0)
        journal = TurnJournal(tmp_path / "journal.sse", record.turn_id, limit)
        turns.append(RunningTurn(record, journal, TurnPolicy(timeout, lambda: None, AsyncMock())))
        return turns[-1]

    yield start
    for turn in turns:
        turn.journal.publish_end()


def events_of(folder: Path) -> list[dict[str, Any]]:
    frames = sse.FrameSplitter().feed((folder / "journal.sse").read_bytes())
    return [json.loads(frame.data) for raw in frames if (frame := sse.parse(raw))]


async def asked(folder: Path) -> str:
    """Return the id of the confirmation that is asked for."""
    async with asyncio.timeout(10):
        while not events_of(folder):  # noqa: ASYNC110 - a few rounds of the loop
            await asyncio.sleep(0)
    event = events_of(folder)[0]
    assert event["type"] == "tool_confirmation"
    return str(event["content"]["id"])


def fill(turn: RunningTurn) -> None:
    """Leave no room in the turn's journal."""
    with suppress(JournalFullError):
        while True:
            turn.emit(TurnEvent("status", {}))


async def test_an_answer_that_cannot_be_told_runs_no_tool_and_ends_the_turn(
    start: Start, tmp_path: Path
) -> None:
    turn = start(60)
    asking = asyncio.create_task(turn.permission(REQUEST))
    confirmation_id = await asked(tmp_path)
    fill(turn)
    assert turn.answer(confirmation_id, "allow_once") == "cancelled"
    with pytest.raises(JournalFullError):
        await asking
    assert turn.decisions == {confirmation_id: "cancelled"}


async def test_who_waits_for_news_hears_of_a_question_and_of_its_answer(
    start: Start, tmp_path: Path
) -> None:
    turn = start(60)
    heard: list[bool] = []
    turn._asked = lambda: heard.append(turn.question is not None)
    asking = asyncio.create_task(turn.permission(REQUEST))
    confirmation_id = await asked(tmp_path)
    assert heard == [True]
    assert turn.answer(confirmation_id, "allow_once") == "allow_once"
    assert heard == [True, False]
    assert await asking == "allow_once"


async def test_a_question_that_cannot_be_told_is_never_open(start: Start) -> None:
    turn = start(60)
    fill(turn)
    with pytest.raises(JournalFullError):
        await turn.permission(REQUEST)
    turn.cancel_confirmations()
    assert turn.decisions == {}


async def test_the_end_of_a_turn_settles_what_is_open_even_when_it_cannot_be_told(
    start: Start, tmp_path: Path
) -> None:
    turn = start(60)
    asking = asyncio.create_task(turn.permission(REQUEST))
    confirmation_id = await asked(tmp_path)
    fill(turn)
    turn.cancel_confirmations()
    with pytest.raises(JournalFullError):
        await asking
    assert turn.answer(confirmation_id, "allow_once") == "cancelled"


async def test_of_answer_timeout_and_end_the_first_one_counts(start: Start, tmp_path: Path) -> None:
    turn = start(0.001)
    assert await turn.permission(REQUEST) == "reject_once"
    confirmation_id = await asked(tmp_path)
    assert turn.answer(confirmation_id, "allow_once") == "reject_once"
    turn.cancel_confirmations()
    await turn.journal.seal()
    assert [event["type"] for event in events_of(tmp_path)] == ["tool_confirmation", "status"]


async def test_a_question_whose_asking_was_given_up_is_cancelled_with_its_turn(
    start: Start, tmp_path: Path
) -> None:
    turn = start(60)
    asking = asyncio.create_task(turn.permission(REQUEST))
    confirmation_id = await asked(tmp_path)
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    assert turn.decisions == {}
    turn.finish(None, None, None)
    await turn.journal.seal()
    assert turn.decisions == {confirmation_id: "cancelled"}
    assert [event["type"] for event in events_of(tmp_path)][1:] == ["status", "complete"]


async def test_a_turn_remembers_no_more_than_its_journal_keeps(
    start: Start, tmp_path: Path
) -> None:
    turn = start(60, limit=1 << 20)
    for _ in range(3):
        await turn.update(chunk("x" * (MOST_EVENT + 1)))
    await turn.journal.seal()
    told = [event["content"]["content"] for event in events_of(tmp_path)]
    assert turn.summary.outcome().answer == "".join(told)
    assert len(turn.summary.outcome().answer) < 1 << 20


class Arguments(dict[str, Any]):
    """Arguments that can be seen to go."""


async def test_a_question_keeps_no_more_than_what_is_shown_of_it(
    start: Start, tmp_path: Path
) -> None:
    turn = start(60)
    given = Arguments(command="ls")
    seen = weakref.ref(given)
    asking = asyncio.create_task(turn.permission(PermissionRequest("call", "shell", given)))
    del given
    await asked(tmp_path)
    gc.collect()
    assert seen() is None
    assert turn.question is not None
    assert turn.question.arguments == '{"command": "ls"}'
    turn.cancel_confirmations()
    assert await asking == "cancelled"
