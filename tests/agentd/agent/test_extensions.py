"""How the extensions of a session are started in the agent."""

import asyncio
from typing import Any
from unittest.mock import AsyncMock, Mock

from greylag.agentd.agent.extensions import ExtensionStarter
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
        self.slow = asyncio.Event()

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
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


async def test_a_session_keeps_each_of_the_extensions_that_started_at_once() -> None:
    goose, starter = Goose("a", "b", "c"), ExtensionStarter()
    await starter.open(Mock(request=goose.request), AsyncMock(return_value=("s", {})))
    for _ in range(20):
        await asyncio.sleep(0)
    assert goose.kept == ["a", "b", "c"]
    async with asyncio.timeout(5), beside(starter.settled("s"), "turn") as waiting:
        goose.slow.set()
        assert await waiting == []
    assert goose.kept == ["a", "b", "c"]
    assert sorted(goose.adds) == ["a", "a", "b", "b", "c", "c"]
