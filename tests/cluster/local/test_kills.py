"""Local environments: a worker killed with SIGKILL at any step leaves nothing broken."""

import asyncio
import os
import random
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cluster.environments import folder_of, open_local, pid_of, reaches, record_of, standin
from tests.contract.store_adapters import make_project

from greylag.cluster.local import launch
from greylag.cluster.local.cluster import LocalCluster
from greylag.cluster.local.folders import Phase
from greylag.cluster.local.processes import identify, marked
from greylag.domain.lifecycle import Observed

PROJECT = make_project()
DOOMED = Path(__file__).with_name("data") / "doomed.py"
MORE_THAN_ANY = 100_000
SEED = 20_250_102


class Doomed:
    """Runs verbs in processes that die: at their n-th change, or after some time."""

    def __init__(self, server: Process) -> None:
        self._server = server

    async def run(self, verb: str, at: int, *, seconds: float | None = None) -> bool:
        """Run ``verb`` until its ``at``-th change, or for ``seconds``; tell if it was killed."""
        await self._tell(f"{verb} {at}")
        pid = await self._heard()
        ended = asyncio.create_task(self._heard(), name=f"end of {pid}")
        if seconds is not None and not (await asyncio.wait({ended}, timeout=seconds))[0]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = await ended
        assert code in {0, -signal.SIGKILL}
        return code != 0

    async def _tell(self, line: str) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(f"{line}\n".encode())
        await self._server.stdin.drain()

    async def _heard(self) -> int:
        assert self._server.stdout is not None
        return int(await self._server.stdout.readline())


@pytest.fixture
async def doomed(tmp_path: Path) -> AsyncIterator[Doomed]:
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        *(str(DOOMED), str(tmp_path), *standin("--shell", "marked")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # The same Greylag as in this process: a launcher is known by where its file is.
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    yield Doomed(server)
    server.kill()
    await server.communicate()


async def bring_to(cluster: LocalCluster, verb: str) -> None:
    """Bring the environment to where ``verb`` makes sense."""
    if verb == "stop":
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
    else:
        await cluster.stop(PROJECT.environment)
        await cluster.prepare(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.STOPPED)


async def resume(root: Path, cluster: LocalCluster, verb: str) -> None:
    """Do the verb again, as the reconciler does, and check what it promises."""
    match verb:
        case "start":
            await cluster.start(PROJECT.environment)
            await reaches(cluster, PROJECT, Observed.READY)
            found = {process.pid for process in marked(record_of(root, PROJECT).mark)}
            shell = int((folder_of(root, PROJECT).volume / "shell.pid").read_text())
            # The stand-in and its shell, which has a child that sleeps now and then.
            assert {pid_of(root, PROJECT), shell} <= found
            assert len(found) <= 3
        case "stop":
            await cluster.stop(PROJECT.environment)
            await reaches(cluster, PROJECT, Observed.STOPPED)
            assert marked(record_of(root, PROJECT).mark) == set()
        case _:
            await cluster.delete(PROJECT.environment)
            await reaches(cluster, PROJECT, Observed.ABSENT)
            assert not folder_of(root, PROJECT).path.exists()
            assert list((root / ".removed").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["start", "stop", "delete"])
async def test_a_verb_killed_at_any_change_is_brought_to_its_end_by_the_next(
    tmp_path: Path, doomed: Doomed, verb: str
) -> None:
    async with open_local(tmp_path, "--shell", "marked") as cluster:
        at, killed = 0, True
        while killed:
            at += 1
            await bring_to(cluster, verb)
            killed = await doomed.run(verb, at)
            await resume(tmp_path, cluster, verb)
    assert at > 3, "the verb makes several changes"


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "longest"), [("start", 0.06), ("stop", 0.4)])
async def test_a_verb_killed_at_any_time_is_brought_to_its_end_by_the_next(
    tmp_path: Path, doomed: Doomed, verb: str, longest: float
) -> None:
    chance = random.Random(f"{SEED} {verb}")  # noqa: S311 - to be repeatable
    async with open_local(tmp_path, "--shell", "marked") as cluster:
        for _ in range(6):
            await bring_to(cluster, verb)
            await doomed.run(verb, MORE_THAN_ANY, seconds=chance.uniform(0, longest))
            await resume(tmp_path, cluster, verb)


async def test_a_start_begins_anew_when_the_one_before_was_killed_before_it_gave_leave(
    tmp_path: Path,
) -> None:
    async with open_local(tmp_path) as cluster:
        await cluster.prepare(PROJECT.environment)
        folder = folder_of(tmp_path, PROJECT)
        # What a starter leaves that dies between its record and its leave: the pipe is its.
        left = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", launch.__file__, str(folder.path), *standin()),
            stdin=asyncio.subprocess.PIPE,
        )
        process = identify(left.pid)
        folder.write(replace(record_of(tmp_path, PROJECT), phase=Phase.RUNNING, process=process))
        starting = asyncio.create_task(cluster.start(PROJECT.environment), name="start")
        assert left.stdin is not None
        asyncio.get_running_loop().call_later(0.1, left.stdin.close)
        await starting
        await reaches(cluster, PROJECT, Observed.READY)
        assert pid_of(tmp_path, PROJECT) != left.pid
        assert await left.wait() == 0
