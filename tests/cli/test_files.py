"""A workspace's files as they come here: their names, which are its agent's word, and parts."""

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.cli.program import Cli
from tests.cli.stack import Stack

from greylag.cli import files
from greylag.cli.errors import CliError, ServerUnreachableError
from greylag.cli.transport import Content
from greylag.common.agent_api import FileEntry
from greylag.common.clock import rfc3339


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a/", "/etc/passwd", "../x", "x\0y", "half\\", "a\\x2fb"]
)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(CliError, match="as no file can be named here"):
        files._below(Path("here"), name)


@pytest.mark.parametrize("name", [b"a b", b"back\\slash", b"caf\xc3\xa9", b"\xff\xfe", b"..."])
def test_every_other_name_comes_and_goes(name: bytes) -> None:
    said = files._said(os.fsdecode(name))
    said.encode()
    assert os.fsencode(files._below(Path("here"), said)) == b"here/" + name


class Server:
    """Gives a file's content from where it is asked for, and breaks off once it has given some."""

    def __init__(self, content: bytes, *breaks: int) -> None:
        self._content = content
        self._breaks = list(breaks)
        self.asked: list[int] = []

    @asynccontextmanager
    async def read_file(self, _place: Any, entry: FileEntry, start: int) -> AsyncIterator[Content]:
        assert start < entry.size  # else the answer is 416
        self.asked.append(start)
        end = self._breaks.pop(0) if self._breaks else len(self._content)

        async def chunks() -> AsyncIterator[bytes]:
            yield self._content[start:end]
            if end < len(self._content):
                raise ServerUnreachableError("It broke.", connected=True)

        yield Content(start > 0, chunks())


def _entry(size: int, mode: str = "644", kind: str = "file", path: str = "f") -> FileEntry:
    moment = "2026-01-01T00:00:00.000Z"
    return FileEntry(path, path.rpartition("/")[2], kind, size, moment, mode, None, None, '"1-2-3"')


def _part(folder: Path, entry: FileEntry) -> Path:
    """Return where a killed program leaves the beginnings of a file."""
    mark = hashlib.sha256(f"{entry.path}{entry.etag}".encode()).hexdigest()[:12]
    return folder / f".greylag-{mark}.part"


@pytest.mark.parametrize(
    ("there", "asked"), [(b"", [0]), (b"012", [3]), (b"0123456789", []), (b"x" * 11, [0])]
)
async def test_a_part_is_gone_on_with_and_one_that_is_whole_is_not_asked_for(
    there: bytes, asked: list[int], tmp_path: Path
) -> None:
    server, entry = Server(b"0123456789"), _entry(10)
    _part(tmp_path, entry).write_bytes(there)
    copying = files._Copying(server, None)  # type: ignore[arg-type] # what a download takes of it
    await copying.download(entry, tmp_path / "f")
    assert (server.asked, (tmp_path / "f").read_bytes()) == (asked, b"0123456789")
    assert os.listdir(tmp_path) == ["f"]  # noqa: PTH208 - names


async def test_two_copies_of_one_file_at_once_do_not_write_into_each_other(tmp_path: Path) -> None:
    entry, begun, both = _entry(10), asyncio.Event(), asyncio.Event()

    class Slow(Server):
        @asynccontextmanager
        async def read_file(self, *_: Any) -> AsyncIterator[Content]:
            async def chunks() -> AsyncIterator[bytes]:
                yield b"01234"
                begun.set()
                await both.wait()
                yield b"56789"

            yield Content(partial=False, chunks=chunks())

    copying = files._Copying(Slow(b""), None)  # type: ignore[arg-type] # what a download takes of it
    first = asyncio.create_task(copying.download(entry, tmp_path / "f"))
    await begun.wait()
    with pytest.raises(CliError, match="being copied here already"):
        await files._Copying(Server(b"x" * 10), None).download(entry, tmp_path / "f")  # type: ignore[arg-type] # the same
    both.set()
    await first
    assert (tmp_path / "f").read_bytes() == b"0123456789"


async def test_connections_that_break_are_gone_on_with(tmp_path: Path) -> None:
    server = Server(b"0123456789", 4, 7)
    copying = files._Copying(server, None)  # type: ignore[arg-type] # what a download takes of it
    await copying.download(_entry(10), tmp_path / "f")
    assert (server.asked, (tmp_path / "f").read_bytes()) == ([0, 4, 7], b"0123456789")


async def test_a_file_of_the_longest_name_there_is_comes(tmp_path: Path) -> None:
    entry = _entry(3, path="漢" * 85)
    copying = files._Copying(Server(b"abc"), None)  # type: ignore[arg-type] # what a download takes of it
    await copying.download(entry, tmp_path / entry.name)
    assert (tmp_path / entry.name).read_bytes() == b"abc"


async def test_an_empty_file_comes_without_being_asked_for(tmp_path: Path) -> None:
    copying = files._Copying(Server(b""), None)  # type: ignore[arg-type] # what a download takes of it
    await copying.download(_entry(0), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b""


class Workspace(dict[str, tuple[bytes, FileEntry]]):
    """A workspace of files in memory, which the agent may write into, too."""

    def agent_writes(self, path: str, content: bytes, **about: str) -> None:
        entry = _entry(len(content), about.get("mode", "644"), path=path)
        moment = about.get("modified", rfc3339(time.time()))
        self[path] = (content, replace(entry, modified=moment))

    async def make_folder(self, _place: Any, path: str) -> None:
        pass

    async def folder(self, _place: Any, path: str) -> AsyncIterator[FileEntry]:
        for one, (_, entry) in list(self.items()):
            if one.rpartition("/")[0] == path:
                yield entry

    async def write_file(
        self, _place: Any, path: str, content: AsyncIterator[bytes], about: dict[str, str]
    ) -> FileEntry:
        self.agent_writes(path, b"".join([chunk async for chunk in content]), **about)
        return self[path][1]

    @asynccontextmanager
    async def read_file(self, _place: Any, entry: FileEntry, _start: int) -> AsyncIterator[Content]:
        async def chunks() -> AsyncIterator[bytes]:
            yield self[entry.path][0]

        yield Content(partial=False, chunks=chunks())


async def _sent(here: Path, there: Workspace) -> dict[str, int]:
    copying = files._Copying(there, None)  # type: ignore[arg-type] # what a copy takes of it
    await copying.send(here, "in")
    return copying.counts


async def _fetched(there: Workspace, here: Path) -> dict[str, int]:
    copying = files._Copying(there, None)  # type: ignore[arg-type] # what a copy takes of it
    await copying.fetch(_entry(0, kind="folder", path="in"), here)
    return copying.counts


async def test_a_copy_made_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    there = Workspace()
    (tmp_path / "conf").write_text("port=8000")
    os.utime(tmp_path / "conf", (1e9, 1e9))
    assert (await _sent(tmp_path, there))["files"] == 1
    assert (await _sent(tmp_path, there))["already_there"] == 1
    there.agent_writes("in/conf", b"port=9000")
    assert (await _sent(tmp_path, there))["files"] == 1
    assert there["in/conf"][0] == b"port=8000"
    back = tmp_path / "back"
    assert (await _fetched(there, back))["files"] == 1
    assert (await _fetched(there, back))["already_there"] == 1
    for content in (b"port=7000", None):
        if content:
            there.agent_writes("in/conf", content, modified="2026-01-01T00:00:00Z")
        else:
            (back / "conf").write_text("port=6000")
            os.utime(back / "conf", (1e9, 1e9))  # a test takes less time than counts
        assert (await _fetched(there, back))["files"] == 1
        assert (back / "conf").read_bytes() == there["in/conf"][0]


async def test_programs_stay_executable_both_ways(tmp_path: Path) -> None:
    there, here = Workspace(), tmp_path / "here"
    here.mkdir()
    (here / "run").write_text("#!/bin/sh\n")
    (here / "key").write_text("secret")
    for name, mode in (("run", 0o755), ("key", 0o600)):
        (here / name).chmod(mode)
    await _sent(here, there)
    assert {path: entry.mode for path, (_, entry) in there.items()} == {
        "in/run": "755",
        "in/key": "600",
    }
    back = tmp_path / "back"
    await _fetched(there, back)
    (here / "run").chmod(0o644)
    for name in ("run", "key"):
        assert os.access(back / name, os.X_OK) == (name == "run")
    assert await _sent(here, there) == {
        "files": 1,
        "bytes": 10,
        "already_there": 1,
        "links_left_out": 0,
    }
    assert there["in/run"][1].mode == "644"
    assert (await _fetched(there, back))["already_there"] == 2
    assert not os.access(back / "run", os.X_OK)


async def test_a_disk_that_has_no_such_rights_takes_files_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "chmod", refuse)
    there = Workspace()
    there.agent_writes("in/run", b"#!/bin/sh", mode="755")
    for what in ("files", "already_there"):
        assert (await _fetched(there, tmp_path / "back"))[what] == 1


async def test_what_is_no_file_is_counted_and_what_is_shut_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = Workspace(), tmp_path / "here"
    (here / "real/shut").mkdir(parents=True)
    for name, target in (("folder", "real"), ("file", "real/f"), ("gone", "nowhere")):
        (here / name).symlink_to(target)
    (here / "real/f").touch()
    os.mkfifo(here / "pipe")
    assert await _sent(here, there) == {
        "files": 1,
        "bytes": 0,
        "already_there": 0,
        "links_left_out": 4,
    }
    monkeypatch.setattr(os, "scandir", _shutting(os.scandir))
    with pytest.raises(CliError, match="real/shut cannot be read: Permission denied"):
        await _sent(here, there)
    back = tmp_path / "back"
    back.write_text("in the way")
    with pytest.raises(CliError, match="back cannot be made: File exists"):
        await _fetched(there, back)


def _shutting(scandir: Any) -> Any:
    def do(path: Any) -> Any:
        if str(path).endswith("shut"):  # not by its rights: root may read all
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    return do


async def test_what_has_colons_is_copied_as_the_rule_says(
    stack: Stack, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").write_text("words")
    for project in ("a", "a:b"):
        await cli("projects", "create", project, "--id", project)
        await cli("activate", project)
    assert (await cli("cp", "./a:b", "a:in:x")).code == 0
    assert (await cli("cp", "a:in:x", "back")).code == 0
    assert (await cli("cp", "--project", "a:b", "a:b", ":in:x")).code == 0
    assert (await cli("cp", "--project", "a:b", ":in:x", "back:too")).code == 0
    assert {(tmp_path / name).read_text() for name in ("back", "back:too")} == {"words"}
    assert "in:x" in (await cli("files", "ls", "a:b")).out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("a:b", "c:d"), "not both"),
        (("./a:b", "./c"), "not none"),
        (("--project", "p", "a:b", "c"), "is :PATH, not none"),
        (("--project", "p", ":a", ":b"), "is :PATH, not both"),
        (("x:y", "./z"), "The path here is written ./x:y."),
        (("C:\\data:x", "./z"), "C:\\data:x is read as C, then a path: see --project."),
    ],
)
async def test_how_colons_are_read_is_said_where_that_does_not_work(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x:y").touch()
    done = await cli("cp", *words)
    assert done.code != 0
    assert told in " ".join(done.err.split())
