"""A process that writes is killed at random moments: nothing acknowledged is ever missing."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import greylag
from greylag.domain.audit import SYSTEM, AuditEvent, ChainCheck, Link
from greylag.ports import PageQuery
from greylag.store.sqlite.store import SqliteStore

WRITER = Path(__file__).with_name("writer.py")
Nursery = subprocess.Popen[str]


@dataclass
class Acknowledged:
    """What a project must hold at least, and whether it may or must be gone."""

    generation: int = 1
    events: int = 0
    released: bool = False
    may_be_gone: bool = False
    gone: bool = False


@dataclass
class Expected:
    """What all killed children together were told is durable."""

    projects: dict[str, Acknowledged] = field(default_factory=dict)
    lines: int = 0

    def take(self, line: str) -> str:
        """Note one line of a child; return the project it is about."""
        said: dict[str, Any] = json.loads(line)
        self.lines += 1
        project = self.projects.setdefault(said["project"], Acknowledged())
        match said["what"]:
            case "want":
                project.generation = said["generation"]
            case "record":
                project.events = said["events"]
                project.released = bool(said["released"])
            case "may delete":
                project.may_be_gone = True
            case "forget":
                project.gone = True
        name: str = said["project"]
        return name


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    source = str(Path(greylag.__file__).parents[1])
    process = subprocess.Popen(  # noqa: S603 - our own script
        [sys.executable, str(WRITER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    with process:
        yield process
    assert process.returncode == 0


def live_and_die(
    nursery: Nursery, file: Path | str, seed: int, *, lines: int = 0, seconds: float = 0
) -> list[str]:
    """Let a child write until it has said so many ``lines``, and ``seconds`` more; kill it, and
    return all that it said.
    """
    assert nursery.stdin
    assert nursery.stdout
    nursery.stdin.write(f"{file} {seed}\n")
    nursery.stdin.flush()
    child = int(nursery.stdout.readline().removeprefix("born "))
    said = [nursery.stdout.readline() for _ in range(lines)]
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    said += iter(nursery.stdout.readline, "dead\n")
    return said


def check(file: Path, expected: Expected, names: set[str]) -> None:
    """Look with other eyes than the store's at what is in the file."""
    with closing(sqlite3.connect(file)) as sql:
        assert sql.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        check_audit(sql)
        for name in names:
            row = sql.execute(
                "SELECT generation, lease_worker, (SELECT count(*) FROM events "
                "WHERE record_id = projects.id) FROM projects WHERE project_id = ?",
                (name,),
            ).fetchone()
            compare(expected.projects[name], row)


def check_audit(sql: sqlite3.Connection) -> None:
    """No change is without its entry, no entry without its change, and none is missing."""
    if not sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'audit'").fetchone():
        return
    told = [json.loads(body) for (body,) in sql.execute("SELECT body FROM audit ORDER BY number")]
    chain = ChainCheck()
    chain.follow(told)
    ends = sql.execute("SELECT number, hash FROM audit_bounds WHERE place = 'end'").fetchall()
    assert [Link(*end) for end in ends] == [chain.last][: len(told)]
    created = {one["object"] for one in told if one["action"] == "create"}
    wanted = Counter(one["object"] for one in told if one["action"] == "want")
    kept = dict(sql.execute("SELECT project_id, generation FROM projects").fetchall())
    assert set(kept) <= created
    # Only what was wanted gone may be gone.
    assert created - set(kept) <= set(wanted)
    assert {name: 1 + wanted[name] for name in kept} == kept


def compare(project: Acknowledged, row: tuple[int, str | None, int] | None) -> None:
    if project.gone or row is None:
        assert project.may_be_gone
        assert row is None
        return
    generation, lease, events = row
    assert generation >= project.generation
    assert events >= project.events
    assert lease is None or not project.released


@pytest.mark.slow
async def test_two_hundred_kills_lose_nothing(nursery: Nursery, tmp_path: Path) -> None:
    dice = random.Random(20)  # noqa: S311 - the same moments again
    file, expected = tmp_path / "greylag.db", Expected()
    for seed in range(200):
        # However slow the machine, children get as far as this; the moment is another each time.
        lines, seconds = dice.randrange(8), dice.uniform(0, 0.02)
        said = live_and_die(nursery, file, seed, lines=lines, seconds=seconds)
        names = {expected.take(line) for line in said} - {""}
        check(file, expected, names)
    check(file, expected, set(expected.projects) - {""})
    assert expected.lines > 400

    store = await SqliteStore.open(file)
    page = await store.page("ada", PageQuery(limit=100_000))
    kept = {name for name, project in expected.projects.items() if not project.may_be_gone}
    assert kept - {""} <= {project.project_id for project in page.projects}
    await store.close()


def test_a_kill_while_the_file_is_made_leaves_one_that_opens(
    nursery: Nursery, tmp_path: Path
) -> None:
    dice = random.Random(21)  # noqa: S311 - the same moments again
    for number in range(40):
        file, expected = tmp_path / f"{number}.db", Expected()
        first = live_and_die(nursery, file, 2 * number, seconds=dice.uniform(0, 0.02))
        second = live_and_die(nursery, file, 2 * number + 1, lines=1)
        assert any('"open"' in line for line in second)
        names = {expected.take(line) for line in (*first, *second)} - {""}
        check(file, expected, names)


async def test_two_processes_append_to_one_audit_trail(nursery: Nursery, tmp_path: Path) -> None:
    file = tmp_path / "greylag.db"
    store = await SqliteStore.open(file)
    living = asyncio.to_thread(live_and_die, nursery, file, 1, lines=60)
    other = asyncio.create_task(living)
    while not other.done():
        event = AuditEvent(at=datetime.now(UTC), actor=SYSTEM, action="ours", object="")
        await store.append_audit(event)
    await other
    await store.close()
    with closing(sqlite3.connect(file)) as sql:
        check_audit(sql)
        mixed = sql.execute("SELECT count(DISTINCT action) FROM audit").fetchone()
        assert mixed == (3,)
