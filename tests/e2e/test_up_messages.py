"""Every kind of message through the whole product: web, agentd, real goose, scripted model."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from standardwebhooks.webhooks import Webhook
from tests.delivery.receiver import Receiver
from tests.e2e.product import (
    Event,
    Product,
    RefusedError,
    ids_of,
    product,
    real_goose,
    text_of,
    types_of,
)

from greylag.agentd.model.scripted import UNICODE_TEXT

pytestmark = [*real_goose, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Product, str]]:
    """One Greylag with an active project, whose tools need no confirmation."""
    async with product(tmp_path_factory.mktemp("messages"), GOOSE_MODE="auto") as up:
        yield up, await up.project("demo")


Running = tuple[Product, str]


async def test_text_and_thinking_come_chunk_by_chunk_in_order(running: Running) -> None:
    up, path = running
    events = await up.say(path, "[[think I wonder]] [[text hello there]]")
    assert types_of(events) == ["turn", "thinking", "thinking", "message", "message", "complete"]
    turn = events[0].content["turn_id"]
    assert ids_of(events) == [f"{turn}-{number}" for number in range(len(events))]
    assert text_of(events) == "hello there"


async def test_extensions_and_settings_pass_through_the_platform(running: Running) -> None:
    up, path = running
    status, extensions = await up.call("GET", f"{path}/extensions")
    assert status == 200
    assert "developer" in {one["name"] for one in extensions["extensions"] if one["enabled"]}
    status, settings = await up.call("GET", f"{path}/settings")
    assert status == 200
    (mode,) = (one for one in settings["settings"] if one["key"] == "GOOSE_MODE")
    assert (mode["value"], mode["env_override"]) == ("auto", "auto")
    turns = f"{path}/settings/GOOSE_MAX_TURNS"
    status, changed = await up.call("PUT", turns, {"value": 7})
    assert (status, changed["value"]) == (200, 7)
    assert (await up.call("GET", turns))[1]["value"] == 7
    status, reset = await up.call("DELETE", turns)
    assert (status, reset["key"]) == (200, "GOOSE_MAX_TURNS")
    refused = [
        await up.call("PUT", turns, {"value": "many"}),
        await up.call("PUT", turns, {"value": "x" * 70_000}),
        await up.call("PUT", f"{path}/settings/GOOSE_MODE", {"value": "approve"}),
        await up.call("GET", f"{path}/settings/NOTHING"),
    ]
    assert [(status, problem["code"]) for status, problem in refused] == [
        (422, "invalid_request"),
        (413, "too_large"),
        (422, "invalid_request"),
        (404, "not_found"),
    ]


async def test_characters_split_across_chunks_arrive_whole(running: Running) -> None:
    up, path = running
    assert text_of(await up.say(path, "[[unicode]]")).strip() == UNICODE_TEXT.strip()


async def test_a_tool_runs_and_a_failed_one_is_told(running: Running) -> None:
    up, path = running
    events = await up.say(path, "[[tool echo made > made.txt; echo done]]")
    assert (up.volume("demo") / "workspace" / "made.txt").read_text() == "made\n"
    assert "tool_request" in types_of(events)
    failed = await up.say(path, "[[tool echo two; exit 3]]")
    response = next(event.content for event in failed if event.type == "tool_response")
    assert response["is_error"] is True
    assert "exited with code 3" in response["result"]["Err"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("[[status 401]]", "model_unauthorized"),
        ("[[status 429]]", "model_rate_limited"),
        ("[[status 500]]", "model_unavailable"),
        ("[[text one two three]] [[cut after=2]]", "model_unavailable"),
        ("[[empty]]", "model_empty_response"),
    ],
)
async def test_a_failing_provider_is_an_error_with_its_code(
    running: Running, message: str, code: str
) -> None:
    up, path = running
    events = await up.say(path, message)
    assert types_of(events)[-2:] == ["error", "complete"]
    assert events[-2].content["code"] == code
    assert events[-2].content["hint"]


async def test_a_turn_is_cancelled_before_and_during_its_answer(running: Running) -> None:
    up, path = running
    for message, kind in [("[[hang]]", "turn"), ("[[text a b]] [[stall after=1]]", "message")]:
        seen = await up.first(path, kind, message)
        turn = str(seen.id).rpartition("-")[0]
        assert (await up.call("POST", f"{path}/turns/{turn}/cancel"))[0] == 200
        events = await up.rest_of(path, turn)
        assert events[-1].content["stop_reason"] == "cancelled"


async def test_ten_thousand_chunks_and_two_megabytes_lose_nothing(running: Running) -> None:
    up, path = running
    events = await up.say(path, "[[chunks n=10000 size=5]]")
    assert text_of(events) == "".join(f"{number:04} " for number in range(10_000))
    turn = events[0].content["turn_id"]
    assert ids_of(events) == [f"{turn}-{number}" for number in range(len(events))]
    assert len(text_of(await up.say(path, "[[bytes 2000000]]"))) == 2_000_000


async def test_two_sessions_answer_at_once_and_a_busy_one_refuses(running: Running) -> None:
    up, path = running
    stalled = await up.first(path, "message", "[[text one two]] [[stall after=1]]")
    turn = str(stalled.id).rpartition("-")[0]
    session = (await up.call("GET", f"{path}/turns/{turn}"))[1]["session_id"]
    assert text_of(await up.say(path, "[[text meanwhile]]")) == "meanwhile"
    with pytest.raises(RefusedError) as busy:
        await up.say(path, "more", session_id=session)
    assert busy.value.status == 409
    await up.call("POST", f"{path}/turns/{turn}/cancel")
    await up.rest_of(path, turn)


async def test_the_same_message_id_is_one_turn(running: Running) -> None:
    up, path = running
    message = "[[text once only]]"
    answers = await asyncio.gather(*(up.say(path, message, message_id="same") for _ in range(5)))
    assert len({tuple(ids_of(events)) for events in answers}) == 1
    assert {text_of(events) for events in answers} == {"once only"}


async def test_confirmations_are_allowed_declined_and_declined_when_nobody_answers(
    tmp_path: Path,
) -> None:
    settings = {"GOOSE_MODE": "approve", "GREYLAG_CONFIRMATION_TIMEOUT": "1.5"}
    async with (
        Receiver().serving() as receiver,
        product(tmp_path, **settings, GREYLAG_NOTIFICATION_HOSTS=f"http://{receiver.host}") as up,
    ):
        hook = {"name": "Chat", "url": f"http://{receiver.host}/hook"}
        added = await up.call("POST", "/api/users/me/notifications/webhooks", hook)
        path = await up.project("demo")
        turns = []
        for decision in ("allow_once", "reject_once", None):
            made = up.volume("demo") / "workspace" / f"{decision}.txt"
            asked = await up.first(path, "tool_confirmation", f"[[tool touch {made.name}]]")
            turn = str(asked.id).rpartition("-")[0]
            turns.append(turn)
            assert not made.exists()
            if decision is not None:
                answer = f"{path}/turns/{turn}/confirmations/{asked.content['id']}"
                assert (await up.call("POST", answer, {"decision": decision}))[0] == 204
            events = await up.rest_of(path, turn)
            assert _decision(events) == (decision or "reject_once")
            assert made.exists() is (decision == "allow_once")
            assert events[-1].type == "complete"
        # Nobody looked at a page meanwhile, and a webhook was told of it all.
        told = await _told(receiver, Webhook(added[1]["secret"]), 3)
        # In any order: each is told by itself.
        assert sorted(turn for kind, turn in told if kind == "turn.ended") == sorted(turns)
        assert ("turn.asks", turns[-1]) in told


async def _told(receiver: Receiver, hook: Webhook, ends: int) -> list[tuple[str, str]]:
    """Return the types and turns of what a webhook was told, once so many turns have ended."""
    async with asyncio.timeout(20):
        while True:
            receiver.news.clear()
            said = [hook.verify(body, dict(asked.headers)) for asked, body in receiver.got]
            told = [(one["type"], one["data"]["turn"]) for one in said]
            if sum(kind == "turn.ended" for kind, _ in told) >= ends:
                return told
            await receiver.news.wait()


def _decision(events: list[Event]) -> str:
    return next(str(e.content["decision"]) for e in events if "decision" in e.content)
