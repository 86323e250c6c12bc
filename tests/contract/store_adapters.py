"""The stores that the contract suite runs over, and the projects that it puts into them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from tests.fakes.store import MemoryStore
from tests.store import mongo_servers

from greylag.domain.names import environment_names
from greylag.domain.project import Event, Project, ProjectRef, Status, new_record_id
from greylag.ports import Claim, Outcome, ProjectStore
from greylag.store.sqlite.store import SqliteStore

ADAPTERS = ("memory", "sqlite", "mongo")
REF = ProjectRef("ada", "demo")
IDLE = Outcome(status=Status.INACTIVE)
_MADE = count()
"""Ids in the order of their making, as claims of one moment go by them."""
T0 = datetime(2025, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """Return the moment ``seconds`` after the beginning of the test's time."""
    return T0 + timedelta(milliseconds=round(seconds * 1000))


@asynccontextmanager
async def open_store(kind: str, folder: Path) -> AsyncIterator[ProjectStore]:
    """Open an empty store of this kind, and close it at the end."""
    match kind:
        case "memory":
            store: ProjectStore = MemoryStore()
        case "sqlite":
            store = await SqliteStore.open(folder / "greylag.db")
        case _:
            async with mongo_servers.opened() as store:
                yield store
            return
    try:
        yield store
    finally:
        await store.close()


def make_project(
    project_id: str = "demo", user_id: str = "ada", *, created: float = 0, **fields: Any
) -> Project:
    """Return a new project, created ``created`` seconds after the beginning."""
    moment = at(created)
    values: dict[str, Any] = {
        "id": f"{new_record_id(moment)[:8]}{next(_MADE):016x}",
        "user_id": user_id,
        "project_id": project_id,
        "name": project_id,
        "names": environment_names(user_id, project_id),
        "created_at": moment,
        "updated_at": moment,
    }
    return Project(**(values | fields))


async def claim(store: ProjectStore, seconds: float, lease: float = 30) -> Claim:
    """Claim what is due, which there must be."""
    claimed = await store.claim_due("worker", at(seconds), lease)
    assert claimed is not None
    return claimed


async def all_claims(store: ProjectStore, seconds: float) -> list[str]:
    """Claim all that is due, and return the project ids in the order they came."""
    found = []
    while (claimed := await store.claim_due("worker", at(seconds), 30)) is not None:
        found.append(claimed.project.project_id)
    return found


async def log(store: ProjectStore, after: int = 0, limit: int = 1000) -> Sequence[Event]:
    """Return the demo project's log."""
    return await store.events("ada", "demo", after, limit)


async def state(store: ProjectStore) -> tuple[Project, Sequence[Event]]:
    """Return all that can be seen of the demo project."""
    return await store.get("ada", "demo"), await log(store)
