"""kill -9 of each program of an environment, from outside, in the middle of an undo."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import psutil
import pytest
from aiohttp.test_utils import TestServer
from tests.agentd.doubles import recording_model
from tests.e2e.product import PATIENCE, Product, product, real_goose

pytestmark = real_goose
FILES = 800
VICTIMS = ("greylag.agentd", "greylag.execd")
FILL = "mkdir -p d; for n in $(seq {files}); do echo {word} > d/$n; done; {more}"


def texts(workspace: Path) -> set[str]:
    """Return what the files hold."""
    return {file.read_text() for file in (workspace / "d").iterdir() if file.suffix == ""}


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - asks anew
            await asyncio.sleep(0.01)


async def undo(up: Product, path: str, turn: str) -> int | None:
    """Ask for an undo; return the answer's status, ``None`` for none."""
    with suppress(aiohttp.ClientError):
        return (await up.call("POST", f"{path}/turns/{turn}/undo", {"history": "cut"}))[0]
    return None


def kill(up: Product, module: str) -> None:
    """Kill the environment's program that runs ``module``."""
    for one in up.processes():
        with suppress(psutil.Error):
            process = psutil.Process(one.pid)
            if module in process.cmdline() and "bwrap" not in process.name():
                process.kill()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", VICTIMS)
async def test_an_undo_that_is_killed_comes_to_its_end_and_can_be_undone(
    tmp_path: Path, victim: str
) -> None:
    requests: list[str] = []
    async with (
        TestServer(recording_model(requests)) as model,
        product(tmp_path, GOOSE_MODE="auto", GREYLAG_MODEL_URL=str(model.make_url(""))) as up,
    ):
        path = await up.project("demo")
        events = await up.say(
            path, f"[[tool {FILL.format(files=FILES, word='one', more='mkdir -m 700 d0')}]]"
        )
        session = events[0].content["session_id"]
        fill = FILL.format(files=FILES, word="two", more="rmdir d0")
        events = await up.say(path, f"[[tool {fill}]]", session_id=session)
        turn = events[0].content["turn_id"]
        workspace = up.volume("demo") / "workspace"
        assert texts(workspace) == {"two\n"}
        undoing = asyncio.create_task(undo(up, path, turn), name="undo")
        # In its middle: paths come in order, and the first is as it was.
        await until(lambda: undoing.done() or (workspace / "d/1").read_text() == "one\n")
        assert not undoing.done(), await undoing
        kill(up, victim)
        assert await undoing != 200
        await until(lambda: texts(workspace) == {"one\n"} and (workspace / "d0").exists())
        assert (workspace / "d0").stat().st_mode & 0o777 == 0o700
        assert await up.settled(path) == "active"
        assert (await up.call("GET", f"{path}/turns/{turn}"))[1]["forgotten"] is True
        await up.say(path, "[[text on]]", session_id=session)
        assert ("echo one" in requests[-1], "echo two" in requests[-1]) == (True, False)
