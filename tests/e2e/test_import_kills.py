"""`greylag import` as a real program, killed at seeded moments: the same again makes it whole."""

import asyncio
import random
import sqlite3
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from tests.cli.program import finish, run, start
from tests.store.sites import Site, sites_in
from tests.store.stored_projects import make_stored

pytestmark = pytest.mark.slow

PROJECTS = 600
NEW = [f"p{number}" for number in range(PROJECTS)]
SEED = 20_261_124
PATIENCE = 60


async def test_an_import_that_is_killed_again_and_again_ends_right(tmp_path: Path) -> None:
    dice = random.Random(SEED)  # noqa: S311 - the same moments again
    file = str(tmp_path / "export.jsonl")
    async with sites_in(tmp_path) as sites:
        projects = [make_stored(one, events=2) for one in NEW]
        first = await sites.filled("sqlite", projects)
        assert (await run("export", file, env=first.env)).code == 0
        middle = await sites.make("mongo")
        # After so many records of the import, or at some moment before the first.
        for wanted in (-1, dice.randrange(PROJECTS // 2), dice.randrange(PROJECTS // 2)):
            seconds = dice.uniform(0, 0.05)
            while not await _killed(middle, file, wanted, seconds):
                seconds /= 2
        assert (await run("serve", "--port", "0", env=middle.env)).code == 2
        await _whole(middle, file)
        last = await sites.filled("sqlite", [make_stored("old")])
        longest, kills = 0.5, 0
        while kills < 3:
            killed = await _killed(last, file, -1, dice.uniform(0, longest))
            found = [one.project.project_id for one in await last.holds()]
            if killed and found != NEW:
                kills += 1
                assert found == ["old"]
            else:
                # It had ended, or had done it all and was ending.
                assert found == NEW
                longest /= 2
                last = await sites.filled("sqlite", [make_stored("old")])
        await _whole(last, file, "--replace")


async def _killed(site: Site, file: str, wanted: int, seconds: float) -> bool:
    """Import until more than ``wanted`` records are there and ``seconds`` have passed; kill it.

    Returns:
        Whether it was killed; on a quick machine it may have ended before.
    """
    with _counting(site) as count:
        program = await start("import", file, "--replace", env=site.env)
        await asyncio.to_thread(_wait_for, count, wanted, program)
        await asyncio.sleep(seconds)
        with suppress(ProcessLookupError):
            program.kill()
        _, err = await program.communicate()
    assert program.returncode in {0, -9}, err.decode()
    return program.returncode == -9


async def _whole(site: Site, file: str, *more: str) -> None:
    done = await finish(await start("import", file, "--json", *more, env=site.env))
    assert done.code == 0, done.err
    counts = {"projects": PROJECTS, "events": 2 * PROJECTS, "keys": PROJECTS}
    assert {name: done.document[name] for name in counts} == counts
    found = await site.holds()
    assert [one.project.project_id for one in found] == NEW


def _wait_for(count: Callable[[], int], wanted: int, program: Process) -> None:
    give_up = time.monotonic() + PATIENCE
    while count() <= wanted and program.returncode is None:
        assert time.monotonic() < give_up, "the import does not get on"
        time.sleep(0.002)


@contextmanager
def _counting(site: Site) -> Iterator[Callable[[], int]]:
    """Give what counts the records that are there now."""
    if site.settings.mongodb_uri is None:
        yield lambda: _rows(site)
        return
    with MongoClient[dict[str, Any]](site.env["MONGODB_URI"]) as client:
        yield client[site.settings.mongodb_db]["projects"].estimated_document_count


def _rows(site: Site) -> int:
    with closing(sqlite3.connect(f"{site.path.as_uri()}?mode=ro", uri=True)) as sql:
        count: int = sql.execute("SELECT count(*) FROM projects").fetchone()[0]
    return count
