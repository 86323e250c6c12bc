"""What floods cost the web in memory: a process of its own, floods bounded in bytes and number.

Each flood runs against one process, and its peak over rest is what counts.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

MOST_OVER_REST = 40 * 1024 * 1024
ENDLESS = 75_000_000
PATIENCE = 30.0
PROGRAM = Path(__file__).with_name("web.py")


@dataclass
class Web:
    """A process that serves the web over a hostile agent."""

    port: int
    pid: int

    def peak(self) -> int:
        """Return the most memory that it has had since ``rest``, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def rest(self) -> int:
        """Begin to measure; return what it has now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.peak()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@asynccontextmanager
async def web() -> AsyncIterator[Web]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        stdout=asyncio.subprocess.PIPE,
        env=environ,
    )
    assert process.stdout is not None
    try:
        yield Web(int(await process.stdout.readline()), process.pid)
    finally:
        process.terminate()
        await process.wait()


async def send(one: Web, begin: bytes, piece: bytes, most: int) -> None:
    """Send until the server ends it, or so many bytes have gone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    with suppress(OSError):
        writer.write(begin)
        for _ in range(most // len(piece)):
            writer.write(piece)
            await writer.drain()
        await reader.read(100)
    writer.close()


async def headers(one: Web) -> None:
    begin = b"GET / HTTP/1.1\r\nhost: localhost\r\nx: "
    await asyncio.gather(*(send(one, begin, b"y" * 65_536, ENDLESS) for _ in range(4)))


async def bodies(one: Web) -> None:
    begin = b"POST /api/users/ada/projects HTTP/1.1\r\nhost: localhost\r\n"
    begin += b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    await asyncio.gather(*(send(one, begin, piece, 8_000_000) for _ in range(16)))


async def pipelines(one: Web) -> None:
    ahead = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n" * 2000
    await asyncio.gather(*(send(one, ahead, ahead, 2_000_000) for _ in range(16)))


async def half_open(one: Web) -> None:
    writers = []
    for _ in range(1100):
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", one.port)
            writer.write(b"GET / HTTP/1.1\r\n")
            writers.append(writer)
    async with aiohttp.ClientSession() as client, client.get(one.url("/healthz")) as answer:
        assert answer.status == 200  # whole requests are answered all the while
    for writer in writers:
        writer.close()


async def histories(one: Web) -> None:
    async def look(path: str) -> None:
        async with aiohttp.ClientSession() as client, client.get(one.url(path)) as answer:
            async for _ in answer.content.iter_any():
                pass

    at = "/users/ada/projects/p"
    relayed = f"/api{at}/sessions/s/messages"
    await asyncio.gather(*(look(path) for path in [at, at, at, at, relayed, relayed]))


async def unread_streams(one: Web) -> None:
    asked = b"GET /api/users/ada/projects/p/sessions/s/messages HTTP/1.1\r\nhost: localhost\r\n\r\n"
    writers = []
    for _ in range(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port, limit=1024)
        writer.write(asked)
        await reader.readuntil(b"\r\n\r\n")
        writers.append(writer)
    for writer in writers:
        writer.close()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc: NOT tested")
@pytest.mark.parametrize(
    "flood", [headers, bodies, pipelines, half_open, histories, unread_streams]
)
async def test_a_flood_costs_little_memory(flood: Callable[[Web], Awaitable[None]]) -> None:
    async with asyncio.timeout(PATIENCE * 2), web() as one:
        async with aiohttp.ClientSession() as client:
            for path in ("/healthz", "/users/ada", "/users/ada/projects/p"):
                async with client.get(one.url(path)) as answer:
                    await answer.read()
        rest = one.rest()
        await flood(one)
        cost = one.peak() - rest
        sys.stdout.write(f"{flood.__name__}: {cost / 2**20:.1f} MiB over {rest / 2**20:.0f}\n")
        assert cost <= MOST_OVER_REST
