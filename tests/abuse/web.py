"""Serves the web over an agent whose histories are 50 MB, until it is ended; prints its port."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.fakes.agent import MemoryAgents
from tests.web.server import site

from greylag.common import agent_api
from greylag.common.logs import configure_logging
from greylag.ports import AgentAddress, AgentAnswer, AgentRequest

_BLOCK = 65_536
_BLOCKS = 800
_USUAL = MemoryAgents.relay


def _relay(
    self: MemoryAgents, at: AgentAddress, request: AgentRequest
) -> AbstractAsyncContextManager[AgentAnswer]:
    if request.operation is agent_api.LIST_MESSAGES:
        return _long()
    return _USUAL(self, at, request)


@asynccontextmanager
async def _long() -> AsyncIterator[AgentAnswer]:
    yield AgentAnswer(200, {"content-type": agent_api.JSON}, _blocks())


async def _blocks() -> AsyncIterator[bytes]:
    said = {"role": "User", "content": "", "timestamp": None, "message_index": 0, "turn_id": None}
    yield b'{"session_id": "s", "total_count": 1, "messages": ['
    empty = json.dumps({**said, "content": "y" * 100}).encode() + b","
    for _ in range(_BLOCKS):
        yield empty * (_BLOCK // len(empty))
        await asyncio.sleep(0)
    yield json.dumps(said).encode() + b"]}"


async def _serve() -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with site() as one:
        path = await one.project("p", active=True)
        await one.ask("POST", f"{path}/sessions")
        sys.stdout.write(f"{one.port}\n")
        sys.stdout.flush()
        await ended.wait()


MemoryAgents.relay = _relay  # type: ignore[method-assign]  # the hostile one
configure_logging("json", "error")
asyncio.run(_serve())
