import asyncio

import pytest

from greylag.agentd.agent.types import PermissionRequest
from greylag.agentd.journal.journal import JournalFullError
from greylag.agentd.turns.run import Confirmations
from greylag.agentd.turns.translate import TurnEvent

REQUEST = PermissionRequest("call", "shell", {})


class Events:
    """Keeps events until it is full."""

    def __init__(self) -> None:
        self.kept: list[TurnEvent] = []
        self.full = False

    def emit(self, event: TurnEvent) -> None:
        if self.full:
            raise JournalFullError("full")
        self.kept.append(event)

    async def asked(self) -> str:
        while not self.kept:  # noqa: ASYNC110 - a few rounds of the loop
            await asyncio.sleep(0)
        return str(self.kept[0].content["id"])


def question(confirmation_id: str, _request: PermissionRequest) -> TurnEvent:
    return TurnEvent("tool_confirmation", {"id": confirmation_id})


async def test_an_answer_that_cannot_be_told_runs_no_tool_and_ends_the_turn() -> None:
    events = Events()
    confirmations = Confirmations(events.emit, timeout=60)
    asking = asyncio.create_task(confirmations.ask(REQUEST, question))
    confirmation_id = await events.asked()
    events.full = True
    assert confirmations.answer(confirmation_id, "allow_once") == "settled_otherwise"
    with pytest.raises(JournalFullError):
        await asking
    assert confirmations.decisions == {confirmation_id: "cancelled"}


async def test_a_question_that_cannot_be_told_is_never_open() -> None:
    events = Events()
    events.full = True
    confirmations = Confirmations(events.emit, timeout=60)
    with pytest.raises(JournalFullError):
        await confirmations.ask(REQUEST, question)
    confirmations.cancel_all()
    assert confirmations.decisions == {}


async def test_the_end_of_a_turn_settles_what_is_open_even_when_it_cannot_be_told() -> None:
    events = Events()
    confirmations = Confirmations(events.emit, timeout=60)
    asking = asyncio.create_task(confirmations.ask(REQUEST, question))
    confirmation_id = await events.asked()
    events.full = True
    confirmations.cancel_all()
    with pytest.raises(JournalFullError):
        await asking
    assert confirmations.answer(confirmation_id, "allow_once") == "settled_otherwise"


async def test_of_answer_timeout_and_end_the_first_one_counts() -> None:
    events = Events()
    confirmations = Confirmations(events.emit, timeout=0.001)
    assert await confirmations.ask(REQUEST, question) == "reject_once"
    confirmation_id = await events.asked()
    assert confirmations.answer(confirmation_id, "allow_once") == "settled_otherwise"
    confirmations.cancel_all()
    assert [event.type for event in events.kept] == ["tool_confirmation", "status"]
