"""The whole store of the settings, for ``greylag export``, ``import`` and ``doctor``."""

import asyncio
import getpass
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from greylag.common.clock import SystemClock
from greylag.common.sealing import Sealing
from greylag.common.token_file import SECRET_KEY, ensure_token, read_token
from greylag.config import Settings
from greylag.domain.audit import Actor
from greylag.domain.errors import ConfigError
from greylag.ports import Archive, Finding, StoreMissingError
from greylag.services.store_export import (
    Imported,
    StoreReport,
    Tell,
    check_store,
    export_store,
    import_store,
)
from greylag.services.store_file import Contents, contents
from greylag.store.people import from_stored
from greylag.store.sqlite.archive import SqliteArchive

DATABASE = "greylag.db"


def place_of(settings: Settings) -> str:
    """Return where Greylag keeps its records with these settings, for people: without user and
    password.
    """
    if settings.mongodb_uri is None:
        return f"sqlite://{_file(settings)}"
    return f"mongodb://{_hosts(settings.mongodb_uri.get_secret_value())}/{settings.mongodb_db}"


def _file(settings: Settings) -> Path:
    return (settings.data / DATABASE).resolve()


def sealing_of(settings: Settings, *, make: bool = True) -> Sealing | None:
    """Return what seals users' secrets; ``None`` where there is no key that all processes share.

    Records that lie in the data folder are sealed by a key beside them, which no export and no
    backup of the database holds; those of a server by a key of the settings. With ``make`` the
    folder gets one if there is none.
    """
    if settings.secret_key is not None:
        given = settings.secret_key.get_secret_value().split(",")
        return Sealing([one.strip() for one in given if one.strip()])
    if settings.mongodb_uri is not None or not settings.data.is_dir():
        return None
    if make:
        return Sealing([ensure_token(settings.data, SECRET_KEY)])
    key = read_token(settings.data / SECRET_KEY, private=True)
    return None if key is None else Sealing([key])


async def export_records(
    settings: Settings,
    write: Callable[[bytes], object],
    tell: Tell,
    unreadable: Callable[[Finding], None],
) -> Contents:
    """Write an export of the store of ``settings``; see ``export_store``."""
    async with open_archive(settings, write=False) as archive:
        return await export_store(archive, write, SystemClock().now(), tell, unreadable)


async def import_records(
    settings: Settings, file: BinaryIO, tell: Tell, *, replacing: bool
) -> Imported:
    """Read an export to its end, then put it into the store of ``settings``; see ``import_store``.

    Raises:
        ExportUnusableError: the file is no whole export; nothing was changed.
    """
    found = await asyncio.to_thread(
        contents, file, lambda done, total: tell("verifying", done, total), from_stored
    )
    file.seek(0)
    async with open_archive(settings, write=True) as archive:
        now = SystemClock().now()
        done = await import_store(archive, file, now, tell, shell(), replacing=replacing)
    done.contents.unreadable = found.unreadable
    return done


def shell() -> Actor:
    """Return who works with the store itself, by a command on this machine."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user id without a name
        user = str(os.getuid())
    return Actor(f"{user} on {socket.gethostname()}", "operator")


async def examine_store(settings: Settings) -> StoreReport | None:
    """Check the store of ``settings``; ``None`` when there is none yet. Nothing is changed."""
    faults: list[Finding] = []
    try:
        sealing = sealing_of(settings, make=False)
    except ConfigError as error:  # of the key alone: the records can be looked at without
        sealing, faults = None, [Finding("sealed", error.info.message, error.info.hint)]
    try:
        async with open_archive(settings, write=False) as archive:
            report = await check_store(archive, SystemClock().now(), sealing)
    except StoreMissingError:
        return None
    return replace(report, findings=[*faults, *report.findings])


@asynccontextmanager
async def open_archive(settings: Settings, *, write: bool) -> AsyncIterator[Archive]:
    """Open the store of ``settings`` as a whole; without ``write``, it must be there.

    Raises:
        StoreMissingError: there is none yet.
        ConfigError: it is no store of this Greylag.
        StoreUnavailableError: it cannot be reached.
    """
    archive = await _open(settings, write=write)
    try:
        yield archive
    finally:
        await archive.close()


async def _open(settings: Settings, *, write: bool) -> Archive:
    if settings.mongodb_uri is None:
        return await SqliteArchive.open(_file(settings), write=write)
    # Only where it is used: the driver takes a fifth of a second to import.
    from greylag.store.mongo.archive import MongoArchive  # noqa: PLC0415
    from greylag.store.mongo.connection import MongoLimits  # noqa: PLC0415

    limits = MongoLimits(
        operation=settings.mongodb_timeout, connections=settings.mongodb_connections
    )
    uri, place = settings.mongodb_uri.get_secret_value(), place_of(settings)
    return await MongoArchive.open(
        uri, settings.mongodb_db, place=place, limits=limits, write=write
    )


def _hosts(uri: str) -> str:
    """Return the servers that a MongoDB URI names, without user and password."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "(MONGODB_URI)"
    # A sign that should have been encoded ends the part before the hosts too early, and what
    # follows it would be taken for a host: the rest of a password.
    if "@" in parts.path + parts.query + parts.fragment or parts.fragment:
        return "(MONGODB_URI)"
    hosts = parts.netloc.rpartition("@")[2].lower()
    return ",".join(sorted(hosts.split(","))) if hosts else "(MONGODB_URI)"
