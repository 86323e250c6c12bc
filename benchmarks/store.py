"""How long the SQLite store takes with many projects: prints one table of medians.

``python benchmarks/store.py`` is a quick look; ``--projects 100000 --users 1000`` is the size that
the store is made for.
"""

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from greylag.domain.names import environment_names
from greylag.domain.project import Desired, Project, Status, new_record_id
from greylag.ports.store import Outcome, PageQuery
from greylag.store import tables
from greylag.store.sqlite import SqliteStore
from greylag.store.threads import transaction

T0 = datetime(2025, 1, 1, tzinfo=UTC)
Step = Callable[[int], Awaitable[object]]


def project(number: int, users: int) -> Project:
    """Return one of the stored projects; a tenth of them is active and looked at now and then."""
    moment = T0 + timedelta(seconds=number)
    user, name = f"user-{number % users}", f"project-{number}"
    active = number % 10 == 0
    return Project(
        id=new_record_id(moment),
        user_id=user,
        project_id=name,
        name=f"Project {number}",
        names=environment_names(user, name),
        created_at=moment,
        updated_at=moment,
        metadata={"team": number % 7, "note": "x" * 100},
        status=Status.ACTIVE if active else Status.INACTIVE,
        desired=Desired.ACTIVE if active else Desired.INACTIVE,
        observed_generation=1,
        due_at=moment if active else None,
    )


async def fill(path: Path, projects: int, users: int) -> SqliteStore:
    """Return a store that holds so many projects, put in by large transactions."""
    store = await SqliteStore.open(path)

    def insert(sql: sqlite3.Connection) -> None:
        with transaction(sql):
            for number in range(projects):
                tables.insert(sql, project(number, users), None)

    await store._writer.run(insert)  # noqa: SLF001 - one by one would wait for the disk each time
    return store


def steps(store: SqliteStore, projects: int, users: int) -> dict[str, Step]:
    """Return what is measured, by name; each takes the number of the round."""
    now = T0 + timedelta(days=365)

    async def work(number: int) -> None:
        moment = now + timedelta(seconds=number)
        claim = await store.claim_due("bench", moment, 30)
        assert claim is not None
        outcome = Outcome(status=Status.ACTIVE, observed_generation=1, due_at=moment)
        await store.record(claim, outcome, moment, release=True)

    async def poke_all(number: int) -> None:
        assert await store.poke_unsettled(now + timedelta(hours=number)) > 0

    return {
        "page of one user (50)": lambda n: store.page(f"user-{n % users}", PageQuery()),
        "page by status": lambda n: store.page(f"user-{n % users}", PageQuery(status=Status.ERROR)),
        "get": lambda n: store.get(f"user-{n % users}", f"project-{n % users}"),
        "next due": lambda _: store.next_due(),
        "create (durable)": lambda n: store.create(project(projects + n, users)),
        "claim + record (durable)": work,
        "make due all that run": poke_all,
    }


async def median_ms(step: Step, rounds: int) -> tuple[float, float]:
    """Return the median and the slowest time of ``rounds`` calls, in milliseconds."""
    times = []
    for number in range(rounds):
        start = time.perf_counter()
        await step(number)
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times), max(times)


async def measure(projects: int, users: int, rounds: int) -> None:
    """Fill a store in a temporary folder, measure each step and print the table."""
    table = Table(
        "step", "median ms", "slowest ms", title=f"{projects:,} projects, {users:,} users"
    )
    with tempfile.TemporaryDirectory() as folder:
        store = await fill(Path(folder) / "greylag.db", projects, users)
        for name, step in steps(store, projects, users).items():
            median, slowest = await median_ms(step, rounds)
            table.add_row(name, f"{median:.3f}", f"{slowest:.3f}")
        await store.close()
    Console().print(table)


def main() -> None:
    """Read the sizes and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--projects", type=int, default=5_000)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=200)
    sizes = parser.parse_args()
    asyncio.run(measure(sizes.projects, sizes.users, sizes.rounds))


if __name__ == "__main__":
    main()
