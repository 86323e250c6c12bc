"""How the extensions of a session are started in the agent."""

import asyncio
from contextlib import nullcontext
from typing import Any
from unittest.mock import AsyncMock, Mock

from greylag.agentd.agent.extensions import ExtensionStarter
from greylag.agentd.agent.types import AgentRefusedError
from greylag.common.concurrent import beside


def entry(name: str) -> dict[str, Any]:
    return {"enabled": True, "configKey": name, "extension": {"type": "mcp", "name": name}}


class Goose:
    """Keeps of a session what an add found in it, though others were added until it is written."""

    def __init__(self, *names: str) -> None:
        self._entries = [entry(name) for name in names]
        self._running: list[str] = []
        self.kept: list[str] = []
        self.adds: list[str] = []
        self.listed: list[str] | None = None
        self.slow = asyncio.Event()

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "_goose/unstable/session/extensions/list":
            if self.listed is None:
                raise AgentRefusedError(-32601, "no such method")
            return {"extensions": [{"extensionKey": name} for name in self.listed]}
        if not method.endswith("/add"):
            return {"extensions": self._entries}
        name = params["extension"]["name"]
        self.adds.append(name)
        if name not in self._running:
            self._running.append(name)
        found = list(self._running)
        await (self.slow.wait() if name == "a" else asyncio.sleep(0))
        self.kept = found
        return {}


async def rounds() -> None:
    """Let all run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_of_what_a_turn_tells_only_what_can_be_a_call_and_a_name_is_kept() -> None:
    starter = ExtensionStarter(lambda _: nullcontext())
    for call, name in (("c" * 100_000, "x"), ("c", "x" * 100_000), (["c"], "x"), ("c", ["x"])):
        meta = {"goose": {"toolCall": {"extensionName": name}}}
        starter.note("s", {"sessionUpdate": "tool_call", "toolCallId": call, "_meta": meta})
    assert starter._calls == {}


async def test_a_session_keeps_each_of_the_extensions_that_started_at_once() -> None:
    goose, starter = Goose("a", "b", "c"), ExtensionStarter(lambda _: nullcontext())
    await starter.open(Mock(request=goose.request), AsyncMock(return_value=("s", {})))
    await rounds()
    assert goose.kept == ["a", "b", "c"]
    async with asyncio.timeout(5), beside(starter.settled("s"), "turn") as waiting:
        goose.slow.set()
        assert await waiting == []
    assert goose.kept == ["a", "b", "c"]
    assert sorted(goose.adds) == ["a", "a", "b", "b", "c", "c"]


async def test_what_goose_dropped_from_a_session_that_it_opened_again_is_started_again() -> None:
    goose, starter = Goose("a", "b"), ExtensionStarter(lambda _: nullcontext())
    goose.slow.set()
    peer = Mock(request=goose.request)
    await starter.open(peer, AsyncMock(return_value=("s", {})))
    await rounds()
    goose.adds.clear()
    goose.listed = ["b", "developer"]
    await starter.complete(peer, "s")  # it was not opened again: there is nothing to look for
    await starter.complete(peer, "another")
    assert goose.adds == []
    starter.closed("s")
    await starter.complete(peer, "s")
    assert await starter.settled("s") == []
    assert goose.adds == ["a", "a"]
    await starter.complete(peer, "s")
    await starter.end()  # goose died: it opens all of them again
    goose.listed = None
    await starter.complete(peer, "s")
    starter.closed("s")
    goose.listed = ["a", "b"]
    await starter.complete(peer, "s")
    starter.close("s")
    goose.listed = []
    await starter.complete(peer, "s")
    await rounds()
    assert goose.adds == ["a", "a"]
