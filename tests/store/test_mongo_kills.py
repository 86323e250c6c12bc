"""A process that writes to MongoDB is killed: no change without its entry, and no entry alone."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pymongo
import pytest
from pymongo import MongoClient
from tests.store import mongo_servers
from tests.store.test_sqlite_durability import Nursery, live_and_die, nursery

from greylag.domain.audit import ChainCheck, Result

__all__ = ["nursery"]
KILLS = 7
PATIENCE = 60
Told = Mapping[tuple[str, Result], Counter[str]]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URI of a server of this module's own."""
    process, uri = mongo_servers.start()
    with process:
        yield uri
        process.kill()


@pytest.mark.parametrize("transactions", [True, False])
def test_kills_leave_no_change_without_its_entry_and_no_entry_without_its_change(
    nursery: Nursery, server: str, *, transactions: bool
) -> None:
    dice = random.Random(22)  # noqa: S311 - the same moments again
    acknowledged = set()
    place = f"{server}#kills{int(transactions)}#{int(transactions)}"
    with MongoClient[dict[str, Any]](server) as client, pymongo.timeout(PATIENCE):
        for seed in range(KILLS):
            lines, seconds = dice.randrange(1, 9), dice.uniform(0, 0.02)
            said = live_and_die(nursery, place, seed, lines=lines, seconds=seconds)
            acknowledged |= {one["project"] for one in map(json.loads, said)} - {""}
            # A server ends by itself, after a minute, the transaction of a client that is gone.
            client.admin.command({"killAllSessions": []})
        database = client[f"kills{int(transactions)}"]
        entries = list(database["greylag_audit"].find(sort=[("_id", 1)]))
        kept = {one["project_id"]: one["generation"] for one in database["projects"].find()}
    chain = ChainCheck()
    chain.follow({name: one[name] for name in one if name != "_id"} for one in entries)
    told = {
        (action, result): Counter(
            one["object"] for one in entries if (one["action"], one["result"]) == (action, result)
        )
        for action in ("create", "want")
        for result in Result
    }
    assert len(acknowledged) >= KILLS
    if transactions:
        assert {one["result"] for one in entries} == {"done"}
    check(told, kept, begun=Result.DONE if transactions else Result.BEGUN)


def check(told: Told, kept: Mapping[str, int], *, begun: Result) -> None:
    """See that each change has at least the entry that it begins with, and that each entry which
    says ``done`` has its change.
    """
    assert set(kept) <= set(told["create", begun])
    # Only what was wanted gone may be gone.
    assert set(told["create", Result.DONE]) - set(kept) <= set(told["want", begun])
    for name, generation in kept.items():
        assert told["want", Result.DONE][name] <= generation - 1 <= told["want", begun][name]
