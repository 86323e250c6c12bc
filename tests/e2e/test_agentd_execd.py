"""agentd and its execd: a child of its own, or one that listens elsewhere, as in a container."""

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from tests.e2e.agentd_process import Agentd, agentd

from greylag.agentd.agent.types import find_agent
from greylag.agentd.execution import Execution, ExecutionError

GOOSE = find_agent(None, os.environ)

pytestmark = [
    pytest.mark.goose,
    pytest.mark.skipif(GOOSE.kind != "goose", reason="goose is not installed"),
]


@asynccontextmanager
async def listening_execd(path: Path, client: int) -> AsyncIterator[Process]:
    """Run an execd that listens at a path, for one user, with an environment of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", "greylag.execd", "--socket", str(path)),
        *("--client", str(client)),
        env={"PATH": os.environ["PATH"], "OF_THE_IMAGE": "set"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        assert await process.wait() == 0


async def works(api: Agentd) -> bool:
    """Tell whether a tool's output comes through."""
    events = await api.events(await api.turn("[[tool echo $((6*7))$OF_THE_IMAGE; id -u]]"))
    assert events[-1]["type"] == "complete", events
    return "42" in str([e["content"] for e in events if e["type"] == "tool_response"])


async def serves(path: Path) -> bool:
    """Tell whether an execd answers us, once it is there."""
    async with asyncio.timeout(30):
        while True:
            try:
                await Execution(path).hello()
            except ExecutionError as error:
                if "did not answer" in str(error):
                    return False
                await asyncio.sleep(0.05)
            else:
                return True


async def test_an_execd_answers_one_user_and_ends_when_its_path_is_another_s() -> None:
    with tempfile.TemporaryDirectory() as short:
        path = Path(short, "s")
        os.makedirs(path / "in the way")  # noqa: PTH103 - whatever a tool has left is put aside
        async with listening_execd(path, os.getuid() + 1):
            assert not await serves(path)
        async with listening_execd(path, os.getuid()) as execd:
            assert await serves(path)
            os.rename(path, f"{path}-was")  # noqa: PTH104 - quick enough for the loop
            os.symlink(short, path)  # noqa: PTH211 - the same
            assert await execd.wait() == 0


async def healthy(api: Agentd, status: int) -> None:
    async with asyncio.timeout(30):
        while (await api.json("GET", "/api/v1/health"))[0] != status:  # noqa: ASYNC110 - health has no event
            await asyncio.sleep(0.05)


async def test_an_execd_elsewhere_runs_the_agent_and_may_be_started_again(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as short:
        path = Path(short, "s")
        settings = {"GREYLAG_EXECD_SOCKET": str(path), "GREYLAG_GOOSE": GOOSE.argv[0]}
        for name in ("workspace", "home", "tmp"):
            (tmp_path / name).mkdir()
        user = os.getuid()
        async with listening_execd(path, user) as execd, agentd(tmp_path, **settings) as api:
            assert psutil.Process(api.process.pid).children() == []
            assert await works(api)
            execd.terminate()
            await healthy(api, 200)  # it waits for agentd, which may be ending too
            execd.terminate()
            await execd.wait()
            await healthy(api, 503)
            async with listening_execd(path, user):
                await healthy(api, 200)
                assert await works(api)
                left = api.others()
                await api.stop()
                _, alive = await asyncio.to_thread(psutil.wait_procs, left, timeout=15)
                assert alive == [], "what agentd let go of has ended"


async def test_a_folder_with_a_long_name_is_no_matter(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / ("longer" * 20)
    folder.mkdir(parents=True)
    async with agentd(folder) as api:
        assert await works(api)


async def test_with_agentd_ends_all_that_it_had_started(tmp_path: Path) -> None:
    async with agentd(tmp_path) as api:
        hider = "(env -i setsid /bin/sleep 989 >/dev/null 2>&1 &); setsid sleep 988 & echo begun"
        await api.events(await api.turn(f"[[tool {hider}]]"))
        mine = psutil.Process(api.process.pid).children(recursive=True)
        assert {"988", "989"} <= {word for one in mine for word in one.cmdline()}
        await api.stop(signal.SIGKILL)
        _, alive = await asyncio.to_thread(psutil.wait_procs, mine, timeout=15)
        assert alive == []
