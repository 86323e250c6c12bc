"""How soon `greylag up` is ready, and how much memory it takes at rest."""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
import psutil
from benchmarks.support import bearer, console, greylag_up, megabytes
from rich.table import Table

SETTLE_SECONDS = 3.0
PROJECTS = "/api/users/me/projects"


async def start_seconds(data: Path) -> float:
    """Return how long it takes from the command to the line that says it is ready."""
    before = time.monotonic()
    async with greylag_up(data):
        return time.monotonic() - before


async def memory(data: Path) -> dict[str, float]:
    """Return MB of the web and worker, and of one environment's processes, all at rest."""
    async with (
        greylag_up(data) as (up, address),
        aiohttp.ClientSession(address, headers=bearer(data)) as http,
    ):
        await http.post(PROJECTS, json={"name": "x", "project_id": "x"})
        assert (await http.post(f"{PROJECTS}/x/activate")).ok
        await (await http.post(f"{PROJECTS}/x/messages", json={"message": "hello"})).read()
        await asyncio.sleep(SETTLE_SECONDS)
        found = {"greylag up": megabytes(up.pid)}
        for process in psutil.process_iter():
            try:
                ours = str(data) in process.environ().get("GREYLAG_AGENT_FOLDER", "")
                command = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if ours and "bwrap" not in command:
                found["agentd"] = megabytes(process.pid)
                for child in process.children():
                    found[child.name()] = megabytes(child.pid)
        await http.delete(f"{PROJECTS}/x")
        return found


async def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        runs = [await start_seconds(data) for _ in range(given.runs)]
        found = await memory(data)
    table = Table(title="Footprint")
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("aim", justify="right")
    low, middle, high = min(runs), statistics.median(runs), max(runs)
    table.add_row("start to ready", f"{middle:.2f} s ({low:.2f} to {high:.2f})", "1 s")
    for name, size in found.items():
        aim = "120 MB" if name == "greylag up" else ""
        table.add_row(f"{name}, at rest", f"{size:.0f} MB", aim)
    console.print(table)


if __name__ == "__main__":
    asyncio.run(main())
