"""Greylag as its users run it: real programs over one data folder, the real goose behind them."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.ports import free_port

from greylag.agentd.agent.types import find_agent
from greylag.cluster.local.folders import Folder
from greylag.cluster.local.processes import ProcessId, is_alive, marked, send
from greylag.common import sse
from greylag.common.token_file import read_token

READY_SECONDS = 60
END_SECONDS = 30
PATIENCE = 60
PROJECTS = "/api/users/me/projects"

real_goose = [
    pytest.mark.goose,
    pytest.mark.slow,
    pytest.mark.skipif(
        find_agent(None, os.environ).kind != "goose",
        reason="NOT TESTED: the real goose is not installed",
    ),
]


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream; ``id`` is ``None`` for what the platform says by itself."""

    id: str | None
    type: str
    content: dict[str, Any]


class RefusedError(Exception):
    """A stream was answered with a status that is none of success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Product:
    """A data folder, a port, and the programs that run over them now."""

    def __init__(
        self, folder: Path, settings: Mapping[str, str], start_folder: Path | None = None
    ) -> None:
        self.data = folder / "data"
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.programs: dict[str, Process] = {}
        self._settings = settings
        self._start_folder = start_folder
        self._marks: set[str] = set()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        # A kept connection may be closed by the server just when a request is on its way.
        afresh = aiohttp.TCPConnector(force_close=True)
        self.http = aiohttp.ClientSession(self.address, timeout=timeout, connector=afresh)

    async def start(self, verb: str = "up") -> None:
        """Run `greylag <verb>` and wait until it says that it is ready."""
        words = [verb, "--data", str(self.data)]
        words += [] if verb == "worker" else ["--port", str(self.port)]
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        log = self.data.with_name(f"{verb}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            process = self.programs[verb] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "greylag", *words),
                env={**kept, **self._settings},
                cwd=self._start_folder,
                stdout=PIPE,
                stderr=stderr,
            )
        assert process.stdout is not None
        ready = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                ready = await process.stdout.readline()
        if not ready:
            with suppress(ProcessLookupError):
                process.kill()  # else `close` would ask it, and what that meets hide this
            await process.wait()
        assert ready, f"greylag {verb} ended, or was not ready in time:\n{log.read_text()[-2000:]}"
        if (token := read_token(self.data / "token")) is not None:
            self.http.headers["authorization"] = f"Bearer {token}"

    @property
    def env(self) -> dict[str, str]:
        """What the command line finds the server and its token by."""
        return {"GREYLAG_SERVER": self.address, "GREYLAG_DATA": str(self.data)}

    def signed_in(self, address: str) -> aiohttp.ClientSession:
        """Return a client of its own that reaches the server at ``address``, as the operator."""
        return aiohttp.ClientSession(address, headers=self.http.headers)

    async def kill(self, verb: str = "up") -> None:
        """Kill the program as a machine that loses power does."""
        self.programs[verb].kill()
        await self.programs[verb].wait()

    async def end(self, verb: str = "up", number: int = signal.SIGINT) -> int:
        """Ask the program to end and return its exit code."""
        process = self.programs.pop(verb)
        if process.returncode is None:
            process.send_signal(number)
        async with asyncio.timeout(END_SECONDS):
            return await process.wait()

    async def call(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, Any]:
        """Send a request; return its status and its JSON (``None`` for an empty answer)."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.request(method, path, json=body, headers=named) as answer:
            raw = await answer.read()
            return answer.status, json.loads(raw) if raw else None

    async def project(self, project_id: str, *, active: bool = True, **more: object) -> str:
        """Create a project (and activate it) and return its path."""
        about = {"name": "X", "project_id": project_id, **more}
        status, made = await self.call("POST", PROJECTS, about)
        assert status == 201, made
        path = f"{PROJECTS}/{project_id}"
        if active:
            status, active_one = await self.call("POST", f"{path}/activate")
            assert (status, active_one["status"]) == (200, "active"), active_one
        return path

    async def status(self, path: str) -> str | None:
        """Return the project's status, ``None`` when it is gone."""
        status, body = await self.call("GET", path)
        assert status in {200, 404}, body
        return str(body["status"]) if status == 200 else None

    async def stream(
        self, method: str, path: str, body: object = None, after: str | None = None
    ) -> AsyncIterator[Event]:
        """Yield a stream's events as they come."""
        splitter = sse.FrameSplitter()
        headers = {} if after is None else {"last-event-id": after}
        async with self.http.request(method, path, json=body, headers=headers) as answer:
            if answer.status != 200:
                raise RefusedError(answer.status, await answer.text())
            async for data in answer.content.iter_any():
                for raw in splitter.feed(data):
                    if (frame := sse.parse(raw)) is not None:
                        yield Event(frame.id, **json.loads(frame.data))

    async def say(self, path: str, message: str, **more: str) -> list[Event]:
        """Send a message and return all events of its answer."""
        body = {"message": message, **more}
        async with asyncio.timeout(PATIENCE):
            return [event async for event in self.stream("POST", f"{path}/messages", body)]

    async def first(self, path: str, kind: str, message: str, **more: str) -> Event:
        """Send a message, leave at its first event of this kind, and return that."""
        body = {"message": message, **more}
        async with asyncio.timeout(PATIENCE):
            async for event in self.stream("POST", f"{path}/messages", body):
                if event.type == kind:
                    return event
        raise AssertionError(f"the stream ended without {kind}")

    async def rest_of(self, path: str, turn: str, after: str | None = None) -> list[Event]:
        """Return a turn's events, from the one after ``after``, to its end."""
        events = f"{path}/turns/{turn}/events"
        async with asyncio.timeout(PATIENCE):
            return [event async for event in self.stream("GET", events, after=after)]

    async def log(self, path: str, code: str, after: str | None = None) -> list[Event]:
        """Return the activation log's events to the first one with this code."""
        found: list[Event] = []
        async with asyncio.timeout(PATIENCE):
            async for event in self.stream("GET", f"{path}/events", after=after):
                found.append(event)
                if event.content["code"] == code:
                    return found
        raise AssertionError(f"the log ended without {code}")

    async def follow(self, path: str, message: str, message_id: str) -> list[Event]:
        """Send a message and return its turn's own events, through any number of breaks: the
        message is sent again until the turn is known, then the turn is resumed.
        """
        found: list[Event] = []
        body = {"message": message, "message_id": message_id}
        async with asyncio.timeout(PATIENCE):
            while not found or found[-1].type != "complete":
                last = found[-1].id if found else None
                turn = (last or "").rpartition("-")[0]
                again = ("GET", f"{path}/turns/{turn}/events", None, last)
                stream = self.stream(*(again if found else ("POST", f"{path}/messages", body)))
                try:
                    async for event in stream:
                        found += [event] if event.id is not None else []
                except (aiohttp.ClientError, RefusedError):
                    await asyncio.sleep(0.1)
        return found

    def change(self, **settings: str) -> None:
        """Set more for what is started from now on."""
        self._settings = {**self._settings, **settings}

    async def until(self, path: str, **values: object) -> None:
        """Wait until members of the project have these values."""
        async with asyncio.timeout(PATIENCE):
            while True:
                _, one = await self.call("GET", path)
                if values.items() <= one.items():
                    return
                await asyncio.sleep(0.05)

    async def settled(self, path: str) -> str | None:
        """Wait until what is wanted of the project is so; return its status, or ``None``."""
        async with asyncio.timeout(PATIENCE):
            while True:
                status, one = await self.call("GET", path)
                if status == 404:
                    return None
                reached = one["observed_generation"] >= one["generation"]
                if reached and one["status"] in {"active", "inactive", "error"}:
                    return str(one["status"])
                await asyncio.sleep(0.05)

    def volume(self, project_id: str) -> Path:
        """Return the folder in which the project's agent lives."""
        (folder,) = [one for one in self.folders() if one.deployment == f"{project_id}-api"]
        return folder.volume

    def folders(self) -> list[Folder]:
        """Return the folders of all environments that exist."""
        return Folder.all(self.data / "environments")

    def processes(self) -> set[ProcessId]:
        """Return every living process of any environment that this folder has ever had."""
        for folder in self.folders():
            if record := folder.read():
                self._marks.add(record.mark)
        return {one for mark in self._marks for one in marked(mark) if is_alive(one)}

    async def close(self) -> None:
        """Delete all projects, end all programs, and see that nothing is left."""
        try:
            if any(program.returncode is None for program in self.programs.values()):
                self.processes()
                _, listed = await self.call("GET", PROJECTS)
                for one in listed["projects"]:
                    await self.call("DELETE", path := f"{PROJECTS}/{one['project_id']}")
                    # A busy machine's answer may be that it is begun.
                    await self.settled(path)
        finally:
            await self.http.close()
            for verb in list(self.programs):
                await self.end(verb)
            left = self.processes()
            send(left, signal.SIGKILL)
        assert not left, "processes of deleted environments are left"


@asynccontextmanager
async def product(folder: Path, *verbs: str, **settings: str) -> AsyncIterator[Product]:
    """Run ``verbs`` (`up` when there is none) over a folder of their own until the block ends."""
    one = Product(folder, settings)
    try:
        for verb in verbs or ("up",):
            await one.start(verb)
        yield one
    finally:
        await one.close()


def text_of(events: list[Event]) -> str:
    """Return what the agent said."""
    return "".join(event.content["content"] for event in events if event.type == "message")


def types_of(events: list[Event]) -> list[str]:
    """Return the types of events, in order."""
    return [event.type for event in events]


def ids_of(events: list[Event]) -> list[str]:
    """Return the ids of the turn's own events."""
    return [event.id for event in events if event.id is not None]
