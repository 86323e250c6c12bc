"""Local environments: a worker killed with SIGKILL at any step leaves nothing broken."""

import asyncio
import random
import signal
import sys
from pathlib import Path

import pytest
from tests.cluster.environments import (
    folder_of,
    open_local,
    pid_of,
    reaches,
    record_of,
    standin,
)
from tests.contract.store_adapters import make_project

from greylag.cluster.local import LocalCluster
from greylag.cluster.processes import marked
from greylag.domain.lifecycle import Observed

PROJECT = make_project()
DOOMED = Path(__file__).with_name("data") / "doomed.py"
MORE_THAN_ANY = 100_000
SEED = 20_250_102


async def run_doomed(root: Path, verb: str, at: int, *, seconds: float | None = None) -> bool:
    """Run one verb in a process that dies at its ``at``-th change, or after ``seconds``; return
    whether it was killed.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *(str(DOOMED), str(root), verb, str(at), *standin("--shell", "marked")),
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        async with asyncio.timeout(seconds):
            await child.wait()
    except TimeoutError:
        child.send_signal(signal.SIGKILL)
        await child.wait()
    assert child.returncode in {0, -signal.SIGKILL}
    return child.returncode != 0


async def bring_to(cluster: LocalCluster, verb: str) -> None:
    """Bring the environment to where ``verb`` makes sense."""
    if verb == "stop":
        await cluster.start(PROJECT)
        await reaches(cluster, PROJECT, Observed.READY)
    else:
        await cluster.stop(PROJECT)
        await cluster.prepare(PROJECT)
        await reaches(cluster, PROJECT, Observed.STOPPED)


async def resume(root: Path, cluster: LocalCluster, verb: str) -> None:
    """Do the verb again, as the reconciler does, and check what it promises."""
    match verb:
        case "start":
            await cluster.start(PROJECT)
            await reaches(cluster, PROJECT, Observed.READY)
            found = {process.pid for process in marked(record_of(root, PROJECT).mark)}
            shell = int((folder_of(root, PROJECT).volume / "shell.pid").read_text())
            # The stand-in and its shell, which has a child that sleeps now and then.
            assert {pid_of(root, PROJECT), shell} <= found
            assert len(found) <= 3
        case "stop":
            await cluster.stop(PROJECT)
            await reaches(cluster, PROJECT, Observed.STOPPED)
            assert marked(record_of(root, PROJECT).mark) == set()
        case _:
            await cluster.delete(PROJECT)
            await reaches(cluster, PROJECT, Observed.ABSENT)
            assert not folder_of(root, PROJECT).path.exists()
            assert list((root / ".removed").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["start", "stop", "delete"])
async def test_a_verb_killed_at_any_change_is_brought_to_its_end_by_the_next(
    tmp_path: Path, verb: str
) -> None:
    async with open_local(tmp_path, "--shell", "marked") as cluster:
        at, killed = 0, True
        while killed:
            at += 1
            await bring_to(cluster, verb)
            killed = await run_doomed(tmp_path, verb, at)
            await resume(tmp_path, cluster, verb)
    assert at > 3, "the verb makes several changes"


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["start", "stop"])
async def test_a_verb_killed_at_any_time_is_brought_to_its_end_by_the_next(
    tmp_path: Path, verb: str
) -> None:
    chance = random.Random(f"{SEED} {verb}")  # noqa: S311 - to be repeatable
    async with open_local(tmp_path, "--shell", "marked") as cluster:
        for _ in range(8):
            await bring_to(cluster, verb)
            # Half a second passes before the verb begins; it takes some tenths.
            await run_doomed(tmp_path, verb, MORE_THAN_ANY, seconds=chance.uniform(0.3, 1.2))
            await resume(tmp_path, cluster, verb)
