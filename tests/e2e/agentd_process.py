"""agentd as its users run it: a process of its own, with the real goose."""

import asyncio
import json
import os
import signal
import sys
import uuid
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
from tests.agentd.client import Client


@dataclass
class Agentd(Client):
    """A running agentd."""

    process: Process
    folder: Path
    environment_id: str
    boxed: bool

    @property
    def workspace(self) -> Path:
        """Where the agent works."""
        return self.folder / "workspace"

    def others(self) -> list[psutil.Process]:
        """Return every living process of this environment but agentd itself."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("GREYLAG_ENVIRONMENT") == self.environment_id
                dead = process.status() == psutil.STATUS_ZOMBIE
            except psutil.Error:
                continue
            if mine and not dead and process.pid != self.process.pid:
                found.append(process)
        return found

    def goose(self) -> psutil.Process:
        """Return the agent process."""
        (execd,) = psutil.Process(self.process.pid).children()
        (goose,) = execd.children()
        return goose

    async def kill_all(self) -> None:
        """Kill agentd and all that it started, as a machine that loses its power does."""
        left = self.others()
        await self.stop(signal.SIGKILL)
        for each in left:
            with suppress(psutil.NoSuchProcess):  # execd ends them as well
                each.kill()
        await asyncio.to_thread(psutil.wait_procs, left, timeout=15)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        # A box passes no signal on; agentd is its only child.
        agentd = psutil.Process(self.process.pid).children() if self.boxed else [self.process]
        for process in agentd:
            process.send_signal(number)
        async with asyncio.timeout(15):
            return await self.process.wait()


def environment(folder: Path, environment_id: str, **more: str) -> dict[str, str]:
    """Return agentd's environment variables; nothing of the caller's but PATH and HOME."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "GREYLAG_AGENT_FOLDER": str(folder),
        "GREYLAG_AGENT_TOKEN": "test-token",
        "GREYLAG_ENVIRONMENT": environment_id,
        "GOOSE_API_PORT": "0",
        "GOOSE_MODE": "auto",
        **more,
    }


@asynccontextmanager
async def agentd(folder: Path, *box: str, **more: str) -> AsyncIterator[Agentd]:
    """Run agentd in `folder` until the block ends; then nothing of it may be left.

    `box` is a command that runs it where `folder` cannot be seen from here, on the port that
    GOOSE_API_PORT then has to name.
    """
    environment_id = f"test-{uuid.uuid4().hex}"
    process = await asyncio.create_subprocess_exec(
        *(*box, sys.executable, "-m", "greylag.agentd"),
        env=environment(folder, environment_id, **more),
        stderr=asyncio.subprocess.DEVNULL,
    )
    headers = {"authorization": "Bearer test-token"}
    async with aiohttp.ClientSession(headers=headers) as http:
        running = Agentd(http, "", process, folder, environment_id, bool(box))
        try:
            port = more["GOOSE_API_PORT"] if box else await _port(folder, process)
            running.base = f"http://127.0.0.1:{port}"
            await _ready(running)
            yield running
        finally:
            if process.returncode is None:
                await running.stop()
            left = running.others()
            for each in left:
                each.kill()
            assert left == [], "agentd left processes behind"


async def _port(folder: Path, process: Process) -> int:
    listening = folder / "state" / "listening.json"
    async with asyncio.timeout(20):
        while True:
            assert process.returncode is None, "agentd ended at once"
            # A file of an agentd that was killed may still be there.
            if listening.exists():
                about = json.loads(listening.read_text())
                if about["pid"] == process.pid:
                    return int(about["port"])
            await asyncio.sleep(0.02)


async def _ready(running: Agentd) -> None:
    async with asyncio.timeout(30):
        while not await _healthy(running):
            assert running.process.returncode is None, "agentd ended at once"
            await asyncio.sleep(0.05)


async def _healthy(running: Agentd) -> bool:
    try:
        return (await running.json("GET", "/api/v1/health"))[0] == 200
    except aiohttp.ClientConnectionError:  # in a box we do not see when it listens
        return False
