"""Content on its way to the workspace may take its time; what is told of it may not."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.agentd.changes.rig import rig

from greylag.agentd.execution import Execution
from greylag.agentd.files import WorkspaceFiles
from greylag.agentd.problems import RequestError
from greylag.common.agent_api import LONGEST_TRANSFER
from greylag.execd import file_server
from greylag.execd.files import MOST_ARCHIVES
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


async def test_of_more_archives_than_may_be_read_at_once_each_is_told_so_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let = passing(monkeypatch)

    async def read() -> None:
        async with files.archive("", "zip") as content:
            assert b"".join([piece async for piece in content])

    async with rig(tmp_path) as made:
        (made.root / "file").write_text("x")
        files = WorkspaceFiles(Execution(tmp_path / "execd"), made.root)
        async with AsyncExitStack() as untaken:
            for _ in range(MOST_ARCHIVES):
                await untaken.enter_async_context(files.archive("", "zip"))
            one_more = asyncio.create_task(read(), name="one more")
            await asyncio.sleep(0)
            let(20)
            with pytest.raises(RequestError) as refused:
                await one_more
            assert refused.value.code == "limit_exceeded"
        await read()


Change = Callable[[WorkspaceFiles], Awaitable[object]]


async def _content(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _packed(names: Sequence[str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name in names:
            packed.writestr(name, "a person's")
    return file.getvalue()


_CHANGES: dict[str, tuple[Change, set[str]]] = {
    "write": (lambda files: files.write("link/file", None, _content(b"a person's")), {"real/file"}),
    "last": (lambda files: files.write("last", None, _content(b"a person's")), {"real/file"}),
    "escapes": (lambda files: files.write("\\xc3\\xa9", None, _content(b"a person's")), {"é"}),
    "move": (lambda files: files.move("link/file", "away/new", replace=False), {"other/new"}),
    "remove": (lambda files: files.remove("link/file", recursive=False), {"real/file"}),
    "folder": (lambda files: files.make_folder("link/folder"), {"real/folder"}),
    "unpack": (
        lambda files: files.unpack("link", "zip", _content(_packed(["a", "b/c"]))),
        {"real/a", "real/b/c"},
    ),
    "unpack in all": (
        lambda files: files.unpack("up", "zip", _content(_packed(["out/a"]))),
        {"other/a"},
    ),
    "unpack very many": (
        lambda files: files.unpack(
            "up", "zip", _content(_packed([f"out/{n:0200}" for n in range(400)]))
        ),
        {f"other/{399:0200}"},
    ),
}


@pytest.mark.parametrize("kind", _CHANGES)
async def test_what_a_person_changes_past_links_while_a_turn_runs_stays_theirs(
    kind: str, tmp_path: Path
) -> None:
    change, paths = _CHANGES[kind]
    async with rig(tmp_path) as made:
        root = made.root
        for folder in ("real", "other", "up"):
            (root / folder).mkdir()
        (root / "real/file").write_text("before")
        (root / "link").symlink_to("real")
        (root / "last").symlink_to("link/file")
        (root / "away").symlink_to(root / "real/../other")
        (root / "up/out").symlink_to("../other")
        files = WorkspaceFiles(Execution(tmp_path / "execd"), root, made.service.touched)
        async with made.turn("t"):
            await change(files)
        changed = await made.service.of_turn("t")
        assert {one.path for one in changed.changes if one.shared} >= paths
        assert [one.path for one in changed.changes if not one.shared] == []
        assert (await made.undo("t")).changes.total == 0


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


async def test_an_execd_of_an_older_version_is_asked_for_a_sync_in_vain_and_hinders_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as made:
        files = WorkspaceFiles(Execution(tmp_path / "execd"), made.root)
        gone = WorkspaceFiles(Execution(tmp_path / "execd"), tmp_path / "nowhere")
        with pytest.raises(RequestError):
            await gone.sync()
        monkeypatch.delitem(file_server._VERBS, "sync")
        await files.sync()
