"""The MongoDB servers that tests use: one for each process of tests, and a database for each test.

``GREYLAG_TEST_MONGODB_URI`` names a real server to use instead.
"""

import atexit
import importlib.util
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo import AsyncMongoClient, pool_shared

from greylag.store.mongo.connection import MongoLimits
from greylag.store.mongo.store import MongoStore

Client = AsyncMongoClient[dict[str, Any]]
PROGRAM = Path(__file__).with_name("secantus_server.py")
GIVEN_URI = os.environ.get("GREYLAG_TEST_MONGODB_URI")
NOBODY = "mongodb://127.0.0.1:1/"
"""Where no server is."""
PATIENT = MongoLimits(operation=60, connect=60, socket=60)
"""For tests of anything but the limits: a busy machine exceeds the usual ones."""


class _DriversSocket(socket.socket):
    """A socket that ends without a ``ResourceWarning``, which any test may be given at any moment:
    the driver forgets the one with which it is just connecting when it is cancelled or closed.
    """

    def __del__(self) -> None:
        self.close()


pool_shared.socket = SimpleNamespace(**vars(socket) | {"socket": _DriversSocket})  # type: ignore[assignment, attr-defined]


def skip_without_server() -> None:
    """Skip a test for which no server can be started here."""
    if importlib.util.find_spec("secantus") is None:
        pytest.skip("MONGODB IS NOT TESTED: install secantusdb or set GREYLAG_TEST_MONGODB_URI")


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server; return its process, which ends when its input does, and its URI."""
    skip_without_server()
    command = [sys.executable, str(PROGRAM), *arguments]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own program
    assert server.stdout is not None
    port = int(server.stdout.readline())
    # The driver's second way of watching a server leaves a socket open when it is closed early.
    return server, f"mongodb://127.0.0.1:{port}/?serverMonitoringMode=poll"


def stop(server: subprocess.Popen[str]) -> None:
    """End a server that ``start`` has started."""
    server.communicate()


@cache
def uri(*, single: bool = False) -> str:
    """Return the URI of the server that this process shares; ``single``: without a replica set."""
    if GIVEN_URI and not single:
        return GIVEN_URI
    server, found = start(*(["--single"] if single else []))
    atexit.register(stop, server)
    return found


@asynccontextmanager
async def database(server: str) -> AsyncIterator[str]:
    """Give the name of a new database, which is dropped at the end."""
    name = f"greylag_test_{secrets.token_hex(6)}"
    yield name
    async with Client(server) as client:
        await client.drop_database(name)


async def end_transactions(server: str) -> None:
    """End what clients have under way there. A real server ends by itself, after a minute, the
    transaction of a client that was killed; this one never does.
    """
    if server != GIVEN_URI:
        async with Client(server) as client:
            await client.admin.command({"killAllSessions": []})


@asynccontextmanager
async def opened(*, single: bool = False) -> AsyncIterator[MongoStore]:
    """Open a store on a new database, and close it at the end."""
    server = uri(single=single)
    async with database(server) as name:
        store = await MongoStore.open(server, name, limits=PATIENT)
        try:
            yield store
        finally:
            await store.close()
