"""Sessions that nobody uses are closed in the agent, and what waits for a close that goes on."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from tests.agentd.doubles import eventually

from greylag.agentd.agent import open_sessions
from greylag.agentd.agent.acp import AcpPeer
from greylag.agentd.agent.agent import Agent
from greylag.agentd.agent.extensions import ExtensionStarter
from greylag.agentd.agent.open_sessions import OpenSessions
from greylag.agentd.agent.types import AgentCommand, AgentDiedError, AgentRefusedError
from greylag.common.concurrent import beside


class Goose(AcpPeer):
    """A peer that keeps what it is asked for; it answers, fails or hangs as it is told."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failures: list[Exception] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def request(self, method: str, params: dict[str, Any]) -> Any:
        self.asked.append(f"{method.rpartition('/')[2]} {params['sessionId']}")
        await self.answers.wait()
        if self.failures:
            raise self.failures.pop(0)


@pytest.fixture
def goose() -> Goose:
    return Goose()


@pytest.fixture
async def sessions(goose: Goose, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenSessions]:
    """Give what keeps two sessions open."""
    monkeypatch.setattr(open_sessions, "MOST_OPEN", 2)
    told: list[str] = []
    some = OpenSessions()
    async with beside(some.run(goose, told.append), "closing"):
        yield some
    assert told == [line.removeprefix("archive ") for line in goose.asked if line[0] == "a"]


async def rounds() -> None:
    """Let all run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def closed(*names: str) -> list[str]:
    return [f"{method} {name}" for name in names for method in ("archive", "unarchive")]


async def test_the_session_unused_for_longest_is_closed_when_there_are_too_many(
    sessions: OpenSessions, goose: Goose
) -> None:
    for name in ("a", "b", "a"):
        sessions.opened(name)
    await rounds()
    assert goose.asked == []
    sessions.opened("c")
    await rounds()
    assert goose.asked == closed("b")
    sessions.opened("b")
    sessions.forget("c")  # it was put away: there is room for one more
    sessions.opened("d")
    await rounds()
    assert goose.asked == closed("b", "a")


async def test_none_is_closed_that_is_used_and_each_that_is_too_many_once_it_is_not(
    sessions: OpenSessions, goose: Goose
) -> None:
    with sessions.held("a"):
        with sessions.held("b"), sessions.held("c"):
            with sessions.held("b"):
                sessions.opened("d")
            await rounds()
            assert goose.asked == closed("d")
            sessions.forget("b")  # as when it is deleted while a turn still ends
            await rounds()
            assert goose.asked == closed("d")
        await rounds()
        assert goose.asked == closed("d", "c")


async def test_who_comes_to_a_session_that_is_being_closed_waits_for_that_alone(
    sessions: OpenSessions, goose: Goose
) -> None:
    goose.answers.clear()
    for name in ("a", "b", "c"):
        sessions.opened(name)
    await rounds()
    with sessions.held("a"), sessions.held("b"):
        await sessions.settled("b")
        async with beside(sessions.settled("a"), "waiting") as waiting:
            await rounds()
            assert not waiting.done()
            goose.answers.set()
            await rounds()
            assert waiting.done()
    assert goose.asked[:2] == closed("a")


@pytest.mark.parametrize(
    "failure", [AgentRefusedError(-32601, "no such method"), AgentDiedError("gone"), None]
)
async def test_a_close_that_fails_or_hangs_is_given_up_until_the_next_use(
    sessions: OpenSessions, goose: Goose, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_sessions, "_CLOSE_SECONDS", 0.01)
    if failure is None:
        goose.answers.clear()
    else:
        goose.failures.append(failure)
    for name in ("a", "b", "c"):
        sessions.opened(name)
    await rounds()
    async with asyncio.timeout(5):
        await sessions.settled("a")
    goose.answers.set()
    sessions.opened("b")
    await rounds()
    assert goose.asked == ["archive a"]
    sessions.opened("a")
    await rounds()
    assert goose.asked == ["archive a", *closed("c")]


async def test_an_agent_that_ends_during_a_close_keeps_nobody_waiting() -> None:
    goose, sessions = Goose(), OpenSessions()
    goose.answers.clear()
    async with beside(sessions.run(goose, Mock()), "closing"):
        for name in range(open_sessions.MOST_OPEN + 1):
            sessions.opened(str(name))
        await rounds()
        assert goose.asked == ["archive 0"]
    await sessions.settled("0")


async def test_a_session_whose_extension_is_still_starting_is_not_closed(
    sessions: OpenSessions, goose: Goose
) -> None:
    started = asyncio.Event()
    entry = {"enabled": True, "configKey": "slow", "extension": {"type": "mcp"}}

    async def request(method: str, _params: object) -> dict[str, Any]:
        if method.endswith("/add"):
            await started.wait()
        return {"extensions": [entry]}

    extensions = ExtensionStarter(sessions.held)
    assert await extensions.open(Mock(request=request), AsyncMock(return_value=("a", {}))) == "a"
    for name in ("a", "b", "c", "d"):
        sessions.opened(name)
        await rounds()
    assert goose.asked == closed("b", "c")
    started.set()
    await rounds()
    for name in ("e", "f"):
        sessions.opened(name)
        await rounds()
    assert goose.asked == closed("b", "c", "d", "a")


AGENT = """
import json, sys

sessions, held = 0, []


def answer(message, result):
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)


for line in sys.stdin:
    message = json.loads(line)
    method, session = message["method"], message["params"].get("sessionId")
    with open("said", "a") as said:
        print(method.rpartition("/")[2], session, file=said)
    match method:
        case "session/new":
            sessions += 1
            answer(message, {"sessionId": f"s{sessions}"})
        case "_goose/unstable/session/archive":
            held.append(message)
        case "release":
            for one in held:
                answer(one, {})
            answer(message, {})
        case "_goose/unstable/config/extensions/list":
            answer(message, {"extensions": []})
        case _:
            answer(message, {"value": "1"})
"""
"""An agent that answers an archive only with the next ``release``."""


@pytest.fixture
async def agent(
    start_agent: Callable[..., Awaitable[Agent]], monkeypatch: pytest.MonkeyPatch
) -> Agent:
    """Give an agent that is closing its session s2 (s1 was its proof that it is ready)."""
    monkeypatch.setattr(open_sessions, "MOST_OPEN", 1)
    monkeypatch.setattr(open_sessions, "_CLOSE_SECONDS", 3600.0)
    agent = await start_agent(AgentCommand("goose", (sys.executable, "-I", "-c", AGENT)))
    assert [await agent.new_session(title) for title in "ab"] == ["s2", "s3"]
    await eventually(lambda: "archive s2" in said(agent))
    return agent


def said(agent: Agent) -> list[str]:
    return (agent._setup.workspace / "said").read_text().splitlines()


def of_the_closed(agent: Agent) -> list[str]:
    return [line.removesuffix(" s2") for line in said(agent) if line.endswith(" s2")]


async def released(agent: Agent) -> None:
    """Let the close end, once all that can be said to the agent is said."""
    await rounds()
    await agent.call("probe", {})
    assert of_the_closed(agent) == ["archive"]
    await agent.call("release", {})


async def test_a_turn_that_begins_while_its_session_is_closed_goes_on_after_that(
    agent: Agent, make_sink: Any
) -> None:
    async def turn() -> None:
        await agent.configure("s2", {"mode": "auto"})
        await agent.prompt("s2", "hello", make_sink())

    async with beside(turn(), "turn") as ending, asyncio.timeout(20):
        await agent.prompt("s3", "others do not wait", make_sink())
        await released(agent)
        await ending
    assert of_the_closed(agent) == ["archive", "unarchive", "set_config_option", "prompt"]


async def test_a_session_is_put_away_though_it_is_being_closed(agent: Agent) -> None:
    async with beside(agent.forget_session("s2"), "deletion") as ending, asyncio.timeout(20):
        await released(agent)
        await eventually(lambda: of_the_closed(agent) == ["archive", "unarchive", "archive"])
        await agent.call("release", {})
        await ending


async def test_a_cancel_does_not_wait_for_a_close(agent: Agent, make_sink: Any) -> None:
    async with asyncio.timeout(20):
        prompt = asyncio.create_task(agent.prompt("s2", "hello", make_sink()))
        await rounds()
        await agent.cancel("s2")
        assert (await prompt).stop_reason == "cancelled"
    assert of_the_closed(agent) == ["archive"]


async def test_an_agent_that_dies_during_a_close_is_started_again_with_that_session(
    agent: Agent, make_sink: Any
) -> None:
    async with asyncio.timeout(20):
        prompt = asyncio.create_task(agent.prompt("s2", "hello", make_sink()))
        await rounds()
        assert agent._process is not None
        os.kill(agent._process.remote.pid, signal.SIGKILL)
        with pytest.raises(AgentDiedError):
            await prompt
        await agent.wait_ready(20)
        await agent.prompt("s2", "hello", make_sink())
    assert of_the_closed(agent) == ["archive", "prompt"]
