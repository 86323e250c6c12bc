"""What the benchmarks share: processes that say when they are ready, their memory and CPU time."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
console = Console(width=100)
_READY_SECONDS = 60
_END_SECONDS = 30
_MEGABYTE = 1_000_000


@asynccontextmanager
async def program(
    *command: str, core: int | None = None, env: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Process, str]]:
    """Run a program until the block ends; give it and its first line, which says it is ready."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=DEVNULL, env={**os.environ, **(env or {})}
    )
    if core is not None:
        psutil.Process(process.pid).cpu_affinity([core % (os.cpu_count() or 1)])
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_READY_SECONDS):
            line = (await process.stdout.readline()).decode().strip()
        assert line, f"{' '.join(command)} ended before it was ready"
        yield process, line
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(_END_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def greylag_up(data: Path, **env: str) -> AsyncIterator[tuple[Process, str]]:
    """Run `greylag up` over ``data`` and give its process and its address."""
    command = (sys.executable, "-m", "greylag", "up", "--port", "0", "--data", str(data))
    async with program(*command, env=env) as (process, line):
        yield process, line.rpartition(" ")[2]


def show(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print what was measured, each with its figure."""
    table = Table(title=title)
    table.add_column("what")
    table.add_column("figure", justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def bearer(data: Path) -> dict[str, str]:
    """Return the headers that a Greylag over ``data`` lets in."""
    token = (data / "token").read_text("utf-8").strip()
    return {"authorization": f"Bearer {token}"}


def megabytes(pid: int) -> float:
    """Return the memory of one process, its share of shared pages included (PSS), in MB."""
    return float(psutil.Process(pid).memory_full_info().pss) / _MEGABYTE


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that one process has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
