"""The real goose, driven by the real Agent, answered by the scripted model."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web
from structlog.testing import capture_logs
from tests.agentd.doubles import eventually, recording_model

from greylag.agentd.agent import history
from greylag.agentd.agent.agent import Agent
from greylag.agentd.agent.extensions import CONFIGURED
from greylag.agentd.agent.process import AgentProcess
from greylag.agentd.agent.types import (
    AgentCommand,
    AgentDiedError,
    AgentRefusedError,
    AgentUnavailableError,
    HistoryFixedError,
    ModelProvider,
    SessionStuckError,
)

pytestmark = pytest.mark.goose

SERVER = """
import json, os, sys, time

if os.path.exists("broken"):
    sys.exit(3)
CRASHES = os.path.exists("crashes")
if os.path.exists("hung"):
    time.sleep(999)
BEGUN = {"protocolVersion": "2025-03-26", "capabilities": {"tools": {}}}
TOOL = {"name": "ping", "description": "ping", "inputSchema": {"type": "object", "properties": {}}}
ANSWERS = {
    "initialize": {**BEGUN, "serverInfo": {"name": "pong", "version": "1"}},
    "tools/list": {"tools": [TOOL]},
    "tools/call": {"content": [{"type": "text", "text": "pong"}]},
}
for line in sys.stdin:
    asked = json.loads(line)
    if CRASHES and asked["method"] == "tools/call":
        os._exit(9)
    answer = ANSWERS.get(asked["method"])
    how = {"error": {"code": -32601, "message": "no"}} if answer is None else {"result": answer}
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **how}), flush=True)
"""
"""An extension, a server of its own with one tool; it starts unless it is broken or hung."""

StartAgent = Callable[..., Awaitable[Agent]]
Count = Callable[[str], int]
Wait = Callable[[str], Awaitable[None]]


@pytest.fixture
async def agent(start_agent: StartAgent, goose_command: AgentCommand) -> Agent:
    return await start_agent(goose_command)


@pytest.fixture
async def session(agent: Agent) -> str:
    return await agent.new_session("A test")


async def add_server(agent: Agent, seconds: int = 20) -> None:
    """Let new sessions have a server; its process has 98765 among its arguments."""
    argument = {"command": sys.executable, "args": ["-c", SERVER, "98765"], "env": []}
    extension = {"type": "mcp", "server": {"name": "pong", **argument}, "envKeys": []}
    added = {"extension": {**extension, "description": "", "timeout": seconds}, "enabled": True}
    await agent.call(f"{CONFIGURED}/add", added)


def goose_pid(agent: Agent) -> int:
    assert agent._process is not None
    return agent._process.remote.pid


async def test_a_ready_agent_tells_its_version(agent: Agent) -> None:
    assert (agent.state.kind, agent.state.status) == ("goose", "ready")
    assert agent.state.version == "1.52.0"


async def test_a_fresh_goose_starts_once_with_nothing_stored_for_it(
    start_agent: StartAgent, goose_command: AgentCommand
) -> None:
    with capture_logs() as logs:
        agent = await start_agent(goose_command, model="m", settings={"GOOSE_MODE": "auto"})
    assert [one for one in logs if one["event"] == "agent_ended"] == []
    listed = (await agent.call("_goose/unstable/config/extensions/list", {}))["extensions"]
    assert [one["configKey"] for one in listed if one["enabled"]] == ["developer"]


async def test_extensions_are_seen_and_removed_while_goose_cannot_start(
    start_agent: StartAgent, goose_command: AgentCommand
) -> None:
    agent = await start_agent(goose_command)
    server = {"name": "x", "command": "sleep", "args": ["9999"], "env": []}
    extension = {"type": "mcp", "server": server, "envKeys": [], "description": "", "timeout": 1}
    added = {"extension": extension, "enabled": True}
    agent._ready.clear()
    with pytest.raises(AgentUnavailableError):
        await agent.new_session("x")
    await agent.call(f"{CONFIGURED}/add", added)
    keys = {one["configKey"] for one in (await agent.call(f"{CONFIGURED}/list", {}))["extensions"]}
    assert "x" in keys
    await agent.call(f"{CONFIGURED}/remove", {"configKey": "x"})
    left = {one["configKey"] for one in (await agent.call(f"{CONFIGURED}/list", {}))["extensions"]}
    assert left == keys - {"x"}


async def test_what_is_changed_at_once_while_goose_cannot_start_is_all_kept_by_one_goose(
    start_agent: StartAgent, goose_command: AgentCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await start_agent(goose_command)
    agent._ready.clear()
    start, running, most = AgentProcess.start, 0, 0

    async def counted(*args: Any) -> AgentProcess:
        nonlocal running, most
        process = await start(*args)
        kill, running = process.kill, running + 1
        most = max(most, running)

        async def killed() -> None:
            nonlocal running
            await kill()
            running -= 1

        process.kill = killed  # type: ignore[method-assign] # counted
        return process

    monkeypatch.setattr(AgentProcess, "start", counted)
    changes = []
    for name in ("x0", "x1", "x2", "x3"):
        server = {"name": name, "command": "sleep", "args": ["1"], "env": []}
        one = {"type": "mcp", "server": server, "envKeys": [], "description": "", "timeout": 1}
        changes.append(agent.call(f"{CONFIGURED}/add", {"extension": one, "enabled": False}))
    await asyncio.gather(*changes)
    listed = (await agent.call(f"{CONFIGURED}/list", {}))["extensions"]
    assert {"x0", "x1", "x2", "x3"} <= {one["configKey"] for one in listed}
    assert most == 1


async def test_a_tool_that_was_allowed_speaks_neither_as_goose_nor_to_it(
    start_agent: StartAgent, goose_command: AgentCommand, make_sink: Any
) -> None:
    agent = await start_agent(goose_command, settings={"GOOSE_MODE": "approve"})
    session = await agent.new_session("A test")
    option = {"sessionId": session, "configId": "mode", "value": "auto"}
    text = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "FORGED"}}
    said: list[dict[str, Any]] = [
        {"id": 9, "method": "session/set_config_option", "params": option},
        {"method": "session/update", "params": {"sessionId": session, "update": text}},
    ]
    for number, message in enumerate(said):
        line = json.dumps({"jsonrpc": "2.0", **message})
        (agent._setup.workspace / str(number)).write_text(f"{line}\n")
    sink = make_sink()
    written = "; ".join(f"cat {number} > /proc/$PPID/fd/{number}" for number in (0, 1))
    await agent.prompt(session, f"[[tool cat /proc/$PPID/comm; {written}]]", sink)
    assert "goose" in sink.tool_output()
    assert sink.tool_output().count("No such device or address") == 2
    assert "FORGED" not in sink.text()
    sink = make_sink("reject_once")
    await agent.prompt(session, "[[tool touch unasked]]", sink)
    assert len(sink.questions) == 1


async def test_a_session_asks_again_though_what_goose_keeps_was_changed(
    start_agent: StartAgent, goose_command: AgentCommand, make_sink: Any
) -> None:
    agent = await start_agent(goose_command, settings={"GOOSE_MODE": "approve"})
    session = await agent.new_session("A test")
    await agent.configure(session, {"mode": "approve"})
    option = {"sessionId": session, "configId": "mode", "value": "auto"}
    await agent.call("session/set_config_option", option)
    await agent.configure(session, {"mode": "approve"})
    sink = make_sink("reject_once")
    await agent.prompt(session, "[[tool touch unasked]]", sink)
    assert len(sink.questions) == 1


async def test_a_goose_that_starts_anew_asks_though_a_tool_wrote_what_it_asks_about_no_more(
    start_agent: StartAgent, goose_command: AgentCommand, make_sink: Any
) -> None:
    agent = await start_agent(goose_command, settings={"GOOSE_MODE": "approve"})
    folder = agent._setup.home / ".config" / "goose"
    lists = "always_allow: [shell, developer__shell]\n  ask_before: []\n  never_allow: []"
    (folder / "permission.yaml").write_text(f"user:\n  {lists}\n")
    folder.chmod(0o500)
    agent.give_up()
    while agent.state.status == "ready":  # noqa: ASYNC110 - nobody tells us of its end
        await asyncio.sleep(0.01)
    await agent.wait_ready(30)
    session = await agent.new_session("A test")
    await agent.configure(session, {"mode": "approve"})
    sink = make_sink("reject_once")
    await agent.prompt(session, "[[tool touch unasked]]", sink)
    assert len(sink.questions) == 1


async def test_a_goose_that_starts_anew_removes_the_empty_folders_that_the_one_before_left(
    start_agent: StartAgent, goose_command: AgentCommand
) -> None:
    agent = await start_agent(goose_command)
    await agent.new_session("A test")
    tmp = agent._setup.tmp
    left = {path for path in tmp.iterdir() if path.name.startswith(".tmp")}
    assert left
    used, others = tmp / ".tmpUsed00", tmp / "theirs"
    used.mkdir()
    (used / "file").touch()
    others.mkdir()
    for path in (*left, used, others):
        os.utime(path, (0, 0))
    agent.give_up()
    while agent.state.status == "ready":  # noqa: ASYNC110 - nobody tells us of its end
        await asyncio.sleep(0.01)
    await agent.wait_ready(30)
    assert not left & set(tmp.iterdir())
    assert {used, others} <= set(tmp.iterdir())


async def test_text_and_thinking_arrive_in_order(
    agent: Agent, session: str, make_sink: Any
) -> None:
    sink = make_sink()
    result = await agent.prompt(session, "[[think let me see]] [[text one two three]]", sink)
    assert (result.stop_reason, sink.text()) == ("end_turn", "one two three")
    assert sink.text("agent_thought_chunk") == "let me see"
    assert result.usage is not None
    assert result.usage["outputTokens"] > 0


async def test_ten_thousand_chunks_are_neither_lost_nor_reordered(
    agent: Agent, session: str, make_sink: Any
) -> None:
    sink = make_sink()
    await agent.prompt(session, "[[chunks n=10000]]", sink)
    assert sink.text().split() == [f"{i:04d}" for i in range(10000)]


async def test_characters_split_on_the_network_arrive_whole(
    agent: Agent, session: str, make_sink: Any
) -> None:
    sink = make_sink()
    await agent.prompt(session, "[[unicode]]", sink)
    assert "aä€😀 שלום 你好 👩‍👩‍👧‍👦" in sink.text()


async def test_an_allowed_tool_runs_and_its_result_goes_back(
    agent: Agent, session: str, make_sink: Any
) -> None:
    sink = make_sink("allow_once")
    await agent.prompt(session, "run: echo $((6*7))", sink)
    assert sink.questions[0].title == "shell · echo $((6*7))"
    assert sink.questions[0].arguments == {"command": "echo $((6*7))"}
    assert sink.tool_output() == "42"
    assert "42" in sink.text()


async def test_a_session_s_mode_and_model_are_changed_for_it_alone_from_its_next_message_on(
    agent: Agent, make_sink: Any
) -> None:
    mine, other = await agent.new_session("Mine"), await agent.new_session("Other")
    sink, elsewhere = make_sink(), make_sink()
    await agent.prompt(mine, "[[tool echo 1]]", sink)
    assert [one.lasting for one in sink.questions] == [True]
    await agent.configure(mine, {"mode": "auto", "model": "another"})
    await agent.prompt(mine, "[[tool echo 2]]", sink)
    await agent.prompt(other, "[[tool echo 3]]", elsewhere)
    assert (sink.tool_output(), len(sink.questions), len(elsewhere.questions)) == ("1\n2", 1, 1)
    await agent.configure(mine, {"mode": "approve"})
    await agent.prompt(mine, "[[tool echo 4]]", sink)
    assert len(sink.questions) == 2
    listed = await agent.call("session/list", {})
    models = {one["sessionId"]: one["_meta"]["modelId"] for one in listed["sessions"]}
    assert (models[mine], models[other]) == ("another", "gpt-4o")
    with pytest.raises(AgentRefusedError, match="Invalid"):
        await agent.configure(mine, {"mode": "yolo"})


async def test_a_declined_tool_does_not_run(agent: Agent, session: str, make_sink: Any) -> None:
    sink = make_sink("reject_once")
    result = await agent.prompt(session, "run: touch declined", sink)
    assert result.stop_reason == "end_turn"
    assert "declined" in sink.tool_output()
    assert not (agent._setup.workspace / "declined").exists()


async def test_tools_see_no_secret(
    start_agent: StartAgent,
    goose_command: AgentCommand,
    fake_provider: ModelProvider,
    make_sink: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GREYLAG_MODEL_KEY", "provider-key")
    monkeypatch.setenv("GREYLAG_AGENT_TOKEN", "agent-token")
    agent = await start_agent(goose_command, provider=fake_provider, environment_id="env-1")
    sink = make_sink()
    await agent.prompt(await agent.new_session("A test"), "run: env", sink)
    assert "GREYLAG_ENVIRONMENT=env-1" in sink.tool_output()
    assert "provider-key" not in sink.tool_output()
    assert "agent-token" not in sink.tool_output()


@pytest.mark.parametrize("when", [0.0, 0.3])
async def test_cancel_before_the_model_answers_waits_for_nothing(
    agent: Agent, session: str, make_sink: Any, when: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither the model nor our patience would end the prompt.
    monkeypatch.setattr("greylag.agentd.agent.prompt.CANCEL_PATIENCE", 3600.0)
    prompt = asyncio.create_task(agent.prompt(session, "[[hang]]", make_sink()))
    await asyncio.sleep(when)  # not to wait for anything: to cancel at different moments
    await agent.cancel(session)
    assert (await prompt).stop_reason == "cancelled"
    sink = make_sink()
    await agent.prompt(session, "[[text still there]]", sink)
    assert sink.text() == "still there"


async def test_cancel_during_the_answer_keeps_what_was_said(
    agent: Agent, session: str, make_sink: Any
) -> None:
    sink = make_sink()
    prompt = asyncio.create_task(
        agent.prompt(session, "[[stall after=2]] [[text one two three]]", sink)
    )
    await sink.wait_for(lambda: "two" in sink.text())
    await agent.cancel(session)
    assert (await prompt).stop_reason == "cancelled"
    assert sink.text() == "one two "


async def test_cancel_settles_a_permission_that_nobody_answers(
    agent: Agent, session: str, make_sink: Any
) -> None:
    sink = make_sink(None)
    prompt = asyncio.create_task(agent.prompt(session, "run: touch asked", sink))
    await sink.wait_for(lambda: bool(sink.questions))
    await agent.cancel(session)
    assert (await prompt).stop_reason == "cancelled"
    assert not (agent._setup.workspace / "asked").exists()


async def test_cancel_kills_what_the_tool_has_started(
    agent: Agent, session: str, make_sink: Any, count_processes: Count, wait_for_process: Wait
) -> None:
    sink = make_sink()
    prompt = asyncio.create_task(agent.prompt(session, "run: sleep 4711; echo", sink))
    await wait_for_process("4711")
    await agent.cancel(session)
    assert (await prompt).stop_reason == "cancelled"
    assert count_processes("4711") == 0


async def test_a_prompt_whose_task_is_cancelled_frees_the_session(
    agent: Agent, session: str, make_sink: Any
) -> None:
    prompt = asyncio.create_task(agent.prompt(session, "[[hang]]", make_sink()))
    await asyncio.sleep(0.2)
    prompt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await prompt
    assert (await agent.prompt(session, "[[text ok]]", make_sink())).stop_reason == "end_turn"


async def test_an_error_in_the_sink_ends_that_prompt_only(
    agent: Agent, session: str, make_sink: Any
) -> None:
    async def full(_update: dict[str, Any]) -> None:
        raise OSError("disk full")

    broken = make_sink()
    broken.update = full
    with pytest.raises(OSError, match="disk full"):
        await agent.prompt(session, "[[chunks n=100]]", broken)
    assert (await agent.prompt(session, "[[text ok]]", make_sink())).stop_reason == "end_turn"


async def test_two_sessions_answer_at_once_and_a_busy_one_refuses(
    agent: Agent, session: str, make_sink: Any
) -> None:
    other = await agent.new_session("Another")
    waiting = asyncio.create_task(agent.prompt(session, "[[hang]]", make_sink()))
    sink = make_sink()
    await agent.prompt(other, "[[text me first]]", sink)
    assert sink.text() == "me first"
    with pytest.raises(AgentRefusedError, match="running turn"):
        await agent.prompt(session, "again", make_sink())
    await agent.cancel(session)
    assert (await waiting).stop_reason == "cancelled"


async def test_a_slow_sink_slows_goose_down_and_loses_nothing(
    agent: Agent, session: str, make_sink: Any
) -> None:
    sink = make_sink()
    gate = asyncio.Event()
    plain = sink.update

    async def slow(update: dict[str, Any]) -> None:
        await gate.wait()
        await plain(update)

    sink.update = slow
    prompt = asyncio.create_task(agent.prompt(session, "[[bytes 4000000]]", sink))
    own = psutil.Process()
    await asyncio.sleep(0.5)
    before = own.memory_info().rss
    await asyncio.sleep(0.5)
    assert own.memory_info().rss - before < 8_000_000
    gate.set()
    await prompt
    assert len(sink.text()) == 4_000_000


async def test_a_killed_goose_ends_its_turns_and_comes_back_with_its_sessions(
    agent: Agent, session: str, make_sink: Any, count_processes: Count, wait_for_process: Wait
) -> None:
    sink = make_sink()
    command = "run: (setsid sleep 4712 &) ; sleep 4713"
    prompt = asyncio.create_task(agent.prompt(session, command, sink))
    await wait_for_process("4712")
    await wait_for_process("4713")
    os.kill(goose_pid(agent), signal.SIGKILL)
    with pytest.raises(AgentDiedError):
        await prompt
    with pytest.raises(AgentUnavailableError):
        await agent.new_session("Too early")
    await agent.wait_ready(20)
    assert count_processes("4712") + count_processes("4713") == 0
    sink = make_sink()
    await agent.prompt(session, "[[text back again]]", sink)
    assert sink.text() == "back again"


@pytest.mark.parametrize("size", [1000, 200_000, 1_000_000], ids="{} characters".format)
async def test_a_goose_that_reads_no_more_is_started_again_however_much_it_was_told(
    agent: Agent, session: str, make_sink: Any, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("greylag.agentd.agent.prompt.CANCEL_PATIENCE", 0.5)
    pid = goose_pid(agent)
    os.kill(pid, signal.SIGSTOP)
    message = f"[[hang]]{'x' * size}"
    prompt = asyncio.create_task(agent.prompt(session, message, make_sink()))
    await asyncio.sleep(0.2)
    await agent.cancel(session)
    async with asyncio.timeout(20):
        assert (await prompt).stop_reason == "cancelled"
        await agent.wait_ready(20)
        while psutil.pid_exists(pid):  # noqa: ASYNC110 - a process has no event for its end
            await asyncio.sleep(0.01)
    sink = make_sink()
    await agent.prompt(session, "[[text as ever]]", sink)
    assert sink.text() == "as ever"


async def test_an_archived_session_frees_no_id_for_the_next(agent: Agent, session: str) -> None:
    await agent.forget_session(session)
    assert await agent.new_session("Next") != session


@pytest.mark.parametrize("ending", ["cancel", "delete"])
async def test_what_a_subagent_started_ends_with_its_turn_and_with_its_session(
    *,
    ending: str,
    start_agent: StartAgent,
    goose_command: AgentCommand,
    make_sink: Any,
    tmp_path: Path,
    wait_for_process: Wait,
    count_processes: Count,
) -> None:
    agent = await start_agent(goose_command, settings={"GOOSE_MODE": "auto"})
    await agent.call(f"{CONFIGURED}/set-enabled", {"configKey": "summon", "enabled": True})
    session, other = await agent.new_session("one"), await agent.new_session("other")
    await agent.prompt(other, "[[tool setsid sleep 98761 >/dev/null 2>&1 &]]", make_sink())
    # The brackets are written so that the directive is the subagent's, not this turn's.
    tool = "setsid sh -c 'sleep 98762; touch done'"
    tool += "" if ending == "cancel" else " >/dev/null 2>&1 &"
    words = f'[[call delegate {{"instructions": "[[tool {tool}\\u005d\\u005d"}}]]'
    asking = asyncio.create_task(agent.prompt(session, words, make_sink()))
    await wait_for_process("98762")
    if ending == "cancel":
        await agent.cancel(session)
        assert (await asking).stop_reason == "cancelled"
    else:
        await asking
        await agent.forget_session(session)
    assert (count_processes("98762"), count_processes("98761")) == (0, 1)
    assert not (tmp_path / "workspace/done").exists()


async def test_a_history_that_is_cut_is_what_the_model_is_told_from_then_on(
    start_agent: StartAgent,
    goose_command: AgentCommand,
    serve_app: Callable[[web.Application], Any],
    make_sink: Any,
    count_processes: Count,
) -> None:
    requests: list[str] = []
    async with serve_app(recording_model(requests)) as url:
        mode = {"GOOSE_MODE": "auto"}
        agent = await start_agent(goose_command, provider=ModelProvider(url), settings=mode)
        old = await agent.new_session("A test")
        choice = {"sessionId": old, "configId": "model", "value": "gpt-4o-mini"}
        await agent.call("session/set_config_option", choice)
        positions = []
        for word in ("uno", "dos", "tres"):  # all within a second, as goose counts time
            positions.append(await agent.message_count(old))
            tool = f"echo {word}; setsid sleep 98764 >/dev/null 2>&1 &"
            await agent.prompt(old, f"[[tool {tool}]] [[text {word}]]", make_sink())
        session = await agent.cut_session(old, positions[1])
        assert await agent.cut_session(session, positions[1]) == session != old
        await agent.replace_session(old, session)
        assert count_processes("98764") == 3
        died = None
        while True:
            await agent.prompt(session, "[[tool echo on]]", make_sink())
            words = {word for word in ("uno", "dos", "tres", "on") if word in requests[-1]}
            assert (words, '"gpt-4o-mini"' in requests[-1]) == ({"uno", "on"}, True)
            if died is not None:
                break
            died = asyncio.create_task(agent.prompt(session, "[[hang]]", make_sink()))
            await asyncio.sleep(0)
            os.kill(goose_pid(agent), signal.SIGKILL)
            with pytest.raises(AgentDiedError):
                await died
            await agent.wait_ready(20)
        last = await agent.message_count(session)
        await agent.prompt(session, "/compact", make_sink())
        with pytest.raises(HistoryFixedError, match="has summarised"):
            await agent.cut_session(session, positions[1])
        assert await agent.cut_session(session, last) != session


async def test_a_session_unused_for_long_has_no_processes_and_comes_back_with_all_it_had(
    *,
    start_agent: StartAgent,
    goose_command: AgentCommand,
    serve_app: Callable[[web.Application], Any],
    make_sink: Any,
    count_processes: Count,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("greylag.agentd.agent.open_sessions.MOST_OPEN", 1)
    requests: list[str] = []
    async with serve_app(recording_model(requests)) as url:
        mode = {"GOOSE_MODE": "auto"}
        agent = await start_agent(goose_command, provider=ModelProvider(url), settings=mode)
        await add_server(agent)
        mine, other = await agent.new_session("Mine"), await agent.new_session("Other")

        async def turn(session: str, words: str) -> None:
            await agent.configure(session, {"mode": "auto", "model": "gpt-4o-mini"})
            sink = make_sink()
            await agent.prompt(session, f"[[call pong__ping {{}}]] {words}", sink)
            assert sink.tool_output().startswith("pong")
            # Both sessions had a server: that of the one that was used before has ended.
            await eventually(lambda: count_processes("98765") == 1)

        await turn(mine, "[[text uno]]")
        await turn(other, "[[text dos]]")
        position = await agent.message_count(mine)
        await turn(mine, "[[tool setsid sleep 98766 >/dev/null 2>&1 &]]")
        assert "uno" in requests[-1]
        await turn(other, "[[text tres]]")
        assert "dos" in requests[-1]
        assert "uno" not in requests[-1]
        assert count_processes("98766") == 1
        cut = await agent.cut_session(mine, position)
        await agent.replace_session(mine, cut)
        await turn(cut, "[[text cuatro]]")
        assert "uno" in requests[-1]
        assert "98766" not in requests[-1]
        await agent.forget_session(other)
        await agent.forget_session(cut)
        await eventually(lambda: count_processes("98765") + count_processes("98766") == 0)


async def test_an_extension_that_fails_when_its_session_is_opened_again_is_told_of_and_not_lost(
    start_agent: StartAgent,
    goose_command: AgentCommand,
    make_sink: Any,
    count_processes: Count,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("greylag.agentd.agent.open_sessions.MOST_OPEN", 1)
    agent = await start_agent(goose_command, settings={"GOOSE_MODE": "auto"})
    await add_server(agent)
    mine, other = await agent.new_session("Mine"), await agent.new_session("Other")
    broken = agent._setup.workspace / "broken"

    async def turn(session: str, servers: int) -> tuple[bool, int]:
        await agent.configure(session, {"mode": "auto"})
        sink = make_sink()
        await agent.prompt(session, "[[call pong__ping {}]]", sink)
        await eventually(lambda: count_processes("98765") == servers)
        told = sink.of("status_message", lambda update: update["status"]["message"])
        return sink.tool_output() == "pong", sum("'pong' does not work" in line for line in told)

    assert await turn(mine, 1) == (True, 0)
    assert await turn(other, 1) == (True, 0)
    broken.touch()
    assert await turn(mine, 0) == (False, 1)
    broken.unlink()
    assert await turn(other, 1) == (True, 0)
    assert await turn(mine, 1) == (True, 0)


async def test_a_session_whose_extension_hangs_when_it_is_opened_again_goes_on_in_another(
    start_agent: StartAgent,
    goose_command: AgentCommand,
    make_sink: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = await start_agent(goose_command, settings={"GOOSE_MODE": "auto"})
    await add_server(agent)
    old = await agent.new_session("Mine")
    await agent.prompt(old, "[[call pong__ping {}]]", make_sink())
    count = await agent.message_count(old)
    (agent._setup.workspace / "hung").touch()
    os.kill(goose_pid(agent), signal.SIGKILL)
    await eventually(lambda: agent.state.status == "failed")
    await agent.wait_ready(20)
    monkeypatch.setattr("greylag.agentd.agent.agent._OPEN_SECONDS", 0.5)
    monkeypatch.setattr("greylag.agentd.agent.extensions._NEW_SECONDS", 0.1)
    with pytest.raises(SessionStuckError, match="pong"):
        await agent.configure(old, {"mode": "auto"})
    new = await agent.reopen_session(old)
    assert await agent.message_count(new) == count > 0
    await agent.replace_session(old, new)
    await agent.configure(new, {"mode": "auto"})
    sink = make_sink()
    await agent.prompt(new, "[[text as ever]]", sink)
    assert sink.text() == "as ever"


async def test_of_sessions_that_hang_each_keeps_its_list_and_only_the_first_starts_the_cause_again(
    start_agent: StartAgent,
    goose_command: AgentCommand,
    make_sink: Any,
    count_processes: Count,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = await start_agent(goose_command, settings={"GOOSE_MODE": "auto"})
    await add_server(agent, seconds=1)
    listed = (await agent.call(f"{CONFIGURED}/list", {}))["extensions"]
    [todo] = [one["extension"] for one in listed if one["configKey"] == "todo"]
    await agent.call(f"{CONFIGURED}/add", {"extension": todo, "enabled": True})
    note = '[[call todo__todo_write {"content": "- [ ] buy milk"}]]'
    old = [await agent.new_session(name) for name in ("First", "Second")]
    for session in old:
        await agent.prompt(session, f"[[call pong__ping {{}}]] {note}", make_sink())
    (agent._setup.workspace / "hung").touch()
    os.kill(goose_pid(agent), signal.SIGKILL)
    await eventually(lambda: agent.state.status == "failed")
    await agent.wait_ready(20)
    monkeypatch.setattr("greylag.agentd.agent.agent._OPEN_SECONDS", 0.5)

    def is_hung() -> bool:
        state = agent.extension_state("pong")
        return state is not None and state.hung

    for session, more in zip(old, (1, 0), strict=True):
        with pytest.raises(SessionStuckError, match="pong"):
            await agent.configure(session, {"mode": "auto"})
        before = count_processes("98765")
        new = await agent.reopen_session(session)
        await agent.replace_session(session, new)
        await eventually(is_hung)
        assert count_processes("98765") == before + more
        exported = await history.whole(agent._living().peer, new)
        assert "buy milk" in json.dumps(exported["extension_data"])


async def test_an_extension_that_ended_in_a_turn_is_started_again_before_the_next(
    start_agent: StartAgent, goose_command: AgentCommand, make_sink: Any
) -> None:
    agent = await start_agent(goose_command, settings={"GOOSE_MODE": "auto"})
    await add_server(agent)
    (agent._setup.workspace / "crashes").touch()
    session = await agent.new_session("Mine")

    async def told() -> str:
        await agent.configure(session, {"mode": "auto"})
        sink = make_sink()
        await agent.prompt(session, "[[call pong__ping {}]]", sink)
        return str(sink.tool_output())

    assert await told() == "Transport closed"
    (agent._setup.workspace / "crashes").unlink()
    assert await told() == "pong"
    assert await told() == "pong"
