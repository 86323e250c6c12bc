"""`greylag store copy` as a real program, killed at seeded moments: the next run goes on."""

import asyncio
import random
import sqlite3
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from tests.cli.program import finish, start
from tests.store.archive_places import Site, make_bundle, sites_in

from greylag.archives import SqlitePlace

pytestmark = pytest.mark.slow

PROJECTS = 600
SEED = 20_261_124
PATIENCE = 60

Moment = tuple[int, float]
"""More than so many records are there, and so many seconds have passed since."""


async def test_a_copy_that_is_killed_again_and_again_ends_right(tmp_path: Path) -> None:
    dice = random.Random(SEED)  # noqa: S311 - the same moments again
    async with sites_in(tmp_path) as sites:
        bundles = [make_bundle(f"p{number}", events=2) for number in range(PROJECTS)]
        first = await sites.filled("sqlite", bundles)
        middle, last = await sites.make("mongo"), await sites.make("sqlite")
        there = await _copied_with_kills(first, middle, [_moment(dice) for _ in "123"])
        back = await _copied_with_kills(middle, last, [_moment(dice) for _ in "45"])
    counts = {"projects": PROJECTS, "events": 2 * PROJECTS, "keys": PROJECTS}
    for summary in (there, back):
        assert {name: summary[name] for name in counts} == counts
    assert there["digest"] == back["digest"]


def _moment(dice: random.Random) -> Moment:
    # In the first half, or before anything is there; then somewhere in what comes next.
    return dice.randrange(-PROJECTS // 4, PROJECTS // 2), dice.uniform(0, 0.1)


async def _copied_with_kills(source: Site, target: Site, moments: list[Moment]) -> dict[str, Any]:
    """Copy, killed each time at another moment; return the summary of the run that is not."""
    words = ("store", "copy", "--from", source.url, "--to", target.url, "--json")
    with _counting(target) as count:
        for records, seconds in sorted(moments):
            program = await start(*words, env={})
            await asyncio.to_thread(_wait_for, count, records, program)
            await asyncio.sleep(seconds)
            program.kill()
            await program.communicate()
            assert program.returncode == -9, "it had ended before it was to be killed"
    done = await finish(await start(*words, env={}))
    assert done.code == 0, done.err
    summary: dict[str, Any] = done.document
    return summary


def _wait_for(count: Callable[[], int], wanted: int, program: Process) -> None:
    give_up = time.monotonic() + PATIENCE
    while count() <= wanted and program.returncode is None:
        assert time.monotonic() < give_up, "the copy does not get on"
        time.sleep(0.002)


@contextmanager
def _counting(site: Site) -> Iterator[Callable[[], int]]:
    """Give what counts the records that are there now."""
    place = site.place
    if isinstance(place, SqlitePlace):
        yield lambda: _rows(place)
        return
    with MongoClient[dict[str, Any]](place.uri) as client:
        yield client[place.database]["projects"].estimated_document_count


def _rows(place: SqlitePlace) -> int:
    if not place.path.exists():
        return 0
    with closing(sqlite3.connect(f"{place.path.as_uri()}?mode=ro", uri=True)) as sql:
        try:
            count: int = sql.execute("SELECT count(*) FROM projects").fetchone()[0]
        except sqlite3.OperationalError:
            # Its tables are being made.
            return 0
    return count
