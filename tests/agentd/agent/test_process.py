"""The agent's process: found, started clean, and killed with all it made."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from greylag.agentd.agent import agent as agent_module
from greylag.agentd.agent import process
from greylag.agentd.agent.agent import Agent
from greylag.agentd.agent.process import AgentProcess, agent_environment
from greylag.agentd.agent.types import (
    AgentCommand,
    AgentDiedError,
    AgentSetup,
    AgentStarvedError,
    AgentUnavailableError,
    find_agent,
    harmless_variables,
)
from greylag.agentd.execution import Execution


class Deaf:
    """Takes what an agent says, and does nothing."""

    async def notification(self, method: str, params: dict[str, Any]) -> None:
        pass

    async def request(self, request_id: str | int, method: str, params: dict[str, Any]) -> None:
        pass


def program(folder: Path, name: str = "goose") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_goose_that_is_named_is_taken(tmp_path: Path) -> None:
    goose = program(tmp_path / "named")
    assert find_agent(str(goose), {}) == AgentCommand("goose", (str(goose), "acp"))


def test_a_named_goose_that_cannot_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(AgentUnavailableError, match="GREYLAG_GOOSE=/nowhere/goose"):
        find_agent("/nowhere/goose", {"PATH": str(tmp_path)})


def test_goose_is_looked_for_beside_python_then_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = program(tmp_path / "path")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    environ = {"PATH": str(tmp_path / "path")}
    assert find_agent(None, environ).argv[0] == str(on_path)
    beside = program(tmp_path / "venv")
    assert find_agent(None, environ).argv[0] == str(beside)


def test_without_goose_the_scripted_agent_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert find_agent(None, {"PATH": str(tmp_path)}).kind == "scripted"
    assert find_agent("scripted", {}).kind == "scripted"


def test_the_environment_is_built_from_nothing(tmp_path: Path) -> None:
    setup = AgentSetup(tmp_path, tmp_path / "h", tmp_path / "t", settings={"GOOSE_MODE": "auto"})
    ours = {"PATH": "/bin", "LC_ALL": "C", "LANG": "C", "SECRET": "x", "OPENAI_API_KEY": "y"}
    built = agent_environment(setup, ours, "http://127.0.0.1:1", "token")
    env = {**harmless_variables(ours), **built}
    assert {"PATH": "/bin", "LC_ALL": "C", "LANG": "C", "GOOSE_MODE": "auto"}.items() <= env.items()
    assert env["OPENAI_API_KEY"] == "token"
    assert env["HOME"] == str(tmp_path / "h")
    assert "SECRET" not in env
    assert "GREYLAG_ENVIRONMENT" not in env


def test_tools_get_the_way_out_but_no_password(tmp_path: Path) -> None:
    ours = {
        "HTTPS_PROXY": "http://ann:hunter2@p.test",
        "http_proxy": "http://p.test:1",
        "NO_PROXY": "10.0.0.0/8",
        "SSL_CERT_FILE": "/etc/greylag/authorities.pem",
    }
    setup = AgentSetup(tmp_path, tmp_path, tmp_path, model_timeout=700.5)
    env = agent_environment(setup, ours, "http://127.0.0.1:1", "token")
    assert "hunter2" not in str(env)
    assert env["HTTP_PROXY"] == env["http_proxy"] == "http://p.test:1"
    # goose reaches the relay straight.
    assert env["NO_PROXY"] == env["no_proxy"] == "10.0.0.0/8,localhost,127.0.0.1,::1"
    assert env["SSL_CERT_FILE"] == env["REQUESTS_CA_BUNDLE"] == ours["SSL_CERT_FILE"]
    assert env["OPENAI_TIMEOUT"] == "761"
    alone = {"HTTPS_PROXY": ours["HTTPS_PROXY"], "NO_PROXY": "*"}
    assert not {"NO_PROXY", "HTTPS_PROXY"} & agent_environment(setup, alone, "u", "t").keys()


async def test_a_program_that_is_not_there_is_told(tmp_path: Path, execution: Execution) -> None:
    setup = AgentSetup(tmp_path, tmp_path, tmp_path)
    with pytest.raises(AgentUnavailableError, match="cannot be started"):
        await AgentProcess.start(execution, AgentCommand("goose", ("/nowhere/goose",)), setup, {})


async def test_an_execd_that_is_not_there_is_told(tmp_path: Path) -> None:
    setup = AgentSetup(tmp_path, tmp_path, tmp_path)
    nobody = Execution(tmp_path / "nobody")
    with pytest.raises(AgentUnavailableError, match="cannot be started: execd cannot be reached"):
        await AgentProcess.start(nobody, AgentCommand("goose", ("/bin/true",)), setup, {})


async def test_kill_ends_the_tree_and_what_left_it(
    tmp_path: Path, execution: Execution, count_processes: Callable[[str], int]
) -> None:
    script = "(setsid sleep 4801 &); sleep 4802 & echo on; sleep 4803"
    setup = AgentSetup(tmp_path, tmp_path, tmp_path)
    command = AgentCommand("goose", ("/bin/sh", "-c", script))
    process = await AgentProcess.start(execution, command, setup, {"PATH": os.environ["PATH"]})
    assert await process.remote.stdout.read(100) == b"on\n"
    await process.kill()
    assert [count_processes(word) for word in ("4801", "4802", "4803")] == [0, 0, 0]
    await process.kill()


async def test_the_last_words_of_a_dead_agent_are_kept(
    tmp_path: Path, execution: Execution
) -> None:
    setup = AgentSetup(tmp_path, tmp_path, tmp_path)
    command = AgentCommand("goose", ("/bin/sh", "-c", "echo no home >&2; sleep 0.5; exit 3"))
    process = await AgentProcess.start(execution, command, setup, {})
    await process.watch_stderr()
    assert await process.ended() == "The agent process exited with code 3 (it said: no home)."
    await process.kill()


@pytest.mark.parametrize(
    ("end", "starved"),
    [
        ("echo memory allocation of 64 bytes failed >&2; echo note: more >&2; kill -6 $$", True),
        ("kill -9 $$", True),
        ("kill -6 $$", False),
        ("exit 3", False),
    ],
)
async def test_whoever_waits_for_an_agent_is_told_that_it_ended_for_want_of_memory(
    tmp_path: Path, execution: Execution, end: str, *, starved: bool
) -> None:
    setup = AgentSetup(tmp_path, tmp_path, tmp_path)
    script = f"read asked; {end}"
    command = AgentCommand("goose", ("/bin/bash", "-c", script))
    process = await AgentProcess.start(execution, command, setup, {})
    living = process.run(Deaf(), asyncio.Lock(), lambda _: None, lambda: None)
    running = asyncio.create_task(living)
    with pytest.raises(AgentDiedError) as died:
        await process.peer.request("session/prompt", {})
    assert isinstance(await process.death(died.value), AgentStarvedError) == starved
    assert "note:" not in await running


async def test_the_scripted_agent_answers_and_tells_how_to_install_goose(
    start_agent: Callable[..., Awaitable[Agent]], make_sink: type
) -> None:
    agent = await start_agent(find_agent("scripted", {}))
    assert (agent.state.kind, agent.state.status) == ("scripted", "ready")
    session = await agent.new_session("A test")
    sink = make_sink()
    assert (await agent.prompt(session, "Hello", sink)).stop_reason == "end_turn"
    for words in ('"Hello"', "demonstration", "make setup"):
        assert words in sink.text()
    await agent.forget_session(session)


async def test_the_scripted_agent_can_be_cancelled(
    start_agent: Callable[..., Awaitable[Agent]], make_sink: type
) -> None:
    agent = await start_agent(find_agent("scripted", {}))
    session = await agent.new_session("A test")
    sink = make_sink()
    plain = sink.update

    async def stop_at_once(update: dict[str, object]) -> None:
        await plain(update)
        await agent.cancel(session)

    sink.update = stop_at_once
    assert (await agent.prompt(session, "Hello", sink)).stop_reason == "cancelled"
    assert "make setup" not in sink.text()


async def test_an_agent_that_is_given_up_is_replaced(
    start_agent: Callable[..., Awaitable[Agent]],
) -> None:
    agent = await start_agent(find_agent("scripted", {}))
    agent.give_up()
    while agent.state.status == "ready":  # noqa: ASYNC110 - nobody tells us of its end
        await asyncio.sleep(0.01)
    await agent.wait_ready(30)
    assert await agent.new_session("again")


@pytest.mark.parametrize("size", [1000, 1_000_000], ids="{} characters".format)
async def test_an_agent_that_reads_nothing_is_given_up_with_all_that_waits_for_it(
    start_agent: Callable[..., Awaitable[Agent]], make_sink: type, size: int
) -> None:
    agent = await start_agent(find_agent("scripted", {}))
    session = await agent.new_session("A test")
    assert agent._process is not None
    os.kill(agent._process.remote.pid, signal.SIGSTOP)
    prompt = asyncio.create_task(agent.prompt(session, "x" * size, make_sink()))
    await asyncio.sleep(0.2)
    agent.give_up()
    async with asyncio.timeout(20):
        with pytest.raises(AgentDiedError):
            await prompt
        await agent.wait_ready(20)


async def test_who_deletes_a_session_does_not_wait_long_for_an_agent_that_does_not_answer(
    start_agent: Callable[..., Awaitable[Agent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_PUT_AWAY_SECONDS", 0.1)
    agent = await start_agent(find_agent("scripted", {}))
    session = await agent.new_session("A test")
    assert agent._process is not None
    os.kill(agent._process.remote.pid, signal.SIGSTOP)
    async with asyncio.timeout(20):
        with pytest.raises(AgentUnavailableError, match=r"within 0\.1 seconds"):
            await agent.forget_session(session)


@pytest.mark.parametrize(
    "answers", ["null", '{}|{"value": 1}|{"sessionId": "1", "_meta": {"extensionResults": [1]}}']
)
async def test_an_agent_that_answers_nonsense_cannot_start_and_ends_nothing_else(
    tmp_path: Path, execution: Execution, answers: str
) -> None:
    script = """
import json, sys
answers = sys.argv[1].split("|")
for line in sys.stdin:
    answer = answers.pop(0) if len(answers) > 1 else answers[0]
    said = {"id": json.loads(line)["id"], "result": json.loads(answer)}
    print(json.dumps(said), flush=True)
"""
    command = AgentCommand("goose", (sys.executable, "-I", "-c", script, answers))
    agent = Agent(command, AgentSetup(tmp_path, tmp_path, tmp_path), execution)
    run = asyncio.create_task(agent.run(), name="agent")
    async with asyncio.timeout(20):
        while not run.done() and agent.state.status == "starting":  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    with pytest.raises(AgentUnavailableError, match="the agent's answer is not of the form"):
        await agent.wait_ready(0)
    run.cancel()
    with suppress(asyncio.CancelledError):
        await run


async def test_an_agent_that_cannot_start_says_why(tmp_path: Path, execution: Execution) -> None:
    command = AgentCommand("goose", ("/bin/sh", "-c", "echo broken >&2; exit 7"))
    agent = Agent(command, AgentSetup(tmp_path, tmp_path, tmp_path), execution)
    run = asyncio.create_task(agent.run(), name="agent")
    async with asyncio.timeout(20):
        while agent.state.status == "starting":  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    with pytest.raises(AgentUnavailableError, match=r"code 7 \(it said: broken\)"):
        await agent.wait_ready(0)
    with pytest.raises(AgentUnavailableError):
        await agent.new_session("A test")
    assert agent.state.status == "failed"
    run.cancel()
    with suppress(asyncio.CancelledError):
        await run


GOOSE = """
import json, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    time.sleep(float(sys.argv[1]) if asked["method"] == "initialize" else 0)
    said = {"id": asked["id"], "result": {"value": "1", "sessionId": "1"}}
    print(json.dumps(said), flush=True)
"""


@asynccontextmanager
async def slow_goose(folder: Path, execution: Execution, seconds: float) -> AsyncIterator[Agent]:
    """Run what answers as goose does, and takes some seconds to start."""
    command = AgentCommand("goose", (sys.executable, "-I", "-c", GOOSE, str(seconds)))
    agent = Agent(command, AgentSetup(folder, folder, folder), execution)
    run = asyncio.create_task(agent.run(), name="agent")
    try:
        yield agent
    finally:
        run.cancel()
        await asyncio.wait({run})


async def test_an_agent_starts_though_its_configuration_was_others_for_longer_than_that_may_take(
    tmp_path: Path, execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_START_SECONDS", 5)
    async with slow_goose(tmp_path, execution, 0) as agent, asyncio.timeout(30):
        async with agent._configuring:
            await asyncio.sleep(5.5)
            with pytest.raises(AgentUnavailableError, match="is starting"):
                await agent.wait_ready(0)
        await agent.wait_ready(20)


async def test_what_a_change_of_the_configuration_waited_for_in_vain_is_told(
    tmp_path: Path, execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_CALL_SECONDS", 0.5)
    read = ("_goose/unstable/config/read", {"key": "x"})
    async with slow_goose(tmp_path, execution, 60) as agent:
        with pytest.raises(AgentUnavailableError, match="one for this alone did not start within"):
            await agent.call(*read)
        async with agent._configuring:
            with pytest.raises(AgentUnavailableError, match="Others did not leave"):
                await agent.call(*read)
