"""What people do with files while a turn waits for snapshots, over the real socket."""

import asyncio
import errno
import io
import json
import os
import socket
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from greylag.agentd.execution import Execution, ExecutionRefusedError
from greylag.execd import file_server, snapshots
from greylag.execd.file_server import STALLED_SECONDS
from greylag.execd.files import Place, Workspace
from greylag.execd.protocol import FrameKind, Reader, frame, read_frame, read_object
from greylag.execd.server import ExecServer

MIB = 1024 * 1024
_PIECE = 128 * 1024


@pytest.fixture(autouse=True)
def _turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test, which has a loop of its own, turns of its own."""
    monkeypatch.setattr(file_server, "_ARCHIVES", asyncio.Semaphore(3))
    monkeypatch.setattr(file_server, "_WORK", asyncio.Semaphore(2))
    monkeypatch.setattr(snapshots, "_SNAPSHOTS", asyncio.Semaphore(2))


@asynccontextmanager
async def execd(folder: Path) -> AsyncIterator[Execution]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        serving = asyncio.create_task(ExecServer().serve(listener), name="execd")
        try:
            yield Execution(folder / "s")
        finally:
            serving.cancel()
            await asyncio.wait({serving})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "f").write_bytes(os.urandom(6 * MIB))
    return folder


def jumping(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what lets time pass for the loop."""
    loop, passed = asyncio.get_running_loop(), [0.0]
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + passed[0])

    def do(seconds: float) -> None:
        passed[0] += seconds

    return do


async def rest(reader: Reader, pause: Callable[[], None] = lambda: None) -> tuple[int, Any]:
    """Return how much content came, and the last word."""
    size, last = 0, None
    while (came := await read_frame(reader)) is not None:
        if came[0] is FrameKind.JSON:
            last = read_object(came[1])
            continue
        if size // _PIECE != (size + len(came[1])) // _PIECE:
            pause()
        size += len(came[1])
    return size, last


async def asked(client: Execution, operation: str, **about: Any) -> tuple[int, Any]:
    async with client.exchange(operation, **about) as (_, reader, writer):
        if operation == "snapshots":  # no paths are kept
            writer.write(frame(FrameKind.STDIN_END))
        return await rest(reader)


async def test_archives_that_nobody_takes_hold_up_nothing_and_end(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jump = jumping(monkeypatch)
    where = {"root": str(root), "path": ""}
    async with execd(tmp_path) as client, AsyncExitStack() as stack:
        readers = []
        for _ in range(3):
            archive = client.exchange("files", verb="archive", format="zip", **where)
            readers.append((await stack.enter_async_context(archive))[1])
        assert file_server._ARCHIVES.locked()
        _, listed = await asked(client, "snapshots", verb="list", root=str(root))
        _, searched = await asked(client, "files", verb="search", text="f", most=9, **where)
        assert (listed["ok"], searched["whole"]) == (True, True)
        while file_server._ARCHIVES._value < 3:  # threads that come to a stop
            jump(STALLED_SECONDS)
            await asyncio.sleep(0.01)
        size, last = await asked(client, "files", verb="archive", format="zip", **where)
        assert (size > 6 * MIB, last) == (True, {"ok": True})
        for reader in readers:
            size, last = await rest(reader)
            assert (size < 6 * MIB, last) == (True, None)


@pytest.mark.parametrize("verb", ["remove", "unpack"])
async def test_what_nobody_waits_for_any_more_is_not_done_when_its_turn_comes(
    tmp_path: Path, root: Path, verb: str
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("new", "new")
    about = {"path": "f"} if verb == "remove" else {"path": "", "format": "zip"}
    work = file_server._WORK
    for _ in range(2):
        await work.acquire()
    async with execd(tmp_path) as client:
        asking = client.exchange("files", verb=verb, root=str(root), **about)
        async with asking as (_, _, writer):
            if verb == "unpack":
                writer.write(frame(FrameKind.STDIN, packed.getvalue()))
                writer.write(frame(FrameKind.STDIN_END))
            while not work._waiters:  # noqa: ASYNC110 - nobody tells us that it waits
                await asyncio.sleep(0.01)
        await asked(client, "hello")  # the end of the other connection has come by then
        for _ in range(2):
            work.release()
        while work._value < 2:  # noqa: ASYNC110 - nor that it is over
            await asyncio.sleep(0.01)
        assert os.listdir(root) == ["f"]  # noqa: PTH208 - what is there


@pytest.mark.parametrize("verb", ["archive", "read"])
async def test_a_reader_that_is_slow_gets_all(
    verb: str, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jump = jumping(monkeypatch)
    about: dict[str, Any] = {"path": "", "format": "tar.gz"}
    if verb == "read":
        tag = Workspace(str(root)).entry("f")["tag"]
        about = {"path": "f", "tag": tag, "start": 0, "length": 6 * MIB}
    async with execd(tmp_path) as client:
        asking = client.exchange("files", verb=verb, root=str(root), **about)
        async with asking as (_, reader, _):
            size, last = await rest(reader, lambda: jump(0.2 * STALLED_SECONDS))
    assert (size >= 6 * MIB, last) == (True, {"ok": True})


async def test_a_file_that_is_another_or_shorter_by_now_is_no_whole_one(
    tmp_path: Path, root: Path
) -> None:
    tag = Workspace(str(root)).entry("f")["tag"]
    about = {"verb": "read", "root": str(root), "path": "f", "start": 1}
    async with execd(tmp_path) as client:
        size, last = await asked(client, "files", **about, tag=tag, length=6 * MIB)
        assert (size, last) == (6 * MIB - 1, None)
        (root / "f").write_text("another")
        with pytest.raises(ExecutionRefusedError) as refused:
            await asked(client, "files", **about, tag=tag, length=1)
    assert refused.value.code == "file_changed"


async def test_a_snapshot_of_folders_named_as_rules_keeps_none_of_them_open(
    tmp_path: Path, root: Path
) -> None:
    for name in "abc":
        (root / name / ".gitignore").mkdir(parents=True)
    async with execd(tmp_path) as client:
        await asked(client, "hello")
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
        for _ in range(5):
            await asked(client, "snapshots", verb="list", root=str(root))
        assert len(os.listdir("/proc/self/fd")) < before + 10  # noqa: PTH208 - a count


def test_a_file_that_the_disk_cannot_give_spoils_no_other(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Place.file

    class Broken(io.BytesIO):
        def __init__(self, file: BinaryIO) -> None:
            super().__init__()
            self.fileno = file.fileno  # type: ignore[method-assign]
            self._file = file

        def read(self, _size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "the disk is broken")

        def close(self) -> None:
            self._file.close()

    def broken(place: Place) -> BinaryIO:
        return Broken(opened(place)) if place.name == b"a" else opened(place)

    monkeypatch.setattr(Place, "file", broken)
    wanted = []
    for name in "ab":
        (root / name).write_text(name)
        about = (root / name).stat()
        times = (about.st_mtime_ns, about.st_ctime_ns)
        wanted.append((name, about.st_size, *times, about.st_ino))
    out = io.BytesIO()
    snapshots._write_contents(Workspace(str(root)), wanted, out)
    head = snapshots.FILE_HEAD.pack(snapshots.SENT, 1)
    ends = (bytes([snapshots.CHANGED]), bytes([snapshots.SENT]))
    assert out.getvalue() == head + b"\0" + ends[0] + head + b"b" + ends[1]


def test_a_link_that_a_file_replaces_leaves_its_folder_readable(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "d").mkdir()
    (root / "d/link").symlink_to("f")
    readlink = os.readlink

    def replaced(name: str, *, dir_fd: int) -> str:
        (root / "d/link").unlink()
        (root / "d/link").write_text("a file")
        return readlink(name, dir_fd=dir_fd)

    files = Workspace(str(root))
    with files.at("d") as place, monkeypatch.context() as patched:
        level = snapshots._Level("d", place.open(os.O_RDONLY), (), frozenset())
        patched.setattr(os, "readlink", replaced)
        record = snapshots._listed(level)
    os.close(level.folder)
    length = len("d") + snapshots.RECORD.size
    ((name, kind, *_),) = json.loads(record[length:])
    assert (name, kind) == ("link", "f")


def test_of_a_folder_that_is_left_out_what_is_kept_is_told_whatever_it_is_now(root: Path) -> None:
    (root / ".gitignore").write_text("/data/\n")
    (root / "data").mkdir()
    for n in range(30):
        (root / f"data/a{n:02}").touch()
    os.mkfifo(root / "data/zkept")
    kept = frozenset({"data", "data/zkept"})
    *_, record = snapshots.records(Workspace(str(root)), kept)
    told = json.loads(record[snapshots.RECORD.size + len("data") :])
    assert told == [["zkept", "x", "special"], ["", "x", "ignored"]]


def test_a_write_that_fails_takes_no_folder_from_another(root: Path) -> None:
    files = Workspace(str(root))
    fails, writes, late = (files.at(f"new/{name}", make=True) for name in "abc")
    fails.__enter__()
    place = writes.__enter__()
    assert fails.__exit__(OSError, OSError(), None) is False
    os.mkdir(place.name, dir_fd=place.folder)
    writes.__exit__(None, None, None)
    late.__enter__()
    (root / "new/b").rmdir()
    assert late.__exit__(OSError, OSError(), None) is False
    assert list((root / "new").iterdir()) == []  # of one that did not fail
    fails = files.at("asked/for/a", make=True)
    fails.__enter__()
    files.folder("asked/for")
    assert fails.__exit__(OSError, OSError(), None) is False
    assert (root / "asked/for").is_dir()


def test_a_write_that_fails_leaves_none_of_the_folders_it_made(root: Path) -> None:
    files = Workspace(str(root))
    (root / "f").unlink()
    files.link("way", b"through/../to/it")
    ways = [files.at(path, make=True) for path in ("way/a", "to/it/b", "way/c/d")]
    for way in ways:
        way.__enter__()
    for way in ways:
        assert way.__exit__(OSError, OSError(), None) is False
    assert list(root.iterdir()) == [root / "way"]
