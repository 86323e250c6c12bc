"""Writes to a store until it is killed, and tells of each write that was acknowledged.

Reads lines ``STORE SEED`` from standard input: a file of SQLite's, or ``URI#DATABASE`` of MongoDB,
with a mark of whether to use transactions: ``URI#DATABASE#1``. For each it forks a child, prints
``born PID``, and ``dead`` when the child is gone. The child prints a line of JSON before it may
delete something, and after each call that has returned. Forking saves the imports each time.
"""

import asyncio
import json
import os
import random
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from greylag.domain.audit import SYSTEM, AuditEvent
from greylag.domain.names import EnvironmentNames
from greylag.domain.project import (
    Desired,
    NewEvent,
    Project,
    ProjectRef,
    Status,
    new_record_id,
    wanted,
)
from greylag.ports import Claim, Outcome, ProjectStore
from greylag.store.mongo.store import MongoStore
from greylag.store.sqlite.store import SqliteStore

NAMES = EnvironmentNames("n", "d", "s", "i")
T0 = datetime(2025, 1, 1, tzinfo=UTC)


def tell(what: str, project_id: str = "", **facts: int) -> None:
    """Print one line in one system call: it is whole or not there."""
    line = json.dumps({"what": what, "project": project_id, **facts}) + "\n"
    os.write(1, line.encode())


async def opened(place: str) -> ProjectStore:
    """Open the store that a line names."""
    if "#" not in place:
        return await SqliteStore.open(Path(place))
    uri, database, transactions = place.split("#")
    store = await MongoStore.open(uri, database)
    store._audit._transactions = transactions == "1"
    return store


async def work(place: str, seed: int) -> None:
    """Create, want, claim and record, for ever."""
    dice = random.Random(seed)  # noqa: S311 - tests want the same numbers again
    # Each child lives later than the one before, so that leases left behind have run out.
    now = T0 + timedelta(hours=seed)
    store = await opened(place)
    tell("open")
    for count in range(1_000_000):
        name = f"{seed}-{count}"
        await store.create(_project(name, now), audit=_event("create", name, now))
        tell("create", name)
        if dice.random() < 0.2:
            tell("may delete", name)
            desired = Desired.DELETED
        else:
            desired = Desired.ACTIVE
        told = _event("want", name, now)
        wish = partial(wanted, desired=desired, now=now, deadline=now, again=False)
        wished = await store.change(ProjectRef("ada", name), wish, told)
        tell("want", name, generation=wished.generation)
        claim = await store.claim_due("w", now, 60)
        if claim is None:
            raise RuntimeError("what was wanted must be due")
        await _finish(store, claim, dice, now)


async def _finish(store: ProjectStore, claim: Claim, dice: random.Random, now: datetime) -> None:
    project = claim.project
    if project.desired is Desired.DELETED:
        await store.forget(claim)
        tell("forget", project.project_id)
        return
    outcome = Outcome(status=Status.ACTIVE, observed_generation=project.generation)
    for release in (False, True):
        events = [NewEvent("e", "x" * dice.randrange(2000))] * dice.randrange(1, 5)
        await store.record(claim, replace(outcome, events=events), now, release=release)
        written = await store.events("ada", project.project_id, 0, 1000)
        tell("record", project.project_id, events=len(written), released=int(release))


def _project(name: str, now: datetime) -> Project:
    return Project(
        id=new_record_id(now),
        user_id="ada",
        project_id=name,
        name=name,
        names=NAMES,
        created_at=now,
        updated_at=now,
    )


def _event(action: str, name: str, now: datetime) -> AuditEvent:
    return AuditEvent(at=now, actor=SYSTEM, action=action, object=name)


def main() -> None:
    """Fork a child for each line."""
    for line in sys.stdin:
        file, seed = line.split()
        child = os.fork()
        if child == 0:
            os.write(1, f"born {os.getpid()}\n".encode())
            asyncio.run(work(file, int(seed)))
        os.waitpid(child, 0)
        os.write(1, b"dead\n")


main()
