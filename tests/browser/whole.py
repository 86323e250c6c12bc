"""`greylag up` as its users run it, in a process of its own, with the real goose."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from greylag.agentd.agent.types import find_agent
from greylag.cluster.local.folders import Folder
from greylag.cluster.local.processes import marked, send

READY_SECONDS = 30
END_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Whole:
    """A running Greylag."""

    address: str
    link: str
    token: str
    http: aiohttp.ClientSession

    @property
    def port(self) -> int:
        """The port that it answers on."""
        return urlsplit(self.address).port or 0

    async def project(self) -> str:
        """Create and activate a project and return its API path."""
        projects = "/api/users/me/projects"
        body = {"name": "Whole", "project_id": "whole"}
        async with self.http.post(projects, json=body) as made:
            assert made.status == 201, await made.text()
        async with self.http.post(f"{projects}/whole/activate") as activated:
            assert activated.status == 200, await activated.text()
        return f"{projects}/whole"


def has_goose() -> bool:
    """Tell whether the real goose is installed here."""
    return find_agent(None, os.environ).kind == "goose"


def kill_environments(data: Path) -> None:
    """Kill every process of every environment of a Greylag on this machine."""
    for folder in Folder.all(data / "environments"):
        if record := folder.read():
            send(marked(record.mark), signal.SIGKILL)


@asynccontextmanager
async def up(data: Path, **settings: str) -> AsyncIterator[Whole]:
    """Run `greylag up`; on leaving, nothing that it started lives on."""
    command = (sys.executable, "-m", "greylag", "up", "--port", "0", "--data", str(data))
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=asyncio.subprocess.DEVNULL, env=environment | settings
    )
    try:
        address, link = await _said(process, "ready: "), await _said(process, "once): ")
        token = (data / "token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        origin = str(URL(address).origin())
        async with aiohttp.ClientSession(origin, headers=headers) as http:
            yield Whole(address, link, token, http)
            for path in await _projects(http):
                async with http.delete(path) as answer:
                    await answer.read()
    finally:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(END_SECONDS):
            await process.wait()


async def _said(process: Process, words: str) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(READY_SECONDS):
        async for line in process.stdout:
            _, found, address = line.decode().partition(words)
            if found:
                return address.strip()
    raise AssertionError("greylag up ended before it was ready")


async def _projects(http: aiohttp.ClientSession) -> list[str]:
    async with http.get("/api/users/me/projects") as answer:
        found = (await answer.json())["projects"]
    return [f"/api/users/me/projects/{one['project_id']}" for one in found]
