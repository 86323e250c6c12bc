"""Webs behind a round-robin proxy, workers, and what is done to them."""

import asyncio
import os
import random
import signal
import sys
import time
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.ports import free_port
from tests.soak.proof import Stood
from tests.store import mongo_servers

PROGRAM = Path(__file__).with_name("program.py")
READY_SECONDS = 60
PAUSED_SECONDS = 3.0
CLEAN_UP_SECONDS = 5.0


class Fleet:
    """The processes; ``port`` is the proxy's."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.kills = 0
        self.stood: list[Stood] = []
        self.port = free_port()
        self._folder = folder
        self._settings = settings
        self._ports = [free_port() for _ in range(3)]
        self._running: dict[str, Process] = {}
        self._disturbed: set[str] = set()
        self._turn_to_kill = False
        self._turn = 0
        self._proxy: asyncio.Server | None = None

    async def start(self) -> None:
        """Start three webs, three workers and the proxy."""
        self._proxy = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        names = [f"{kind}-{number}" for kind in ("serve", "worker") for number in range(3)]
        await asyncio.gather(*(self._start(name) for name in names))

    async def disturb(self, rng: random.Random) -> None:
        """Kill one process and start it again, or, every other time, let it stand still past a
        lease. Half of them at most are disturbed at once.
        """
        if len(self._disturbed) >= len(self._running) // 2:
            return
        name = rng.choice(sorted(set(self._running) - self._disturbed))
        self._disturbed.add(name)
        self._turn_to_kill = not self._turn_to_kill
        await (self._kill(name) if self._turn_to_kill else self._pause(name))
        self._disturbed.remove(name)

    async def close(self) -> None:
        """End everything."""
        if self._proxy is not None:
            self._proxy.close()
        for process in self._running.values():
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self._running.values():
            with suppress(TimeoutError):
                async with asyncio.timeout(15):
                    await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _pause(self, name: str) -> None:
        process = self._running[name]
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(PAUSED_SECONDS)
        self.stood.append(Stood(process.pid, time.time()))
        process.send_signal(signal.SIGCONT)

    async def _kill(self, name: str) -> None:
        self.kills += 1
        process = self._running[name]
        process.kill()
        await process.wait()
        await mongo_servers.end_transactions(self._settings["MONGODB_URI"])
        await self._start(name)

    async def end_old_transactions(self) -> None:
        """Do what a real server does by itself until this is cancelled: what a killed program had
        sent last may have begun a transaction after all had been ended. Those that go on are ended
        too, and tried again.
        """
        while True:
            await asyncio.sleep(CLEAN_UP_SECONDS)
            await mongo_servers.end_transactions(self._settings["MONGODB_URI"])

    async def _start(self, name: str) -> None:
        kind, _, number = name.partition("-")
        words = [kind, "--data", str(self._folder / name)]
        words += ["--port", str(self._ports[int(number)])] if kind == "serve" else []
        kept = {one: os.environ[one] for one in ("PATH", "HOME") if one in os.environ}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(PROGRAM), *words),
            env={**kept, **self._settings},
            stdout=PIPE,
            stderr=DEVNULL,
        )
        self._running[name] = process
        assert process.stdout is not None
        async with asyncio.timeout(READY_SECONDS):
            assert await process.stdout.readline(), f"{name} ended before it was ready"

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Give each connection to the next web that takes it."""
        try:
            backend = await self._next()
            if backend is not None:
                there, back = backend
                await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))
        finally:
            writer.close()

    async def _next(self) -> tuple[StreamReader, StreamWriter] | None:
        for _ in self._ports:
            self._turn += 1
            port = self._ports[self._turn % len(self._ports)]
            with suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None


async def _pass_on(reader: StreamReader, writer: StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.close()
