"""How long a store takes with many projects: prints one table of medians.

``python benchmarks/store.py`` is a quick look at SQLite; ``--projects 100000 --users 1000`` is the
size that stores are made for. ``--store mongo`` needs ``--uri`` of a server that may be filled; a
database of its own is dropped at the end. Of SecantusDB, the stand-in of the tests, the figures say
little about MongoDB.
"""

import argparse
import asyncio
import secrets
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.fakes.store import MemoryStore
from tests.wishes import edit

from greylag.common.sqlite import transaction
from greylag.domain.audit import SYSTEM, AuditEvent
from greylag.domain.names import environment_names
from greylag.domain.project import Desired, Project, ProjectRef, Status, new_record_id
from greylag.ports import AuditFilter, Outcome, PageQuery, ProjectStore
from greylag.services.projects import Edit
from greylag.store import records
from greylag.store.sqlite import queries
from greylag.store.sqlite.store import SqliteStore

T0 = datetime(2025, 1, 1, tzinfo=UTC)
NOW = T0 + timedelta(days=365)
AT_ONCE = 1000
Step = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Given:
    """What to measure: a store with so many projects of so many users, and how often."""

    store: str
    uri: str
    projects: int
    users: int
    rounds: int


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


@asynccontextmanager
async def filled(given: Given) -> AsyncIterator[tuple[ProjectStore, ProjectStore]]:
    """Give the store and the same as another process has it, filled by large transactions."""
    fill = {"memory": _memory, "sqlite": _sqlite, "mongo": _mongo}[given.store]
    async with fill(given) as (store, other):
        yield store, other
        await other.close()
        await store.close()


@asynccontextmanager
async def _memory(given: Given) -> AsyncIterator[tuple[ProjectStore, ProjectStore]]:
    store = MemoryStore()
    for number in range(given.projects):
        await store.create(project(number, given.users))
    yield store, store


@asynccontextmanager
async def _sqlite(given: Given) -> AsyncIterator[tuple[ProjectStore, ProjectStore]]:
    def insert(sql: sqlite3.Connection) -> None:
        with transaction(sql):
            for number in range(given.projects):
                queries.insert(sql, project(number, given.users), None)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "greylag.db"
        store = await SqliteStore.open(path)
        await store._writer.run(insert)  # noqa: SLF001 - one by one would wait for the disk each time
        yield store, await SqliteStore.open(path)


@asynccontextmanager
async def _mongo(given: Given) -> AsyncIterator[tuple[ProjectStore, ProjectStore]]:
    from pymongo import AsyncMongoClient  # noqa: PLC0415 - only where it is measured

    from greylag.store.mongo.documents import to_document  # noqa: PLC0415 - the same
    from greylag.store.mongo.store import MongoStore  # noqa: PLC0415 - the same

    name = f"greylag_benchmark_{secrets.token_hex(4)}"
    async with AsyncMongoClient[dict[str, object]](given.uri) as client:
        try:
            store = await MongoStore.open(given.uri, name)
            for first in range(0, given.projects, AT_ONCE):
                numbers = range(first, min(first + AT_ONCE, given.projects))
                new = (records.new_record(project(n, given.users)) for n in numbers)
                await client[name]["projects"].insert_many(
                    [to_document(record) | {"revision": 1} for record in new], ordered=False
                )
            yield store, await MongoStore.open(given.uri, name)
        finally:
            await client.drop_database(name)


def steps(store: ProjectStore, other: ProjectStore, given: Given) -> dict[str, Step]:
    """Return what is measured, by name; each takes the number of the round."""
    users = given.users
    ref = ProjectRef(f"user-{1 % users}", "project-1")
    place = (ref.user_id, ref.project_id)

    async def work(number: int) -> None:
        moment = NOW + timedelta(seconds=number)
        claim = await store.claim_due("bench", moment, 30)
        assert claim is not None
        outcome = Outcome(status=Status.ACTIVE, observed_generation=1, due_at=moment)
        await store.record(claim, outcome, moment, release=True)

    async def keep(number: int) -> None:
        # Leases are left, as of many workers, and most users come to have one.
        assert await store.claim_due("bench", NOW + timedelta(seconds=number), 86_400) is not None

    async def idle(_: int) -> None:
        assert await store.claim_due("bench", T0 - timedelta(days=1), 30) is None

    async def poke_all(number: int) -> None:
        assert await store.poke_unsettled(NOW + timedelta(hours=number)) > 0

    async def rename(number: int, audit: AuditEvent | None = None) -> None:
        await edit(store, *place, Edit(name=f"{number} {audit is None}"), NOW, audit=audit)

    async def rename_audited(number: int) -> None:
        await rename(number, AuditEvent(at=NOW, actor=SYSTEM, action="rename", object="x"))

    def wake(writer: ProjectStore) -> Step:
        async def heard(number: int) -> None:
            with store.subscribe(ref) as news:
                await writer.poke(ref, NOW + timedelta(seconds=number))
                assert await news.changed(10)

        return heard

    return {
        "page of one user (50)": lambda n: store.page(f"user-{n % users}", PageQuery()),
        "page by status": lambda n: store.page(f"user-{n % users}", PageQuery(status=Status.ERROR)),
        "get": lambda n: store.get(f"user-{n % users}", f"project-{n % users}"),
        "next due": lambda _: store.next_due(),
        "claim, nothing due": idle,
        "create (durable)": lambda n: store.create(project(given.projects + n, users)),
        "rename (durable)": rename,
        "rename, with its audit entry": rename_audited,
        "page of the audit trail (50)": lambda _: store.audit_entries(
            AuditFilter(object="x"), 50, before=10**9
        ),
        "claim + record (durable)": work,
        "claim, leases held": keep,
        "poke and hear of it": wake(store),
        "poke and hear of it from another process": wake(other),
        "make due all that run": poke_all,
    }


async def times_ms(step: Step, rounds: int) -> list[float]:
    """Return the times of ``rounds`` calls, in milliseconds, the shortest first."""
    times = []
    for number in range(rounds):
        start = time.perf_counter()
        await step(number)
        times.append((time.perf_counter() - start) * 1000)
    return sorted(times)


async def measure(given: Given) -> None:
    """Fill a store, measure each step and print the table."""
    title = f"{given.store}: {given.projects:,} projects, {given.users:,} users"
    table = Table("step", "median ms", "p95 ms", "slowest ms", title=title)
    async with filled(given) as (store, other):
        for name, step in steps(store, other, given).items():
            times = await times_ms(step, given.rounds)
            p95 = times[int(len(times) * 0.95)]
            figures = (statistics.median(times), p95, times[-1])
            table.add_row(name, *(f"{figure:.3f}" for figure in figures))
    Console().print(table)


def main() -> None:
    """Read the sizes and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=["sqlite", "memory", "mongo"], default="sqlite")
    parser.add_argument("--uri", default="", help="the MongoDB server to fill")
    parser.add_argument("--projects", type=int, default=5_000)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=200)
    given = Given(**vars(parser.parse_args()))
    if given.store == "mongo" and not given.uri:
        sys.exit("--store mongo needs --uri")
    asyncio.run(measure(given))


if __name__ == "__main__":
    main()
