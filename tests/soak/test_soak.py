"""Three webs, three workers, one MongoDB: killed and paused at random, and nothing is lost.

Twelve seconds by default; ``GREYLAG_SOAK_SECONDS=300`` for the long run,
``GREYLAG_SOAK_SEED`` for another course of things.
"""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import aiohttp
import pytest
from tests.soak.clients import PATIENCE_SECONDS, Client, Reader
from tests.soak.fleet import Fleet
from tests.soak.proof import prove, prove_ends
from tests.store import mongo_servers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = float(os.environ.get("GREYLAG_SOAK_SECONDS", "12"))
SEED = int(os.environ.get("GREYLAG_SOAK_SEED", "1"))
PROJECTS = 300 if SECONDS >= 60 else 60
CLIENTS = 6
USERS = [f"u{number}" for number in range(CLIENTS)]
WITNESS = "witness"
CATCH_UP_SECONDS = 60
TOKEN = "the-token-of-the-soak"


async def test_whatever_dies_every_project_ends_as_its_record_says(tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.db"
    server = mongo_servers.uri()
    async with mongo_servers.database(server) as name:
        settings = {
            "MONGODB_URI": server,
            "MONGODB_DB": name,
            "GREYLAG_TOKEN": TOKEN,
            "GREYLAG_LEASE_SECONDS": "2",
            "GREYLAG_STARTUP_RECONCILE_TIMEOUT": "0.2",
            # What is missed must not be mended by looking at everything now and then.
            "GREYLAG_RESYNC_SECONDS": "3600",
            "GREYLAG_USERS": ",".join([*USERS, WITNESS]),
            "SOAK_CLUSTER": str(cluster),
        }
        fleet = Fleet(tmp_path, settings)
        try:
            await fleet.start()
            async with _requests(fleet.port) as http:
                clients, reader = await _soak(fleet, http)
        finally:
            await fleet.close()
    ends = {(one.user, name): end for one in clients for name, end in one.wanted.items()}
    prove_ends(cluster, ends)
    told = asdict(prove(cluster, fleet.stood)) | {
        "projects": len(ends),
        "acknowledged": sum(client.acknowledged for client in clients),
        "broken_off": sum(client.broken for client in clients),
        "refused_requests": sum(client.refused for client in clients),
        "kills": fleet.kills,
        "pauses": len(fleet.stood),
        "events_read": len(reader.read),
        "streams": reader.streams,
    }
    print(json.dumps(told))  # noqa: T201 - what the long run is for; pytest keeps it otherwise
    assert told["acknowledged"] > CLIENTS
    assert told["kills"]
    assert told["pauses"]


@asynccontextmanager
async def _requests(port: int) -> AsyncIterator[aiohttp.ClientSession]:
    """Give what asks through the proxy; each request is a connection, and so another web's."""
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{port}",
        connector=aiohttp.TCPConnector(force_close=True, limit=0),
        timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS),
        headers={"Authorization": f"Bearer {TOKEN}"},
    ) as http:
        yield http


async def _soak(fleet: Fleet, http: aiohttp.ClientSession) -> tuple[list[Client], Reader]:
    rng = random.Random(SEED)  # noqa: S311 - the course of things, the same each time
    clients = [_client(user, http, rng) for user in USERS]
    witness = _client(WITNESS, http, rng)
    reader = Reader(f"/api/users/{WITNESS}/projects/seen/events", http, _another(rng))
    until = asyncio.get_running_loop().time() + SECONDS
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(reader.follow(), name="reader")
        cleaning = tasks.create_task(fleet.end_old_transactions(), name="clean-up of the server")
        async with asyncio.TaskGroup() as busy:
            busy.create_task(witness.toggle("seen", until), name=WITNESS)
            for client in clients:
                busy.create_task(client.work(until, PROJECTS // CLIENTS), name=client.user)
            busy.create_task(_disturb(fleet, rng, until), name="disturbances")
        await asyncio.gather(*(client.settle() for client in (*clients, witness)))
        reading.cancel()
        cleaning.cancel()
    await _was_read_whole(reader)
    return [*clients, witness], reader


def _client(user: str, http: aiohttp.ClientSession, rng: random.Random) -> Client:
    return Client(user, http, _another(rng))


def _another(rng: random.Random) -> random.Random:
    """Return one of its own for who goes on beside others, so that a seed's course is its own."""
    return random.Random(rng.random())  # noqa: S311 - as above


async def _disturb(fleet: Fleet, rng: random.Random, until: float) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        while loop.time() < until:
            await asyncio.sleep(rng.uniform(0.2, 1.0))
            tasks.create_task(fleet.disturb(rng), name="disturbance")


async def _was_read_whole(reader: Reader) -> None:
    """Prove that the stream that was resumed so often is the log: each event once, in order."""
    anew = Reader(reader.url, reader.http, reader.rng)
    async with asyncio.timeout(CATCH_UP_SECONDS):
        while not anew.read or anew.read[-1] != reader.read[-1]:
            await asyncio.gather(reader.piece(1.0), anew.piece(1.0))
    assert [number for number, _ in reader.read] == list(range(1, len(reader.read) + 1))
    assert reader.read[-len(anew.read) :] == anew.read
