"""The gateways that the contract suite runs over, each with an agent behind it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from tests.fakes.agent import MemoryAgents

from greylag.agent.http import HttpAgents
from greylag.agentd.agent.types import find_agent
from greylag.ports import AgentAddress, AgentGateway

ADAPTERS = ("memory", pytest.param("http", marks=pytest.mark.goose))
TOKEN = "a token of the contract suite"


@dataclass(frozen=True)
class Agent:
    """A gateway, where its agent is, and messages that make the agent do what is needed."""

    gateway: AgentGateway
    at: AgentAddress
    waits: str
    asks: str
    nobody: AgentAddress


@asynccontextmanager
async def open_agent(kind: str, folder: Path) -> AsyncIterator[Agent]:
    """Open a gateway with a fresh agent behind it."""
    if kind == "memory":
        agents = MemoryAgents()
        nobody = AgentAddress("memory://nobody/here", TOKEN)
        agents.unreachable.add(nobody.url)
        at = AgentAddress("memory://user-ada/demo-api", TOKEN)
        yield Agent(agents, at, "wait: here", "run: echo hi", nobody)
        return
    if find_agent(None, os.environ).kind != "goose":
        pytest.skip("SKIPPED LOUDLY: the real goose is not installed (make setup installs it)")
    async with _agentd(folder) as port:
        gateway = HttpAgents()
        try:
            at = AgentAddress(f"http://127.0.0.1:{port}", TOKEN)
            nobody = AgentAddress("http://127.0.0.1:9", TOKEN)
            yield Agent(gateway, at, "[[hang]]", "run: echo hi", nobody)
        finally:
            await gateway.close()


@asynccontextmanager
async def _agentd(folder: Path) -> AsyncIterator[int]:
    environment = {
        "PATH": os.environ["PATH"],
        "GREYLAG_AGENT_FOLDER": str(folder),
        "GREYLAG_AGENT_TOKEN": TOKEN,
        "GOOSE_API_PORT": "0",
        "GOOSE_MODE": "approve",
    }
    with (folder / "agentd.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "greylag.agentd", env=environment, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(30):
            port = await _ready_port(folder, process)
        yield port
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def _ready_port(folder: Path, process: asyncio.subprocess.Process) -> int:
    listening = folder / "state" / "listening.json"
    async with aiohttp.ClientSession() as http:
        while process.returncode is None:
            if listening.exists():
                port = int(json.loads(listening.read_text())["port"])
                async with http.get(f"http://127.0.0.1:{port}/api/v1/health") as answer:
                    if answer.status == 200:
                        return port
            await asyncio.sleep(0.02)
    raise AssertionError((folder / "agentd.log").read_text())
