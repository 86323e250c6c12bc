"""Whole stores for the tests of moving and checking, and the projects that are put into them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from tests.contract.store_adapters import at, make_project
from tests.store import mongo_servers

from greylag.archives import MongoPlace, Place, SqlitePlace, open_archive
from greylag.config import Settings
from greylag.domain.errors import ErrorInfo
from greylag.domain.project import Desired, Event, Lease, Status
from greylag.ports import Archive, Bundle, KeptKey, ProjectStore
from greylag.store.mongo.store import MongoStore
from greylag.store.sqlite.store import SqliteStore

KINDS = ("sqlite", "mongo")
FAR = datetime(2999, 1, 1, tzinfo=UTC)
SETTINGS = Settings(_env_file=None)


@dataclass(frozen=True, slots=True)
class Site:
    """Where one store is, closed; it is removed at the end of the test."""

    place: Place

    @asynccontextmanager
    async def archive(self, *, write: bool = True) -> AsyncIterator[Archive]:
        """Open it as a whole."""
        async with open_archive(self.place, SETTINGS, write=write) as opened:
            yield opened

    @asynccontextmanager
    async def store(self) -> AsyncIterator[ProjectStore]:
        """Open it as the programs do."""
        if isinstance(self.place, SqlitePlace):
            store: ProjectStore = await SqliteStore.open(self.place.path)
        else:
            store = await MongoStore.open(self.place.uri, self.place.database)
        try:
            yield store
        finally:
            await store.close()

    @property
    def url(self) -> str:
        """How a person names it."""
        if isinstance(self.place, SqlitePlace):
            return self.place.shown
        server, _, options = self.place.uri.partition("/?")
        return f"{server}/{self.place.database}?{options}"


@asynccontextmanager
async def raw_database(site: Site) -> AsyncIterator[AsyncDatabase[dict[str, Any]]]:
    """Open a MongoDB store as the driver sees it."""
    assert isinstance(site.place, MongoPlace)
    async with AsyncMongoClient[dict[str, Any]](site.place.uri, tz_aware=True) as client:
        yield client[site.place.database]


class Sites:
    """Makes stores for one test."""

    def __init__(self, folder: Path, opened: AsyncExitStack) -> None:
        self._folder = folder
        self._opened = opened
        self._made = 0

    async def make(self, kind: str) -> Site:
        """Return a place for a store of this kind; nothing is there yet."""
        self._made += 1
        if kind == "sqlite":
            return Site(SqlitePlace((self._folder / f"{self._made}" / "greylag.db").resolve()))
        uri = mongo_servers.uri()
        name = await self._opened.enter_async_context(mongo_servers.database(uri))
        return Site(MongoPlace(uri, uri.split("/")[2], name))

    async def filled(self, kind: str, bundles: Sequence[Bundle]) -> Site:
        """Return a store that holds ``bundles``, made ready as the programs do it."""
        site = await self.make(kind)
        async with site.store():
            pass
        async with site.archive() as archive:
            await archive.write(bundles)
        return site


@asynccontextmanager
async def sites_in(folder: Path) -> AsyncIterator[Sites]:
    """Give what makes stores; those on servers are dropped at the end."""
    async with AsyncExitStack() as opened:
        yield Sites(folder, opened)


def make_event(seq: int, **fields: Any) -> Event:
    """Return an event."""
    values = {"code": "image_pulled", "message": f"Step {seq} is done.", "hint": "\udcff é"}
    return Event(seq=seq, at=at(seq), status=Status.ACTIVATING, generation=2, **values | fields)


def make_bundle(project_id: str = "demo", *, events: int = 3, **fields: Any) -> Bundle:
    """Return a project of which every field says something, with a log and a key."""
    values: dict[str, Any] = {
        "name": "Dé\N{SNOWMAN}mo",
        "metadata": {"$odd": {"a.b": [1, 2.5, 2**70, None, True]}, "text": "\udcff"},
        "status": Status.ERROR,
        "endpoint": "http://127.0.0.1:1",
        "error": ErrorInfo("image_not_found", "No \udcff image.", "Name another."),
        "error_terminal": True,
        "updated_at": at(9),
        "last_activated_at": at(5),
        "last_deactivated_at": at(6),
        "desired": Desired.ACTIVE,
        "generation": 4,
        "observed_generation": 3,
        "attempts": 2,
        "due_at": at(70),
        "deadline_at": at(80),
    }
    project = make_project(project_id, **values | fields)
    return Bundle(
        project=project,
        claims=7,
        last_seq=events,
        events=[make_event(seq) for seq in range(1, events + 1)],
        keys=[KeptKey(project.user_id, f"key of {project_id}", "fingerprint", FAR)],
    )


def leased(bundle: Bundle, until: datetime) -> Bundle:
    """Return the bundle under a lease."""
    lease = Lease("worker", bundle.claims, until)
    return replace(bundle, project=replace(bundle.project, lease=lease))


async def everything(archive: Archive, limit: int = 500) -> list[Bundle]:
    """Return all that can be read in a store."""
    found: list[Bundle] = []
    sheet = await archive.sheet(None, limit)
    found += sheet.bundles
    while sheet.after is not None:
        sheet = await archive.sheet(sheet.after, limit)
        found += sheet.bundles
    return found
