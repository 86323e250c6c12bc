"""Several workers on a wire that fails all the time: what was acknowledged is there, once."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from tests.contract.store_adapters import IDLE, at, make_project
from tests.store import mongo_servers
from tests.store.wire_proxy import Fault, proxied
from tests.wishes import want

from greylag.domain.errors import LeaseLostError, StoreUnavailableError
from greylag.domain.project import Desired, NewEvent
from greylag.ports import Claim, Outcome
from greylag.store.mongo.connection import MongoLimits
from greylag.store.mongo.store import MongoStore

PROJECTS = 5
STEPS = 60
LIMITS = MongoLimits(operation=1, connect=1, socket=5)


@dataclass(slots=True)
class Storm:
    """What the workers did, and the test's time, which each step moves on."""

    second: int = 0
    tried: Counter[str] = field(default_factory=Counter)
    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    claims: list[tuple[str, int]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    def now(self) -> int:
        self.second += 1
        return self.second


async def work(storm: Storm, store: MongoStore, name: str, dice: random.Random) -> None:
    """Claim, record one or two outcomes, and often take so long that the lease runs out."""
    while storm.second < STEPS:
        try:
            claim = await store.claim_due(name, at(storm.now()), 4)
            if claim is not None:
                storm.claims.append((claim.project.project_id, claim.number))
                await _outcomes(storm, store, claim, dice)
            await want(store, "ada", f"p{dice.randrange(PROJECTS)}", Desired.ACTIVE, at(0), at(99))
        except (StoreUnavailableError, LeaseLostError) as error:
            storm.refused[error.code] += 1


async def _outcomes(storm: Storm, store: MongoStore, claim: Claim, dice: random.Random) -> None:
    for release in [False] * dice.randrange(3) + [True]:
        project = claim.project
        code = f"{project.project_id}-{claim.number}-{storm.now()}"
        outcome = Outcome(
            status=IDLE.status,
            observed_generation=project.generation,
            due_at=at(storm.second),
            events=[NewEvent(code, "E")],
        )
        storm.tried[code] += 1
        await store.record(claim, outcome, at(storm.second), release=release)
        storm.acknowledged.append((project.project_id, code))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_what_was_acknowledged_in_a_storm_is_there_once(seed: int) -> None:
    server, storm = mongo_servers.uri(), Storm()
    async with mongo_servers.database(server) as name, proxied(server) as proxy:
        direct = await MongoStore.open(server, name, limits=mongo_servers.PATIENT)
        for n in range(PROJECTS):
            await direct.create(make_project(f"p{n}", due_at=at(0)))
        workers = [await MongoStore.open(proxy.uri, name, limits=LIMITS) for _ in range(3)]
        proxy.storm(seed, 0.04, *(kind for kind in Fault if kind is not Fault.SLOW))
        async with asyncio.TaskGroup() as tasks:
            for n, store in enumerate(workers):
                dice = random.Random(seed * 10 + n)  # noqa: S311 - the same steps again
                tasks.create_task(work(storm, store, f"w{n}", dice), name=f"worker {n}")
        proxy.calm()
        await check(storm, direct)
        assert sum(proxy.made.values()) >= 3
        for store in (*workers, direct):
            await store.close()


async def check(storm: Storm, direct: MongoStore) -> None:
    """Hold what the store has against what the workers were told."""
    assert len(storm.acknowledged) > STEPS / 10
    # No two claims of a project ever had the same number.
    assert len(storm.claims) == len(set(storm.claims))
    for n in range(PROJECTS):
        project = await direct.get("ada", f"p{n}")
        events = await direct.events("ada", project.project_id, 0, 1000)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        codes = Counter(event.code for event in events)
        assert set(codes.values()) <= {1}
        assert set(codes) <= set(storm.tried)
        mine = {code for where, code in storm.acknowledged if where == project.project_id}
        assert mine <= set(codes)
        # In the log, too, each claim comes after the one before it.
        numbers = [int(event.code.split("-")[1]) for event in events]
        assert numbers == sorted(numbers)
