"""Local environments for tests: the stand-in for agentd, waiting, and clearing up."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from greylag.cluster.local.cluster import LocalCluster
from greylag.cluster.local.folders import EnvironmentRecord, Folder
from greylag.cluster.local.processes import identify, marked, send
from greylag.domain.errors import ClusterError, ClusterUnavailableError
from greylag.domain.lifecycle import Observation, Observed
from greylag.domain.project import Environment, Project
from greylag.ports import Cluster

STANDIN = Path(__file__).with_name("data") / "standin.py"
PATIENCE = 100.0


def standin(*flags: str) -> tuple[str, ...]:
    """Return a command that stands in for agentd and misbehaves as ``flags`` say."""
    return (sys.executable, "-I", "-S", str(STANDIN), *flags)


@asynccontextmanager
async def open_local(root: Path, *flags: str, **changed: Any) -> AsyncIterator[LocalCluster]:
    """Open the local cluster with the stand-in and no sandbox; at the end kill what is left."""
    usual: dict[str, Any] = {"agentd_command": standin(*flags), "sandbox": "none", "grace": 1.0}
    cluster = LocalCluster(root, **(usual | changed))
    try:
        yield cluster
    finally:
        await cluster.close()
        kill_all(root)


def kill_all(root: Path) -> None:
    """Kill all processes of all environments under ``root``."""
    for folder in Folder.all(root):
        record = folder.read()
        while record and (left := marked(record.mark)):
            send(left, signal.SIGKILL)
            for process in left:
                reap_quietly(process.pid)


def reap_quietly(pid: int) -> None:
    """Collect ``pid`` if it is an ended child of ours."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return


async def until(condition: Callable[[], bool], what: str) -> None:
    """Return when ``condition`` holds; fail when it does not in time."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - processes give no event for it
            await asyncio.sleep(0.01)
    assert condition(), what


async def reaches(cluster: Cluster, project: Project, state: Observed) -> Observation:
    """Return the first observation of ``state``, waiting as the reconciler does."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + PATIENCE
    seen: Observation | ClusterUnavailableError | None = None
    while True:
        try:
            seen = await cluster.observe(project.environment)
            if seen.state is state:
                return seen
            await cluster.changed(project.environment, timeout=1)
        except ClusterUnavailableError as error:
            seen = error
        assert loop.time() < give_up, f"{seen} and not {state}"


async def accepted(verb: Callable[[Environment], Awaitable[None]], project: Project) -> None:
    """Do ``verb``, again after a refusal that may pass, as the reconciler does."""
    give_up = asyncio.get_running_loop().time() + PATIENCE
    while True:
        try:
            return await verb(project.environment)
        except ClusterError as error:
            if error.terminal or asyncio.get_running_loop().time() >= give_up:
                raise
        await asyncio.sleep(0.2)


async def doing(*work: Awaitable[None]) -> list[BaseException | None]:
    """Do all at once; return what each raised."""
    return list(await asyncio.gather(*work, return_exceptions=True))


def folder_of(root: Path, project: Project) -> Folder:
    """Return where the project's environment lies."""
    return Folder.of(root, project.names)


def record_of(root: Path, project: Project) -> EnvironmentRecord:
    """Return the record of an environment that exists."""
    record = folder_of(root, project).read()
    assert record is not None
    return record


def pid_of(root: Path, project: Project) -> int:
    """Return the pid of the process that was started for an environment."""
    process = record_of(root, project).process
    assert process is not None
    return process.pid


def is_gone(pid: int) -> bool:
    """Tell whether nothing runs under this pid."""
    return identify(pid) is None
