"""Places of whole stores, for the tests of export, import and `greylag doctor`."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from tests.fakes.store import MemoryStore
from tests.store import mongo_servers

from greylag.archives import open_archive
from greylag.config import Settings
from greylag.ports import Archive, Finding, ProjectStore, StoredProject
from greylag.store.mongo import indexes
from greylag.store.mongo.store import MongoStore
from greylag.store.sqlite import schema
from greylag.store.sqlite.store import SqliteStore

KINDS = ("sqlite", "mongo")


@dataclass(frozen=True, slots=True)
class Site:
    """Where one store is; ``memory`` is the store itself, of one that is nowhere else."""

    settings: Settings
    memory: MemoryStore | None = None

    @property
    def path(self) -> Path:
        """The file of a SQLite store."""
        return self.settings.data / "greylag.db"

    @property
    def env(self) -> dict[str, str]:
        """How a shell names the store."""
        uri = self.settings.mongodb_uri
        named = {"GREYLAG_DATA": str(self.settings.data)}
        if uri is not None:
            named |= {
                "MONGODB_URI": uri.get_secret_value(),
                "MONGODB_DB": self.settings.mongodb_db,
                "GREYLAG_MONGODB_TIMEOUT": str(self.settings.mongodb_timeout),
            }
        return named

    @asynccontextmanager
    async def archive(self, *, write: bool = True) -> AsyncIterator[Archive]:
        """Open it as a whole."""
        if self.memory is not None:
            yield self.memory
            return
        async with open_archive(self.settings, write=write) as opened:
            yield opened

    @asynccontextmanager
    async def store(self) -> AsyncIterator[ProjectStore]:
        """Open it as the programs do."""
        if self.memory is not None:
            yield self.memory
            return
        uri = self.settings.mongodb_uri
        store: ProjectStore
        if uri is None:
            store = await SqliteStore.open(self.path)
        else:
            store = await MongoStore.open(
                uri.get_secret_value(), self.settings.mongodb_db, limits=mongo_servers.PATIENT
            )
        try:
            yield store
        finally:
            await store.close()

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[AsyncDatabase[dict[str, Any]]]:
        """Open a MongoDB store as the driver sees it."""
        async with AsyncMongoClient[dict[str, Any]](
            self.env["MONGODB_URI"], tz_aware=True
        ) as client:
            yield client[self.settings.mongodb_db]

    async def written_by_newer(self) -> None:
        """Mark it as a Greylag does that is newer than this one; nothing else changes."""
        if self.settings.mongodb_uri is None:
            with closing(sqlite3.connect(self.path)) as sql:
                sql.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
            return
        async with self.raw() as database:
            await database[indexes.INSTANCE].update_one(
                indexes.FORM_MARK, {"$set": {"lowest": indexes.FORM + 1}}, upsert=True
            )

    async def holds(self) -> list[StoredProject]:
        """Return all that is there, which must be readable."""
        async with self.archive(write=False) as archive:
            return await everything(archive)


class KilledError(Exception):
    """Ends what is done, as a killed process does."""


class Sites:
    """Makes stores for one test."""

    def __init__(self, folder: Path, opened: AsyncExitStack) -> None:
        self._folder = folder
        self._opened = opened
        self._made = 0

    async def make(self, kind: str) -> Site:
        """Return a place for a store of this kind; nothing is there yet."""
        self._made += 1
        data = self._folder / f"{self._made}"
        if kind == "memory":
            return Site(Settings(data=data, _env_file=None), MemoryStore())
        if kind == "sqlite":
            return Site(Settings(data=data, _env_file=None))
        uri = mongo_servers.uri()
        name = await self._opened.enter_async_context(mongo_servers.database(uri))
        seconds = mongo_servers.PATIENT.operation
        given = Settings(
            data=data, mongodb_uri=uri, mongodb_db=name, mongodb_timeout=seconds, _env_file=None
        )
        return Site(given)

    async def filled(self, kind: str, projects: Sequence[StoredProject]) -> Site:
        """Return a store that holds ``projects``, made ready as the programs do it."""
        site = await self.make(kind)
        async with site.store():
            pass
        async with site.archive() as archive, archive.replacing() as fill:
            await fill(projects)
        return site


@asynccontextmanager
async def sites_in(folder: Path) -> AsyncIterator[Sites]:
    """Give what makes stores; those on servers are dropped at the end."""
    async with AsyncExitStack() as opened:
        yield Sites(folder, opened)


async def cut_off(archive: Archive, *projects: StoredProject) -> None:
    """Replace what is in a store, but not to the end."""
    with contextlib.suppress(KilledError):
        async with archive.replacing() as fill:
            await fill(projects)
            raise KilledError


async def everything(archive: Archive) -> list[StoredProject]:
    """Return all projects of a store, which must be readable."""
    found: list[StoredProject] = []
    async for batch in archive.read():
        for one in batch:
            assert not isinstance(one, Finding), one
            found.append(one)
    return found


async def unreadable(archive: Archive) -> list[Finding]:
    """Return what is said of the records that cannot be read."""
    return [one async for batch in archive.read() for one in batch if isinstance(one, Finding)]
