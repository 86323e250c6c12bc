"""Time to the first chunk: through web and agentd, against goose called directly, interleaved.

Both are warm (a session that has answered before) and have the same scripted model behind them.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from benchmarks.support import bearer, console, greylag_up
from rich.table import Table

from greylag.agentd.agent.types import find_agent
from greylag.agentd.model.scripted import app as scripted_model

PROJECTS = "/api/users/me/projects"
MESSAGE = "[[text one two three]]"
WARM_UP = 5


class Direct:
    """goose over stdio, spoken to as simply as can be."""

    def __init__(self, process: asyncio.subprocess.Process, workspace: Path) -> None:
        self._process, self._workspace = process, workspace
        self._number = 0
        self._session = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, model: str) -> AsyncIterator["Direct"]:
        """Start it with a session."""
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "GOOSE_PROVIDER": "openai",
            "GOOSE_MODEL": "scripted",
            "GOOSE_MODE": "auto",
            "GOOSE_DISABLE_KEYRING": "1",
            "GOOSE_TELEMETRY_OFF": "1",
            "OPENAI_HOST": model,
            "OPENAI_API_KEY": "any",
        }
        found = find_agent(None, os.environ)
        assert found.kind == "goose", "the real goose is not installed: run `make setup`"
        process = await asyncio.create_subprocess_exec(
            *found.argv,
            cwd=folder,
            env=env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=1 << 20,
        )
        one = cls(process, folder)
        try:
            await one._call("initialize", {"protocolVersion": 1, "clientCapabilities": {}})
            made = await one._call("session/new", {"cwd": str(folder), "mcpServers": []})
            one._session = made["sessionId"]
            yield one
        finally:
            process.kill()
            await process.wait()

    async def first_chunk(self) -> float:
        """Send a message; return seconds to its first chunk, once it has been answered."""
        before = time.perf_counter()
        self._send("session/prompt", {"sessionId": self._session, "prompt": [_TEXT]})
        took = 0.0
        while (message := await self._read()).get("id") != self._number:
            update = message.get("params", {}).get("update", {})
            if not took and update.get("sessionUpdate") == "agent_message_chunk":
                took = time.perf_counter() - before
        return took

    def _send(self, method: str, params: object) -> None:
        self._number += 1
        call = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(call).encode() + b"\n")

    async def _call(self, method: str, params: object) -> dict[str, str]:
        self._send(method, params)
        while (message := await self._read()).get("id") != self._number:
            pass
        result: dict[str, str] = message["result"]
        return result

    async def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        message: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return message


_TEXT = {"type": "text", "text": MESSAGE}


async def first_chunk(http: aiohttp.ClientSession, path: str, session: str) -> float:
    """Send a message through Greylag; return seconds to its first chunk, once it is answered."""
    before = time.perf_counter()
    took = 0.0
    body = {"message": MESSAGE, "session_id": session}
    async with http.post(path, json=body) as answer:
        async for line in answer.content:
            if not took and b'"type":"message"' in line:
                took = time.perf_counter() - before
    return took


@asynccontextmanager
async def model() -> AsyncIterator[str]:
    """Serve the scripted model for the goose that is called directly."""
    runner = web.AppRunner(scripted_model(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def measure(folder: Path, runs: int) -> list[tuple[float, float]]:
    """Return pairs of seconds: through Greylag, and direct."""
    (folder / "direct").mkdir()
    async with (
        model() as url,
        Direct.open(folder / "direct", url) as direct,
        greylag_up(folder / "data", GOOSE_MODE="auto") as (_, address),
        aiohttp.ClientSession(address, headers=bearer(folder / "data")) as http,
    ):
        await http.post(PROJECTS, json={"name": "x", "project_id": "x"})
        await http.post(f"{PROJECTS}/x/activate")
        made = await (await http.post(f"{PROJECTS}/x/sessions")).json()
        session = made["session_id"]
        path = f"{PROJECTS}/x/messages"
        pairs = [
            (await first_chunk(http, path, session), await direct.first_chunk())
            for _ in range(runs + WARM_UP)
        ]
        await http.delete(f"{PROJECTS}/x")
        return pairs[WARM_UP:]


async def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = await measure(Path(folder), given.runs)
    table = Table(title=f"Time to first chunk, {given.runs} pairs, warm session")
    for name in ("", "median ms", "p95 ms"):
        table.add_column(name, justify="right" if name else "left")
    added = [ours - direct for ours, direct in pairs]
    rows = {
        "through Greylag": [ours for ours, _ in pairs],
        "goose directly": [direct for _, direct in pairs],
        "added (aim: 30 at most)": added,
    }
    for name, values in rows.items():
        p95 = statistics.quantiles(values, n=20)[-1]
        table.add_row(name, f"{statistics.median(values) * 1000:.1f}", f"{p95 * 1000:.1f}")
    console.print(table)


if __name__ == "__main__":
    asyncio.run(main())
