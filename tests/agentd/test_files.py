"""Content on its way to the workspace may take its time; what is told of it may not."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.agentd.changes.rig import rig

from greylag.agentd.execution import Execution
from greylag.agentd.files import WorkspaceFiles
from greylag.agentd.problems import RequestError
from greylag.common.agent_api import LONGEST_TRANSFER, FileEntry, FileMatch
from greylag.execd import file_server
from greylag.execd.files import MOST_ARCHIVES
from greylag.execd.protocol import (
    FrameKind,
    Reader,
    Writer,
    agree,
    frame,
    json_frame,
    read_frame,
)


def passing(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what lets seconds pass for the loop, which is to be Python's own."""
    loop, passed = asyncio.get_running_loop(), [0.0]
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + passed[0])

    def let(seconds: float) -> None:
        passed[0] += seconds

    return let


@pytest.mark.python_loop
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


@pytest.mark.python_loop
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


@pytest.mark.parametrize(
    ("change", "paths"),
    [
        (lambda files: files.make_folder("a//./b/"), ["a/b"]),
        (lambda files: files.move("a", "./b", replace=False), ["a", "b"]),
        (lambda files: files.remove("a", recursive=False), ["a"]),
        (lambda files: files.write("a", None, _content(b"")), ["a"]),
        (lambda files: files.unpack("a", "zip", _content(b"")), ["a"]),
    ],
)
async def test_what_a_person_changes_is_told_before_it_is_asked_for(
    change: Change, paths: list[str], tmp_path: Path
) -> None:
    told: list[str] = []

    async def touched(*paths: str) -> None:
        told.extend(paths)

    files = WorkspaceFiles(Execution(tmp_path / "nobody"), tmp_path, touched)
    with pytest.raises(RequestError, match="execd cannot be reached"):
        await change(files)
    assert told == paths


@pytest.mark.python_loop
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


ENTRY: dict[str, Any] = {
    "name": "file",
    "kind": "file",
    "tag": "0-0-0",
    "target": None,
    "size": 3,
    "modified": 1.0,
    "mode": 0o644,
}
PAGE = {"entry": {**ENTRY, "name": "", "kind": "folder"}, "entries": [ENTRY], "next": None}
FOUND = {"path": "file", "line": 1, "text": "x"}
DONE = {"ok": True}
MATCHES = {"matches": [FOUND], "whole": True}


@asynccontextmanager
async def lying(folder: Path, *said: dict[str, Any] | bytes) -> AsyncIterator[WorkspaceFiles]:
    """Run an execd that agrees to all that it is asked, and then says these things."""

    async def answer(reader: Reader, writer: Writer) -> None:
        await read_frame(reader)
        await agree(writer)
        for one in said:
            told = one if isinstance(one, bytes) else json_frame(FrameKind.JSON, one)
            writer.write(told)
        writer.write_eof()
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(answer, folder / "execd"):
        yield WorkspaceFiles(Execution(folder / "execd"), folder / "workspace")


Ask = Callable[[WorkspaceFiles], Awaitable[object]]


def _show(files: WorkspaceFiles) -> Awaitable[object]:
    return files.show("file")


def _page(files: WorkspaceFiles) -> Awaitable[object]:
    return files.page("", "", 1)


def _search(files: WorkspaceFiles) -> Awaitable[object]:
    return files.search("", "x", 1)


def _unpack(files: WorkspaceFiles) -> Awaitable[object]:
    return files.unpack("", "zip", _content(b"x"))


async def _read(files: WorkspaceFiles) -> bytes:
    entry = FileEntry(
        *("file", "file", "file"), 3, modified="", mode="644", target=None, media_type=None, etag=""
    )
    async with files.read(entry, 0, 3) as content:
        return b"".join([piece async for piece in content])


def _each(ask: Ask, answer: dict[str, Any], name: str, *wrongs: Any) -> list[Any]:
    return [(ask, {**answer, name: wrong}) for wrong in wrongs]


def _entries(name: str, *wrongs: Any) -> list[Any]:
    return _each(_show, {}, "entry", *({**ENTRY, name: wrong} for wrong in wrongs))


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        *_each(_show, {}, "entry", None, [], {}),
        *_each(_show, {"entry": ENTRY}, "reached", [1], 1, ["\ud83d"]),
        *_entries("kind", "device", None),
        *_entries("tag", '0-0"; x', "0", None),
        *_entries("name", "a/b", 1, "x" * 20_000, "\ud83d"),
        *_entries("target", 1, ["x"]),
        *_entries("size", -1, 1 << 62, 1.0),
        *_entries("modified", None, "now", float("nan"), 10**400),
        *_entries("mode", "644", -1),
        *_each(_page, PAGE, "entries", {}, None, [ENTRY, ENTRY], ["file"]),
        *_each(_page, PAGE, "next", 1),
        *_each(_search, MATCHES, "matches", {}, [FOUND, FOUND], [{**FOUND, "line": -1}], [{}]),
        *_each(_unpack, {"files": 1}, "left_out", "", {}, [1]),
        *_each(_unpack, {"left_out": []}, "files", "1"),
    ],
)
async def test_what_execd_tells_that_is_no_answer_is_refused(
    ask: Ask, said: dict[str, Any], tmp_path: Path
) -> None:
    async with lying(tmp_path, {"ok": True, **said}) as files:
        with pytest.raises(RequestError, match="not of the form it must have") as refused:
            await ask(files)
        assert refused.value.code == "agent_unavailable"


async def test_what_execd_tells_of_a_file_is_taken_within_bounds(tmp_path: Path) -> None:
    told = {**ENTRY, "mode": 0o106755, "modified": 1e300, "target": "x"}
    async with lying(tmp_path, {"ok": True, "entry": told}) as files:
        entry = await files.show("file")
    assert (entry.mode, entry.modified, entry.target) == ("6755", "9999-12-31T23:59:59.000Z", "x")
    async with lying(tmp_path, {"ok": True, **MATCHES, "whole": 1}) as files:
        found = await files.search("", "x", 1)
    assert (found.matches, found.whole) == ([FileMatch("file", 1, "x")], False)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([b"abc", DONE], None),
        ([b"abcd", DONE], "more content"),
        ([b"ab", b"cd", DONE], "more content"),
        ([b"ab", DONE], "broke off"),
        ([b"abc"], "broke off"),
        ([], "broke off"),
        ([b"ab", {"ok": False, "code": "file_changed", "message": "It changed."}], "It changed"),
        ([b"ab", {"ok": False, "code": "unheard_of", "message": "Why?"}], "Why"),
    ],
)
async def test_content_that_is_not_what_was_asked_for_is_an_error(
    said: list[bytes | dict[str, Any]], expected: str | None, tmp_path: Path
) -> None:
    frames = [frame(FrameKind.STDOUT, one) if isinstance(one, bytes) else one for one in said]
    async with lying(tmp_path, *frames) as files:
        if expected is None:
            assert await _read(files) == b"abc"
            return
        with pytest.raises(RequestError, match=expected) as failed:
            await _read(files)
        codes = {"It changed": "file_changed", "Why": "files_failed"}
        assert failed.value.code == codes.get(expected, "agent_unavailable")


async def test_neither_side_of_an_upload_waits_for_one_that_has_given_up(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"piece"
        raise OSError("whoever sent it is gone")

    async def endless() -> AsyncIterator[bytes]:
        yield b"piece"
        await asyncio.Event().wait()

    refusal = {"ok": False, "code": "no_space", "message": "The disk is full."}
    (tmp_path / "refusing").mkdir()
    async with asyncio.timeout(20), rig(tmp_path) as made:
        files = WorkspaceFiles(Execution(tmp_path / "execd"), made.root)
        with pytest.raises(RequestError, match="is gone"):
            await files.write("file", None, broken())
        async with lying(tmp_path / "refusing", refusal) as files:
            with pytest.raises(RequestError, match="is full"):
                await files.write("file", None, endless())
