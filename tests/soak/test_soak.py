"""Three webs, three workers, one MongoDB: killed and paused at random, and nothing is lost.

A quarter of a minute by default; ``GREYLAG_SOAK_SECONDS=300`` for the long run,
``GREYLAG_SOAK_SEED`` for another course of things.
"""

import asyncio
import json
import os
import random
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.soak.fleet import Fleet
from tests.store import mongo_servers

from greylag import sse

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SECONDS = float(os.environ.get("GREYLAG_SOAK_SECONDS", "15"))
SEED = int(os.environ.get("GREYLAG_SOAK_SEED", "1"))
PROJECTS = 300 if SECONDS >= 60 else 60
CLIENTS = 6
USERS = [f"u{number}" for number in range(CLIENTS)]
SETTLE_SECONDS = 240
LEASE = "2"
TOKEN = "the-token-of-the-soak"
# A clock is read before a step and the step is noted after: a moment lies between.
MOMENT = 0.5


@dataclass
class Client:
    """Does one thing after another to its projects, and keeps what was acknowledged."""

    user: str
    http: aiohttp.ClientSession
    rng: random.Random
    wanted: dict[str, str | None] = field(default_factory=dict)
    acknowledged: int = 0
    refused: int = 0

    async def work(self, until: float, count: int) -> None:
        """Go on until the loop's time ``until``, with ``count`` projects at most."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            name = f"p{self.rng.randrange(count)}"
            if self.wanted.get(name) is None:
                await self.create(name)
            verb = self.rng.choices(("activate", "deactivate", "delete"), (5, 4, 1))[0]
            await self.do(name, verb)

    async def create(self, name: str) -> None:
        """Create a project, however often it takes; the key makes it one."""
        body = {"name": name, "project_id": name}
        key = {"Idempotency-Key": f"{self.user}-{name}-{self.rng.random()}"}
        while True:
            status = await self.call("POST", "", body, key)
            if status in {200, 201}:
                self.wanted[name] = "inactive"
                return
            # 409: one of that name is still being deleted, or an answer to the first try was lost.
            await asyncio.sleep(0.1)

    async def do(self, name: str, verb: str) -> None:
        """Do one thing, again until it is acknowledged."""
        method, path = ("DELETE", f"/{name}") if verb == "delete" else ("POST", f"/{name}/{verb}")
        while True:
            status = await self.call(method, path)
            gone = status == 404 and verb == "delete"
            if status in {200, 202, 204} or gone:
                ends = {"activate": "active", "deactivate": "inactive", "delete": None}
                self.wanted[name] = ends[verb]
                self.acknowledged += 1
                return
            await asyncio.sleep(0.1)

    async def call(
        self, method: str, path: str, body: object = None, more: dict[str, str] | None = None
    ) -> int | None:
        """Send a request through the proxy; return its status, ``None`` when it broke off."""
        headers = {"Prefer": "respond-async", **(more or {})}
        url = f"/api/users/{self.user}/projects{path}"
        try:
            async with self.http.request(method, url, json=body, headers=headers) as answer:
                await answer.read()
                self.refused += answer.status >= 500
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def status(self, name: str) -> tuple[bool, str | None]:
        """Return whether the project is settled, and its status (``None``: it is gone)."""
        url = f"/api/users/{self.user}/projects/{name}"
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self.http.get(url) as answer:
                if answer.status == 404:
                    return True, None
                if answer.status == 200:
                    one = await answer.json()
                    settled = one["observed_generation"] >= one["generation"]
                    return settled and one["status"] in {"active", "inactive"}, one["status"]
        return False, "unknown"

    async def settle(self) -> None:
        """Wait until every project is as it was acknowledged."""
        for name, wanted in sorted(self.wanted.items()):
            async with asyncio.timeout(SETTLE_SECONDS):
                while await self.status(name) != (True, wanted):  # noqa: ASYNC110 - asks anew
                    await asyncio.sleep(0.2)

    async def log(self, name: str, pieces: int) -> list[int]:
        """Return the numbers of a project's log, read in pieces on whichever web answers."""
        found: list[int] = []
        url = f"/api/users/{self.user}/projects/{name}/events"
        for _ in range(pieces):
            after = {"Last-Event-ID": str(found[-1])} if found else {}
            with suppress(aiohttp.ClientError, TimeoutError):
                found += await self._piece(url, after)
        return found

    async def _piece(self, url: str, after: dict[str, str]) -> list[int]:
        found: list[int] = []
        splitter = sse.FrameSplitter()
        with suppress(TimeoutError):
            async with asyncio.timeout(2), self.http.get(url, headers=after) as answer:
                async for data in answer.content.iter_any():
                    frames = [sse.parse(raw) for raw in splitter.feed(data)]
                    found += [int(one.id) for one in frames if one is not None and one.id]
                    if len(found) >= 5:
                        break
        return found


async def test_whatever_dies_every_project_ends_as_its_record_says(tmp_path: Path) -> None:
    server = mongo_servers.uri()
    async with mongo_servers.database(server) as name:
        settings = {
            "MONGODB_URI": server,
            "MONGODB_DB": name,
            "GREYLAG_TOKEN": TOKEN,
            "GREYLAG_LEASE_SECONDS": LEASE,
            "GREYLAG_USERS": ",".join(USERS),
            "SOAK_CLUSTER": str(tmp_path / "cluster.db"),
        }
        fleet = Fleet(tmp_path, settings)
        try:
            await fleet.start()
            clients = await _soak(fleet)
        finally:
            await fleet.close()
    told = _proof(tmp_path / "cluster.db", clients)
    done = sum(client.acknowledged for client in clients)
    told |= {"acknowledged": done, "kills": fleet.kills, "pauses": fleet.pauses}
    print(json.dumps(told))  # noqa: T201 - what the long run is for; pytest keeps it otherwise
    assert done > PROJECTS


async def _soak(fleet: Fleet) -> list[Client]:
    rng = random.Random(SEED)  # noqa: S311 - the course of things, the same each time
    connector = aiohttp.TCPConnector(force_close=True)
    timeout = aiohttp.ClientTimeout(total=10)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    address = f"http://127.0.0.1:{fleet.port}"
    async with aiohttp.ClientSession(
        address, connector=connector, timeout=timeout, headers=headers
    ) as http:
        clients = [Client(user, http, random.Random(rng.random())) for user in USERS]  # noqa: S311 - as above
        loop = asyncio.get_running_loop()
        until = loop.time() + SECONDS
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(client.work(until, PROJECTS // CLIENTS), name=client.user)
            while loop.time() < until:
                await asyncio.sleep(rng.uniform(0.2, 1.0))
                await fleet.disturb(rng)
        for client in clients:
            await client.settle()
        await _logs_are_whole(clients)
        return clients


async def _logs_are_whole(clients: list[Client]) -> None:
    there = [
        (client, next(name for name, wanted in client.wanted.items() if wanted is not None))
        for client in clients
    ]
    for numbers in await asyncio.gather(*(client.log(name, pieces=4) for client, name in there)):
        assert numbers, "a log is empty"
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _proof(path: Path, clients: list[Client]) -> dict[str, Any]:
    """Read the cluster's own log; return what is worth telling."""
    with closing(sqlite3.connect(path)) as sql:
        states = {
            (user, project): state
            for user, project, state in sql.execute("SELECT user, project, state FROM environments")
        }
        rows = sql.execute(
            "SELECT at, what, record, claim, until, pid FROM log ORDER BY n"
        ).fetchall()
    ends = {"active": "ready", "inactive": "stopped"}
    for client in clients:
        for name, wanted in client.wanted.items():
            state = states.pop((client.user, name), None)
            assert state == (None if wanted is None else ends[wanted]), (client.user, name)
    assert not states, "environments without a record are left"
    workers: dict[tuple[str, int], int] = {}
    newest: dict[str, int] = {}
    for at, what, record, claim, until, pid in rows:
        assert workers.setdefault((record, claim), pid) == pid, "one claim, two workers"
        assert claim >= newest.get(record, 0), "an older claim after a newer one"
        newest[record] = claim
        assert what != "begin" or at <= until + MOMENT, "a step begun by an expired claim"
    return {"steps": len(rows), "claims": len(workers), "projects": PROJECTS}
