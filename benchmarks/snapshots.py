"""How long a state of a workspace takes: prints one table.

``python benchmarks/snapshots.py`` makes 50,000 files, 1 GB in all, half of it text, and keeps their
state as agentd does, through an execd in a process of its own: first, again with nothing changed,
and after 10 files changed; then it undoes those. Meanwhile it runs an echo through the same execd,
whose longest round says how long an agent would be held up.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from greylag.agentd.changes.capture import Capture
from greylag.agentd.changes.service import ChangeService
from greylag.agentd.changes.store import SnapshotStore
from greylag.agentd.execution import ExecdProcess, Execution, ExecutionError
from greylag.agentd.records import HistoryCut
from greylag.common.agent_api import UndoWish

LIMIT = 4 * 1024**3
LINE = b"def function(argument: int) -> int:  # a line of text that is much like another\n"


def fill(root: Path, files: int, total: int) -> None:
    """Make a workspace of so many files and bytes, the modified times long ago."""
    chance = random.Random(1)  # noqa: S311 - the same in each run
    size = total // files
    for number in range(files):
        folder = root / f"d{number % 50}" / f"e{number // 50 % 50}"
        folder.mkdir(parents=True, exist_ok=True)
        length = chance.randint(size // 2, size * 3 // 2)
        text = f"{number}\n".encode() + LINE * (length // len(LINE) + 1)
        content = text[:length] if number % 2 else chance.randbytes(length)
        (folder / f"f{number}.py").write_bytes(content)


class Rounds:
    """An echo through execd, round after round, and how long each took."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self.seconds: list[float] = []

    async def run(self) -> None:
        """Echo until cancelled."""
        path = Path("/")
        echo = await self._execution.run(["cat"], env={}, cwd=path, group="echo")
        try:
            while True:
                began = time.perf_counter()
                echo.write(b"x\n")
                await echo.drain()
                await echo.stdout.read(10)
                self.seconds.append(time.perf_counter() - began)
                await asyncio.sleep(0.005)
        finally:
            await echo.end()


class Measured:
    """The table's rows: what was done, its seconds, and the longest echo meanwhile."""

    def __init__(self, root: Path, execution: Execution, capture: Capture) -> None:
        self.rows: list[tuple[str, float, float]] = []
        self._root = root
        self._execution = execution
        self._capture = capture

    async def states(self, name: str, times: int, *, change: bool) -> None:
        """Keep the state some times, perhaps after changes."""
        took = []
        rounds = Rounds(self._execution)
        echoing = asyncio.create_task(rounds.run(), name="echo")
        await asyncio.sleep(0.5)
        for number in range(times):
            if change:
                _change(self._root, number)
            began = time.perf_counter()
            await self._capture.take()
            took.append(time.perf_counter() - began)
        echoing.cancel()
        await asyncio.wait({echoing})
        self.rows.append((name, statistics.median(took), max(rounds.seconds)))

    async def undo(self, service: ChangeService) -> None:
        """Undo a turn that changed 10 files."""
        await service.begin("t", "s")
        _change(self._root, 99)
        await service.end("t")
        began = time.perf_counter()
        undone = await service.undo("t", UndoWish())
        words = f"undo of {undone.changes.total} files"
        self.rows.append((words, time.perf_counter() - began, 0.0))


async def _forget(_cut: HistoryCut) -> None:
    """Do nothing: there is no agent that could forget."""


async def measured(folder: Path) -> list[tuple[str, float, float]]:
    """Return the table's rows for the workspace in a folder."""
    execution = Execution(folder / "execd")
    command = (sys.executable, "-I", "-m", "greylag.execd")
    running = ExecdProcess(command, folder / "execd", os.environ).run()
    execd = asyncio.create_task(running, name="execd")
    while not await _answers(execution):  # noqa: ASYNC110 - nobody tells us of its start
        await asyncio.sleep(0.05)
    store = SnapshotStore(folder / "snapshots.db", LIMIT)
    root = folder / "workspace"
    capture = Capture(execution, root, store)
    service = ChangeService(store, capture, _forget)
    found = Measured(root, execution, capture)
    await found.states("first state", 1, change=False)
    await found.states("nothing changed", 5, change=False)
    await found.states("10 files changed", 5, change=True)
    await found.undo(service)
    await service.stop()
    await store.aclose()
    execd.cancel()
    await asyncio.wait({execd})
    return found.rows


def _change(root: Path, number: int) -> None:
    for place in range(10):
        (root / f"d{place}" / "e0" / f"f{place}.py").write_text(f"{number}\n")


async def _answers(execution: Execution) -> bool:
    try:
        await execution.hello()
    except ExecutionError:
        return False
    return True


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--bytes", type=int, default=10**9)
    given = parser.parse_args()
    table = Table("state", "seconds", "longest echo, ms")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        fill(folder / "workspace", given.files, given.bytes)
        time.sleep(1.1)  # what changed just now would be read again
        for name, seconds, longest in asyncio.run(measured(folder)):
            table.add_row(name, f"{seconds:.2f}", f"{longest * 1000:.0f}")
        kept = (folder / "snapshots.db").stat().st_size
        table.add_row(f"kept: {kept / 1024**2:.0f} MiB", "", "")
    Console().print(table)


if __name__ == "__main__":
    main()
