"""Turns with the real goose and the scripted model, through a real agentd."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.e2e.agentd_process import Agentd, agentd

from greylag.agentd.agent.types import find_agent
from greylag.agentd.model.scripted import UNICODE_TEXT

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.goose,
    pytest.mark.skipif(
        find_agent(None, os.environ).kind != "goose", reason="goose is not installed"
    ),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Agentd]:
    """One agentd, whose tools need no confirmation."""
    async with agentd(tmp_path_factory.mktemp("turns")) as one:
        yield one


async def ask(api: Agentd, message: str, session: str | None = None) -> list[dict[str, Any]]:
    return await api.events(await api.turn(message, session))


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(e["content"]["content"] for e in events if e["type"] == "message")


def numbered(events: list[dict[str, Any]]) -> bool:
    turn = events[0]["content"]["turn_id"]
    return [event["id"] for event in events] == [f"{turn}-{n}" for n in range(len(events))]


async def test_text_thinking_and_unicode_arrive_whole_and_in_order(api: Agentd) -> None:
    session = await api.session()
    events = await ask(api, "[[think I wonder]] [[text hello there]]", session)
    assert numbered(events)
    assert types(events) == ["turn", *["thinking"] * 2, *["message"] * 2, "complete"]
    assert text_of(events) == "hello there"
    assert text_of(await ask(api, "[[unicode]]", session)).strip() == UNICODE_TEXT.strip()
    _, history = await api.json("GET", f"/api/v1/sessions/{session}/messages")
    assert history["messages"][1]["content"] == "hello there"


async def test_tools_run_and_fail_as_the_shell_says(api: Agentd) -> None:
    events = await ask(api, "[[tool echo made > made.txt; echo done]]")
    assert (api.workspace / "made.txt").read_text() == "made\n"
    response = next(e["content"] for e in events if e["type"] == "tool_response")
    assert response["result"]["Ok"][0]["text"].startswith("done")
    events = await ask(api, "[[tool echo two; exit 3]]")
    response = next(e["content"] for e in events if e["type"] == "tool_response")
    assert response["is_error"] is True
    assert "exited with code 3" in response["result"]["Err"]
    assert types(events)[-1] == "complete"


async def test_a_tool_waits_for_the_user_s_word(tmp_path: Path) -> None:
    async with agentd(tmp_path, GOOSE_MODE="approve", GREYLAG_CONFIRMATION_TIMEOUT="1.5") as api:
        session = await api.session()
        for decision, runs in [("allow_once", True), ("reject_once", False), (None, False)]:
            made = api.workspace / f"{decision}.txt"
            turn = await api.turn(f"[[tool touch {made.name}]]", session)
            asked = await api.until(turn, "tool_confirmation")
            assert not made.exists()
            if decision is not None:
                path = f"/api/v1/turns/{turn}/confirmations/{asked['id']}"
                assert (await api.json("POST", path, {"decision": decision}))[0] == 200
            events = await api.events(turn)
            settled = next(e["content"] for e in events if e["type"] == "status")
            assert settled["decision"] == (decision or "reject_once")
            assert made.exists() is runs
            assert types(events)[-1] == "complete"


async def test_a_turn_can_be_cancelled_wherever_it_is(tmp_path: Path) -> None:
    async with agentd(tmp_path, GOOSE_MODE="approve") as api:
        session = await api.session()
        before = await api.turn("[[hang]]", session)
        await api.until(before, "turn")
        await cancelled_within(api, before, 2)
        during = await api.turn("[[text one two]] [[stall after=1]]", session)
        await api.until(during, "message")
        await cancelled_within(api, during, 2)
        asking = await api.turn("[[tool touch never.txt]]", session)
        await api.until(asking, "tool_confirmation")
        await cancelled_within(api, asking, 2)
        assert not (api.workspace / "never.txt").exists()
        assert text_of(await ask(api, "[[text still here]]", session)) == "still here"


async def test_a_cancelled_tool_is_killed_with_its_children(api: Agentd) -> None:
    turn = await api.turn("[[tool sleep 987 & sleep 987; wait]]")
    await api.until(turn, "tool_request")
    await sleepers(api, 1)
    await cancelled_within(api, turn, 3)
    await sleepers(api, 0)


async def test_ten_thousand_chunks_and_two_megabytes(api: Agentd) -> None:
    events = await ask(api, "[[chunks n=10000 size=5]]")
    assert types(events).count("message") == 10_000
    assert numbered(events)
    assert text_of(events) == "".join(f"{number:04} " for number in range(10_000))
    assert len(text_of(await ask(api, "[[bytes 2000000]]"))) == 2_000_000


async def test_two_sessions_answer_at_once_and_one_is_busy_alone(api: Agentd) -> None:
    first, second = await api.session(), await api.session()
    stalled = await api.turn("[[text one two]] [[stall after=1]]", first)
    await api.until(stalled, "message")
    assert text_of(await ask(api, "[[text meanwhile]]", second)) == "meanwhile"
    body = {"session_id": first, "message": "more"}
    status, refused = await api.json("POST", "/api/v1/turns", body)
    assert (status, refused["turn_id"]) == (409, stalled)
    await cancelled_within(api, stalled, 2)


async def test_tools_see_no_secret(tmp_path: Path) -> None:
    async with agentd(tmp_path, GREYLAG_MODEL_KEY="sk-very-secret") as api:
        # As another uid than root the tool could not read agentd's own environ either.
        others = "/proc/*/environ" if os.geteuid() else "/proc/$PPID/environ"
        command = f"env > env.txt; cat {others} >> env.txt 2>/dev/null; :"
        await ask(api, f"[[tool {command}]]")
        seen = (api.workspace / "env.txt").read_text(errors="replace")
        assert "OPENAI_HOST" in seen
        assert "sk-very-secret" not in seen
        assert "test-token" not in seen


async def cancelled_within(api: Agentd, turn: str, seconds: float) -> None:
    await api.json("POST", f"/api/v1/turns/{turn}/cancel")
    async with asyncio.timeout(seconds):
        events = await api.events(turn)
    assert events[-1]["type"] == "complete"
    assert events[-1]["content"]["stop_reason"] == "cancelled"


async def sleepers(api: Agentd, least: int) -> None:
    """Wait until at least one sleep runs, or (0) until none does."""
    async with asyncio.timeout(10):
        while True:
            found = [p for p in api.others() if "987" in p.cmdline()]
            if (len(found) >= least) if least else not found:
                return
            await asyncio.sleep(0.05)
