"""Whole stores by their URLs, for `greylag store`; and whether one may be worked on yet."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from greylag.common.clock import SystemClock
from greylag.config import Settings, load_settings
from greylag.domain.errors import ConfigError
from greylag.ports import Archive, StoreIncompleteError
from greylag.services.store_check import Report, check_store
from greylag.services.store_copy import Progress, StoreCopy, Summary
from greylag.store.archive_sqlite import SqliteArchive, glance, is_there

FILE = "greylag.db"
_MONGO = ("mongodb://", "mongodb+srv://")
_SQLITE = "sqlite:"
_FORMS = (
    "Give sqlite:///folder/greylag.db, the path of such a file or of a data folder, or "
    "mongodb://user:password@host/database."
)


@dataclass(frozen=True, slots=True)
class SqlitePlace:
    """A file of records."""

    path: Path

    @property
    def shown(self) -> str:
        """The place for people."""
        return f"sqlite://{self.path}"


@dataclass(frozen=True, slots=True)
class MongoPlace:
    """A database on MongoDB servers; the URI may hold a password."""

    uri: str = field(repr=False)
    hosts: str
    database: str

    @property
    def shown(self) -> str:
        """The place for people, without user and password."""
        return f"mongodb://{self.hosts}/{self.database}"


Place = SqlitePlace | MongoPlace


async def copy_store(source: str, target: str, tell: Callable[[Progress], None]) -> Summary:
    """Copy the store at the URL ``source`` into that at ``target``; see ``StoreCopy.run``.

    Raises besides: ``ConfigError`` for a URL that is none, or when both are one store.
    """
    settings = load_settings()
    origin, destination = place_of(source, settings), place_of(target, settings)
    if origin.shown == destination.shown:
        raise ConfigError(f"--from and --to are the same store, {origin.shown}.", hint=_FORMS)
    async with AsyncExitStack() as opened:
        # The source first: a target is made where none is.
        reading = await opened.enter_async_context(open_archive(origin, settings, write=False))
        writing = await opened.enter_async_context(open_archive(destination, settings, write=True))
        return await StoreCopy(reading, writing, SystemClock().now(), tell).run()


async def examine_store(url: str | None, tell: Callable[[int], None]) -> Report:
    """Check the store at ``url``, by default that of the settings; nothing is changed.

    Raises ``ConfigError`` for a URL that is none, ``StoreUnavailableError``.
    """
    settings = load_settings()
    place = place_of_settings(settings) if url is None else place_of(url, settings)
    async with open_archive(place, settings, write=False) as archive:
        return await check_store(archive, SystemClock().now(), settings.namespace_prefix, tell)


async def refuse_unfinished(settings: Settings) -> None:
    """Raise ``StoreIncompleteError`` while the store of ``settings`` is only partly filled by a
    copy: work on it would miss projects, and take their environments for nobody's.
    """
    place = place_of_settings(settings)
    if isinstance(place, MongoPlace):
        async with open_archive(place, settings, write=False) as archive:
            origin = await archive.unfinished()
    elif is_there(place.path):
        origin = (await asyncio.to_thread(glance, place.path)).copied_from
    else:
        return
    if origin is not None:
        raise StoreIncompleteError(
            f"{place.shown} holds only a part of what is being copied from {origin}."
        )


@asynccontextmanager
async def open_archive(place: Place, settings: Settings, *, write: bool) -> AsyncIterator[Archive]:
    """Open a whole store for the ``with`` block; without ``write``, it must be there.

    Raises ``ConfigError`` when it is no store of this Greylag, ``StoreUnavailableError``.
    """
    archive = await _open(place, settings, write=write)
    try:
        yield archive
    finally:
        await archive.close()


async def _open(place: Place, settings: Settings, *, write: bool) -> Archive:
    if isinstance(place, SqlitePlace):
        return await SqliteArchive.open(place.path, write=write)
    # Only where it is used: the driver takes a fifth of a second to import.
    from greylag.store.mongo.archive import MongoArchive  # noqa: PLC0415
    from greylag.store.mongo.client import Limits  # noqa: PLC0415

    limits = Limits(operation=settings.mongodb_timeout, connections=settings.mongodb_connections)
    return await MongoArchive.open(place.uri, place.database, place=place.shown, limits=limits)


def place_of_settings(settings: Settings) -> Place:
    """Return where ``greylag up`` keeps its records with these settings."""
    if settings.mongodb_uri is None:
        return SqlitePlace((settings.data / FILE).resolve())
    uri = settings.mongodb_uri.get_secret_value()
    try:
        hosts = _hosts(uri)
    except ConfigError:
        # Whether it can be used is for the driver to say, which knows more forms.
        hosts = "(MONGODB_URI)"
    return MongoPlace(uri, hosts, settings.mongodb_db)


def place_of(url: str, settings: Settings) -> Place:
    """Return the place that a URL or path names; a MongoDB URI without a database means that of
    ``settings``.

    Raises ``ConfigError`` without repeating the URL: it may hold a password.
    """
    if url.startswith(_MONGO):
        hosts = _hosts(url)
        named = unquote(urlsplit(url).path.removeprefix("/"))
        return MongoPlace(url, hosts, named or settings.mongodb_db)
    if url.startswith(_SQLITE):
        return _file(unquote(_sqlite_path(url.removeprefix(_SQLITE))))
    if "://" in url or not url:
        raise ConfigError("This is no address of a store.", hint=_FORMS)
    return _file(url)


def _sqlite_path(rest: str) -> str:
    if not rest.startswith("//"):
        return rest
    if not rest.startswith("///"):
        raise ConfigError("A sqlite: address has three slashes before the path.", hint=_FORMS)
    return "/" + rest.lstrip("/")


def _file(text: str) -> SqlitePlace:
    path = Path(text).expanduser()
    folder = path.is_dir() or (path.suffix != ".db" and not path.exists())
    return SqlitePlace((path / FILE if folder else path).resolve())


def _hosts(uri: str) -> str:
    """Return the servers that a MongoDB URI names, without user and password."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise _no_uri() from None
    # A sign that should have been encoded ends the part before the hosts too early, and what
    # follows it would be taken for a host: the rest of a password.
    if "@" in parts.path + parts.query + parts.fragment or parts.fragment:
        raise _no_uri()
    hosts = parts.netloc.rpartition("@")[2].lower()
    if not hosts:
        raise _no_uri()
    return ",".join(sorted(hosts.split(",")))


def _no_uri() -> ConfigError:
    return ConfigError(
        "This is no address of a MongoDB.",
        hint="It looks like mongodb://user:password@host/database; signs such as / ? # @ in a "
        "password must be percent-encoded.",
    )
