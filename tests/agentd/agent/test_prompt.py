"""Permissions, asked by an agent whose options have ids of their own; what precedes a prompt."""

import asyncio
import gc
import json
import sys
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from greylag.agentd.agent.acp import AcpPeer
from greylag.agentd.agent.agent import Agent
from greylag.agentd.agent.prompt import CANCELLED, MOST_QUESTIONS, AgentTurn
from greylag.agentd.agent.types import (
    AgentCommand,
    ExtensionState,
    ExtensionStatus,
    PermissionRequest,
    PromptResult,
    Settlement,
)

AGENT = """
import json, sys

OPTIONS = json.loads(sys.argv[1])
PLAIN = {"initialize": {"agentInfo": {"version": "1"}}, "session/new": {"sessionId": "s"}}


def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


for line in sys.stdin:
    message = json.loads(line)
    match message.get("method"):
        case "session/prompt":
            prompt = message["id"]
            call = {"toolCallId": "c", "title": "shell - ls", "rawInput": {"command": "ls"}}
            params = {"sessionId": "s", "toolCall": call, "options": OPTIONS}
            say(id="q", method="session/request_permission", params=params)
        case None:
            content = {"type": "text", "text": json.dumps(message["result"]["outcome"])}
            update = {"sessionUpdate": "agent_message_chunk", "content": content}
            say(method="session/update", params={"sessionId": "s", "update": update})
            say(id=prompt, result={"stopReason": "end_turn"})
        case method:
            say(id=message["id"], result=PLAIN.get(method, {}))
"""
ENDING = AGENT.replace('prompt = message["id"]', 'say(id=message["id"], result=OPTIONS); continue')
"""The same, which asks nothing: its prompts end as they are to."""
TELLING = AGENT.replace(
    'prompt = message["id"]',
    """
            for params in OPTIONS:
                say(method="session/update", params=params)
            say(id=message["id"], result={})
            continue
""".strip(),
)
"""The same, which asks nothing, and tells all that it is to."""
STARTING = """
import json, sys

ENTRY = {"enabled": True, "configKey": "slow", "extension": {"type": "mcp"}}
ANSWERS = {
    "initialize": {"agentInfo": {"version": "1"}},
    "session/new": {"sessionId": "s"},
    "_goose/unstable/config/read": {"value": "1"},
    "_goose/unstable/config/extensions/list": {"extensions": [ENTRY]},
}
for line in sys.stdin:
    message = json.loads(line)
    method = message["method"]
    with open("said", "a") as said:
        print(method, file=said)
    if method != "_goose/unstable/session/extensions/add":
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": ANSWERS.get(method, {})}
        print(json.dumps(answer), flush=True)
"""
"""An agent whose session's extension never finishes its handshake."""
OPTIONS = [
    {"optionId": "opt-1", "name": "Always", "kind": "allow_always"},
    {"optionId": "opt-2", "name": "Yes", "kind": "allow_once"},
    {"optionId": "opt-3", "name": "No", "kind": "reject_once"},
]
ODD: list[Any] = [None, 3, {}, {"kind": "allow_once"}, {"kind": [], "optionId": "x"}]
NOT_ALLOWED = {"outcome": "cancelled"}


@pytest.mark.parametrize(
    ("decision", "options", "outcome"),
    [
        ("allow_once", OPTIONS, {"outcome": "selected", "optionId": "opt-2"}),
        ("reject_once", OPTIONS, {"outcome": "selected", "optionId": "opt-3"}),
        ("allow_session", OPTIONS, {"outcome": "selected", "optionId": "opt-2"}),
        ("allow_once", OPTIONS[:1], NOT_ALLOWED),
        ("reject_once", [], NOT_ALLOWED),
        ("allow_once", ODD, NOT_ALLOWED),
        ("allow_once", [*ODD, *OPTIONS], {"outcome": "selected", "optionId": "opt-2"}),
        ("allow_once", "no list", NOT_ALLOWED),
    ],
)
async def test_an_answer_names_the_option_that_the_agent_offered(
    start_agent: Callable[..., Awaitable[Agent]],
    make_sink: type,
    decision: str,
    options: Any,
    outcome: dict[str, str],
) -> None:
    program = (sys.executable, "-I", "-c", AGENT, json.dumps(options))
    agent = await start_agent(AgentCommand("scripted", program))
    sink = make_sink(decision)
    await agent.prompt(await agent.new_session("A test"), "hello", sink)
    assert json.loads(sink.text()) == outcome


FORMS: list[Any] = [None, True, 3, "x", "completed", [], [[]], {}, {"message": "x"}]
"""What may stand in a message where something else is looked for."""


async def test_an_update_may_hold_anything_and_ends_neither_its_turn_nor_the_agent(
    start_agent: Callable[..., Awaitable[Agent]], make_sink: type
) -> None:
    kinds = ("tool_call", "tool_call_update", "status_message", "agent_message_chunk")
    places = ("sessionUpdate", "toolCallId", "status", "content", "_meta")
    whole = {
        "toolCallId": "c",
        "status": "completed",
        "content": [{"type": "content", "content": {"type": "text", "text": "Transport closed"}}],
        "_meta": {"goose": {"toolCall": {"extensionName": "x"}}},
    }
    updates = [
        {**whole, "sessionUpdate": kind, place: form}
        for kind in kinds
        for place in places
        for form in FORMS
    ]
    told: list[Any] = [{"sessionId": "s", "update": one} for one in updates]
    told += [{"sessionId": form, "update": form} for form in FORMS]
    program = (sys.executable, "-I", "-c", TELLING, json.dumps(told))
    agent = await start_agent(AgentCommand("scripted", program))
    session, sink = await agent.new_session("A test"), make_sink()
    async with asyncio.timeout(30):
        await agent.prompt(session, "hello", sink)
    assert sink.updates == updates
    assert agent.state.status == "ready"


class Silent(AcpPeer):
    """A peer that keeps what its agent is answered."""

    def __init__(self) -> None:
        self.answers: list[tuple[str | int, Any]] = []

    async def respond(self, request_id: str | int, result: Any) -> None:
        self.answers.append((request_id, result))


class Undecided:
    """A sink that nobody answers in, and which keeps no question."""

    def __init__(self) -> None:
        self.asked = 0
        self.given_up = asyncio.Event()

    async def update(self, update: dict[str, Any]) -> None:
        pass

    async def permission(self, request: PermissionRequest) -> Settlement:
        self.asked += 1
        del request
        await self.given_up.wait()
        return "reject_once"


class Arguments(dict[str, Any]):
    """Arguments that can be seen to go."""


async def rounds() -> None:
    """Let all run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_of_questions_only_so_many_are_open_and_the_others_run_nothing() -> None:
    peer, sink = Silent(), Undecided()
    turn = AgentTurn(peer, "s", sink, stop_model=lambda: None, give_up=lambda: None)
    before = len(asyncio.all_tasks())
    for number in range(MOST_QUESTIONS + 100):
        await turn.ask(number, {"options": OPTIONS})
    await rounds()
    assert sink.asked == MOST_QUESTIONS
    assert peer.answers == [(MOST_QUESTIONS + number, CANCELLED) for number in range(100)]
    assert len(asyncio.all_tasks()) - before <= 2 * MOST_QUESTIONS
    peer.answers.clear()
    sink.given_up.set()
    await rounds()
    assert sorted(number for number, _ in peer.answers) == list(range(MOST_QUESTIONS))
    await turn.ask("next", {"options": OPTIONS})
    await rounds()
    assert sink.asked == MOST_QUESTIONS + 1


async def test_an_open_question_keeps_no_arguments_in_memory() -> None:
    sink = Undecided()
    turn = AgentTurn(Silent(), "s", sink, stop_model=lambda: None, give_up=lambda: None)
    given = Arguments(text="x" * 1000)
    seen = weakref.ref(given)
    await turn.ask("q", {"toolCall": {"rawInput": given}, "options": OPTIONS})
    del given
    await rounds()
    gc.collect()
    assert (sink.asked, seen()) == (1, None)
    sink.given_up.set()
    await rounds()


@pytest.mark.parametrize("status", [None, "ready"])
@pytest.mark.parametrize("when", [0.0, 0.2])
async def test_a_cancel_while_an_extension_starts_ends_the_prompt_that_the_agent_never_gets(
    start_agent: Callable[..., Awaitable[Agent]],
    make_sink: type,
    monkeypatch: pytest.MonkeyPatch,
    status: ExtensionStatus | None,
    when: float,
) -> None:
    monkeypatch.setattr("greylag.agentd.agent.extensions._NEW_SECONDS", 3600.0)
    monkeypatch.setattr("greylag.agentd.agent.extensions._KNOWN_SECONDS", 3600.0)
    agent = await start_agent(AgentCommand("goose", (sys.executable, "-I", "-c", STARTING)))
    session = await agent.new_session("A test")
    if status is not None:
        agent._extensions._states["slow"] = ExtensionState(status, "It works.")
    prompt = asyncio.create_task(agent.prompt(session, "hello", make_sink()))
    await asyncio.sleep(when)  # not to wait for anything: to cancel at different moments
    await agent.cancel(session)
    async with asyncio.timeout(20):
        assert (await prompt).stop_reason == "cancelled"
    assert "session/prompt" not in (agent._setup.workspace / "said").read_text().split()
    assert not agent._extensions._starts[session]["slow"].done()


async def test_what_cannot_be_told_before_a_prompt_fails_it(
    start_agent: Callable[..., Awaitable[Agent]], make_sink: type
) -> None:
    agent = await start_agent(AgentCommand("goose", (sys.executable, "-I", "-c", STARTING)))
    session = await agent.new_session("A test")
    agent._extensions._states["slow"] = ExtensionState("failed", "It does not start.")
    sink = make_sink()

    async def full(_update: dict[str, Any]) -> None:
        raise OSError("disk full")

    sink.update = full
    with pytest.raises(OSError, match="disk full"):
        await agent.prompt(session, "hello", sink)
    assert "session/prompt" not in (agent._setup.workspace / "said").read_text().split()


@pytest.mark.parametrize(
    ("said", "result"),
    [
        (
            {"stopReason": "max_tokens", "usage": {"totalTokens": 3, "cost": 0.5}},
            PromptResult("max_tokens", {"totalTokens": 3, "cost": 0.5}),
        ),
        ({}, PromptResult("end_turn", None)),
        ([], PromptResult("end_turn", None)),
        ({"stopReason": [[1]], "usage": "much"}, PromptResult("end_turn", None)),
        ({"stopReason": "x" * 9_000, "usage": {}}, PromptResult("x" * 100, {})),
        (
            {"usage": {"a": "y" * 9_000, "b" * 9_000: 1, "c": [], "d": True, "e": 2**63, "f": 7}},
            PromptResult("end_turn", {"f": 7}),
        ),
        (
            {"usage": {str(number): number for number in range(1000)}},
            PromptResult("end_turn", {str(number): number for number in range(50)}),
        ),
    ],
)
async def test_how_a_prompt_ended_finds_room_in_a_turn_s_last_event(
    start_agent: Callable[..., Awaitable[Agent]], make_sink: type, said: Any, result: PromptResult
) -> None:
    program = (sys.executable, "-I", "-c", ENDING, json.dumps(said))
    agent = await start_agent(AgentCommand("scripted", program))
    assert await agent.prompt(await agent.new_session("A test"), "hello", make_sink()) == result
