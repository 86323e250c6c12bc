"""Content on its way to the workspace may take its time; what is told of it may not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.agentd.changes.rig import rig

from greylag.agentd.execution import Execution
from greylag.agentd.files import WorkspaceFiles
from greylag.agentd.problems import RequestError
from greylag.common.agent_api import LONGEST_TRANSFER
from greylag.execd import file_server
from greylag.execd.protocol import Writer


def passing(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what lets seconds pass for the loop."""
    loop, passed = asyncio.get_running_loop(), [0.0]
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + passed[0])

    def let(seconds: float) -> None:
        passed[0] += seconds

    return let


async def test_an_upload_may_take_as_long_as_the_platform_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let = passing(monkeypatch)

    async def content() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"piece"
            let(LONGEST_TRANSFER / 4)
            await asyncio.sleep(0)  # what is due by then is done

    async with rig(tmp_path) as made:
        files = WorkspaceFiles(Execution(tmp_path / "execd"), made.root)
        entry = await files.write("file", None, content())
        assert (entry.size, (made.root / "file").read_bytes()) == (20, b"piece" * 4)


async def test_an_answer_that_does_not_come_is_given_up_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let = passing(monkeypatch)

    async def nothing(_: Writer, **_facts: object) -> None:
        while True:
            let(LONGEST_TRANSFER)
            await asyncio.sleep(0.01)

    async def content() -> AsyncIterator[bytes]:
        yield b"piece"
        monkeypatch.setattr(file_server, "agree", nothing)

    async with rig(tmp_path) as made:
        files = WorkspaceFiles(Execution(tmp_path / "execd"), made.root)
        with pytest.raises(RequestError, match="cannot be reached: it took too long") as failed:
            await files.write("file", None, content())
        assert failed.value.code == "agent_unavailable"
