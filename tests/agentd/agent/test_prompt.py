"""Permissions, asked by an agent whose options have ids of their own."""

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from greylag.agentd.agent.agent import Agent
from greylag.agentd.agent.types import AgentCommand

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
