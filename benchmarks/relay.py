"""The relay of streams against a Node http pipe, in one run: CPU per event, and memory.

Each relay is pinned to one core, the agent and the readers to another; rounds are interleaved.
"""

import argparse
import asyncio
import shutil
import statistics
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from benchmarks.support import HERE, console, cpu_seconds, megabytes, program
from rich.table import Table

STREAMS, PACE = 200, 20
IDLE_STREAMS = 2_000
FLOODED = 20
ROUND_SECONDS = 4.0
RELAY_CORE, OTHER_CORE = 0, 1
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Relay:
    """A running relay; ``path`` is where it has a turn's events."""

    name: str
    pid: int
    port: int
    path: str


class Reader:
    """One client of a stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.events = 0

    @classmethod
    async def open(cls, relay: Relay, turn: str) -> "Reader":
        """Ask for a turn's events and wait for the first one."""
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        path = relay.path.format(turn=turn)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
        await reader.readuntil(b"data:")
        return cls(reader, writer)

    async def read(self) -> None:
        """Count events until cancelled."""
        while chunk := await self._reader.read(65536):
            self.events += chunk.count(b"data:")

    def close(self) -> None:
        """Leave."""
        self._writer.transport.abort()


@asynccontextmanager
async def open_streams(relay: Relay, turn: str, count: int) -> AsyncIterator[list[Reader]]:
    """Open so many streams, a hundred at a time."""
    readers: list[Reader] = []
    try:
        while len(readers) < count:
            some = min(100, count - len(readers))
            readers += await asyncio.gather(*(Reader.open(relay, turn) for _ in range(some)))
        yield readers
    finally:
        for reader in readers:
            reader.close()
        await asyncio.sleep(0.5)


async def cpu_per_million(relay: Relay, seconds: float) -> float:
    """Return the relay's CPU seconds for a million events at a steady pace."""
    async with open_streams(relay, f"paced-{PACE}", STREAMS) as readers:
        reading = [asyncio.create_task(reader.read(), name="read") for reader in readers]
        await asyncio.sleep(0.5)
        before, seen = cpu_seconds(relay.pid), sum(reader.events for reader in readers)
        await asyncio.sleep(seconds)
        used = cpu_seconds(relay.pid) - before
        events = sum(reader.events for reader in readers) - seen
        for task in reading:
            task.cancel()
    assert events > STREAMS * PACE * seconds * 0.8, f"{relay.name} fell behind: {events} events"
    return float(used / events * MILLION)


async def memory(relay: Relay) -> tuple[float, float, float]:
    """Return MB: at rest, with many idle streams, and with readers that do not read a flood."""
    rest = megabytes(relay.pid)
    async with open_streams(relay, "idle", IDLE_STREAMS):
        idle = megabytes(relay.pid)
    # Nobody reads these: what grows after the pipes are full would grow for ever.
    async with open_streams(relay, "flood", FLOODED):
        await asyncio.sleep(6)
        early = megabytes(relay.pid)
        await asyncio.sleep(3)
        growth = megabytes(relay.pid) - early
    return rest, idle, growth


@asynccontextmanager
async def relays() -> AsyncIterator[list[Relay]]:
    """Run the agent and each relay before it."""
    async with AsyncExitStack() as running:

        async def run(*command: str, core: int) -> tuple[Process, str]:
            return await running.enter_async_context(program(*command, core=core))

        upstream = str(HERE / "relay_upstream.py")
        _, port = await run(sys.executable, upstream, core=OTHER_CORE)
        agent = f"http://127.0.0.1:{port}"
        ours, address = await run(sys.executable, "-m", "benchmarks.relay_ours", agent, core=0)
        path = "/api/users/ada/projects/p/turns/{turn}/events"
        found = [Relay("Greylag", ours.pid, int(address.rpartition(":")[2]), path)]
        node = shutil.which("node")
        if node is None:
            console.print("NO PEER: Node.js is not installed, so there is no ratio.")
        else:
            peer, port = await run(node, str(HERE / "relay_node.mjs"), agent, core=RELAY_CORE)
            path = "/api/v1/turns/{turn}/events"
            found.append(Relay("Node http pipe", peer.pid, int(port), path))
        yield found


async def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    async with relays() as found:
        rounds: list[list[float]] = []
        for number in range(given.rounds):
            row = [await cpu_per_million(relay, ROUND_SECONDS) for relay in found]
            rounds += [row] if number else []  # the first round warms up
        await report(found, rounds)


async def report(found: list[Relay], rounds: list[list[float]]) -> None:
    """Measure memory too, and print the table; the last relay is the peer."""
    table = Table(title=f"Relay: {STREAMS} streams x {PACE} events/s of 200 bytes, one core")
    table.add_column("relay")
    for name in ("CPU s / 1M events", "ratio", "MB at rest", "MB, 2,000 idle", "MB grown, flood"):
        table.add_column(name, justify="right")
    for index, relay in enumerate(found):
        cost = statistics.median(row[index] for row in rounds)
        ratio = statistics.median(row[index] / row[-1] for row in rounds)
        figures = f"{cost:.0f}", f"{ratio:.2f}", *(f"{mb:.1f}" for mb in await memory(relay))
        table.add_row(relay.name, *figures)
    console.print(table)


if __name__ == "__main__":
    asyncio.run(main())
