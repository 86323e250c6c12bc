"""What a worker costs: CPU with nothing to do, and writes to the store for one activation.

``python -m benchmarks.worker`` fills a SQLite file with inactive projects and lets `greylag worker`
rest over it; then an activation runs over counting adapters in memory.
"""

import argparse
import asyncio
import sqlite3
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.store import project
from benchmarks.support import console, cpu_seconds, megabytes, program
from rich.table import Table
from tests.fakes.agent import MemoryAgents
from tests.fakes.cluster import MemoryCluster
from tests.fakes.delivery import MemoryDelivery
from tests.fakes.store import MemoryStore
from tests.harness import settings
from tests.wishes import want

from greylag import wiring
from greylag.common.clock import SystemClock
from greylag.common.sqlite import transaction
from greylag.domain.project import Desired, Status
from greylag.reconcile.loop import Slot
from greylag.store.sqlite import queries
from greylag.store.sqlite.store import SqliteStore

USERS = 1000
SETTLE_SECONDS = 3.0
WRITES = frozenset({"create", "change", "claim_due", "renew", "record", "forget", "poke"})


class CountingStore(MemoryStore):
    """Counts calls that write. A claim that finds nothing writes nothing, and is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in WRITES:
            return found

        async def counted(*words: Any, **more: Any) -> Any:
            result = await found(*words, **more)
            if result is not None or name != "claim_due":
                self.calls[name] += 1
            return result

        return counted


async def idle(projects: int, seconds: float) -> tuple[float, float]:
    """Return the share of a core that an idle worker takes, and its memory in MB."""

    def insert(sql: sqlite3.Connection) -> None:
        with transaction(sql):
            for number in range(projects):
                resting = replace(
                    project(number, USERS),
                    status=Status.INACTIVE,
                    desired=Desired.INACTIVE,
                    due_at=None,
                )
                queries.insert(sql, resting, None)

    with tempfile.TemporaryDirectory() as folder:
        store = await SqliteStore.open(Path(folder) / "greylag.db")
        await store._writer.run(insert)  # noqa: SLF001 - one by one would wait for the disk each time
        await store.close()
        command = (sys.executable, "-m", "greylag", "worker", "--data", folder)
        async with program(*command) as (process, _):
            await asyncio.sleep(SETTLE_SECONDS)
            before = cpu_seconds(process.pid)
            await asyncio.sleep(seconds)
            return (cpu_seconds(process.pid) - before) / seconds, megabytes(process.pid)


async def activation() -> Counter[str]:
    """Return which writes one activation takes, from the request to the resting record."""
    store, clock = CountingStore(), SystemClock()
    made = replace(project(0, 1), status=Status.INACTIVE, desired=Desired.INACTIVE, due_at=None)
    await store.create(made)
    store.calls.clear()
    now = clock.now()
    await want(store, made.user_id, made.project_id, Desired.ACTIVE, now, now.replace(year=9999))
    adapters = wiring.Adapters(
        store, MemoryCluster(auto=True), MemoryAgents(), MemoryDelivery(), clock
    )
    reconciler = wiring.build(settings(), adapters, worker="bench").reconciler
    claim = await reconciler.claim()
    assert claim is not None
    await reconciler.handle(claim, Slot())
    assert (await store.get(made.user_id, made.project_id)).status is Status.ACTIVE
    return store.calls


def main() -> None:
    """Measure both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--projects", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    share, memory = asyncio.run(idle(given.projects, given.seconds))
    calls = asyncio.run(activation())
    table = Table("question", "figure", title=f"worker, {given.projects:,} inactive projects")
    table.add_row("CPU of an idle worker, of one core", f"{share:.2%}")
    table.add_row("memory (PSS)", f"{memory:.0f} MB")
    told = ", ".join(f"{name} {count}" for name, count in sorted(calls.items()))
    table.add_row("writes for one activation", f"{calls.total()} ({told})")
    console.print(table)


if __name__ == "__main__":
    main()
