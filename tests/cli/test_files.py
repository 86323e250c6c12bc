"""A workspace's files as they come here: their names, which are its agent's word, and parts."""

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from greylag.cli import files
from greylag.cli.client import Content
from greylag.cli.errors import CliError, ServerUnreachableError
from greylag.common.agent_api import FileEntry


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


def _entry(size: int) -> FileEntry:
    moment = "2026-01-01T00:00:00.000Z"
    return FileEntry("f", "f", "file", size, moment, "644", None, None, '"1-2-3"')


def _part(folder: Path, entry: FileEntry) -> Path:
    """Return where a killed program leaves the beginnings of ``f``."""
    mark = hashlib.sha256(f"{entry.path}{entry.etag}".encode()).hexdigest()[:12]
    return folder / f".f.{mark}.part"


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


async def test_connections_that_break_are_gone_on_with(tmp_path: Path) -> None:
    server = Server(b"0123456789", 4, 7)
    copying = files._Copying(server, None)  # type: ignore[arg-type] # what a download takes of it
    await copying.download(_entry(10), tmp_path / "f")
    assert (server.asked, (tmp_path / "f").read_bytes()) == ([0, 4, 7], b"0123456789")


async def test_an_empty_file_comes_without_being_asked_for(tmp_path: Path) -> None:
    copying = files._Copying(Server(b""), None)  # type: ignore[arg-type] # what a download takes of it
    await copying.download(_entry(0), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b""
