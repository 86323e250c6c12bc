"""What a hostile execd tells of the workspace: lists and contents are refused, not believed."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop

from greylag.agentd.changes import capture
from greylag.agentd.changes.capture import Capture, entries_of
from greylag.agentd.changes.states import FileStatus, RestoreStep, Seen, SnapshotError
from greylag.agentd.execution import Execution
from greylag.execd.files import MOST_DEPTH, MOST_PATH
from greylag.execd.protocol import MOST_DATA, Reader, Writer, agree, read_frame
from greylag.execd.snapshots import RECORD

BEGAN = 10**18


def record(*entries: Any) -> bytes:
    return json.dumps(entries).encode()


def listed(*records: tuple[str, bytes]) -> bytearray:
    parts = (
        RECORD.pack(len(path.encode()), len(said)) + path.encode() + said for path, said in records
    )
    return bytearray(b"".join(parts))


def each(entry: list[Any], at: int, *wrongs: Any) -> list[bytes]:
    return [record([*entry[:at], wrong, *entry[at + 1 :]]) for wrong in wrongs]


@pytest.mark.parametrize(
    "said",
    [
        *(b"", b"5", b"null", b"{}", b"[", b"[" * 100_000, b"[5]", b'["ab"]', b"[[]]"),
        *each(["a", "d", 1], 2, -1, 1 << 64, 1.0, "1", None),
        *each(["a", "f", 420, 1, 5, 6, 7], 6, 1 << 64, -1 << 65, 1.5, "7"),
        *each(["a", "f", 420, 1, 5, 6, 7], 3, -1, "1"),
        *each(["a", "l", ""], 2, 5, None, "x" * (MOST_DATA + 1)),
        *each(["a", "x", ""], 2, 5, None, []),
        *each(["", "d", 1], 0, 1, ["a"], "", ".", "..", "a/b", "x" * 256),
        *each(["", "d", 1], 0, "\\x41", "\\xc3\\xa9", "\\", "\ud800", "a\0b"),
        *map(record, (["a"], ["a", "y"], ["a", "d"], ["a", "d", 1, 2], ["a", "f", 420, 1, 5, 6])),
        *map(record, (["a", "f", 420], ["a", "f", 420, 1], ["a", "f", 420, 1, 5, 6, 7, 8])),
        record(["a", "d", 1], ["a", "l", "b"]),
    ],
)
def test_a_folder_s_record_that_is_none_is_refused(said: bytes) -> None:
    with pytest.raises(SnapshotError), capture._understood():
        entries_of(said, BEGAN)


def test_a_folder_s_record_tells_its_entries_or_why_it_is_left_out() -> None:
    late = BEGAN - 1_000_000_000  # within a step of the clock another change would not show
    found = entries_of(
        record(
            ["new", "f", 0o100644, 1, 5, late, 7],
            ["old", "f", 0o644, 1, -5, late - 1, 7],
            ["\\xff", "d", 0o40700],
            ["x" * 255, "l", "../away"],
            ["key", "x", "unreadable"],
            ["", "x", "as it likes"],
        ),
        BEGAN,
    )
    assert found == {
        "new": Seen("f", 0o644, None, FileStatus(1, 5, late, 7), settled=False),
        "old": Seen("f", 0o644, None, FileStatus(1, -5, late - 1, 7), settled=True),
        "\\xff": Seen("d", 0o700),
        "x" * 255: Seen("l", 0, "../away"),
        "key": Seen("x", 0, "unreadable"),
        "": Seen("x", 0, "special"),
    }
    assert [entries_of(json.dumps(why).encode(), BEGAN) for why in ("build", "?")] == [
        "build",
        "special",
    ]


ROOT = ("", record())
DEEP = "/".join("a" * (MOST_DEPTH + 1))


@pytest.mark.parametrize(
    "data",
    [
        listed(),
        listed(("a", record())),
        listed(("", b'"build"')),
        listed(ROOT, ROOT),
        listed(ROOT, ("a", b"[]"), ("a", b"[]")),
        listed(ROOT, (f"{DEEP}/a", b"[]")),
        listed(ROOT, ("x" * (MOST_PATH + 1), b"[]")),
        listed(ROOT)[:-1],
        listed(ROOT) + b"\0",
        listed(ROOT) + RECORD.pack(1, 0) + b"\xff",
    ],
)
def test_a_list_that_is_none_is_refused(data: bytearray) -> None:
    with pytest.raises(SnapshotError), capture._understood():
        capture._records(data)


def test_a_list_tells_each_folder_s_record(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [ROOT, (DEEP, b'"build"'), ("b" * MOST_PATH, b"[1]")]
    assert capture._records(listed(*records)) == dict(records)
    monkeypatch.setattr(capture, "_MOST_FOLDERS", 2)
    with pytest.raises(SnapshotError), capture._understood():
        capture._records(listed(*records))


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_step_that_execd_takes_no_more_fails_as_such_on_each_loop(
    loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    async def ends(reader: Reader, writer: Writer) -> None:
        await read_frame(reader)
        await agree(writer)
        writer.transport.abort()
        gone.set()

    async def content(_: str) -> bytes:
        await gone.wait()
        for _turn in range(9):  # turns of the loop, in which the connection is found to be closed
            await asyncio.sleep(0)
        return b"piece"

    async def restored() -> None:
        async with await asyncio.start_unix_server(ends, tmp_path / "s"):
            store = cast("Any", SimpleNamespace(read=content))
            with pytest.raises(SnapshotError):
                await Capture(Execution(tmp_path / "s"), tmp_path, store).restore(
                    [RestoreStep("file", "a", {"mode": 0o644}, ["digest"])]
                )

    gone = asyncio.Event()
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(restored(), 20))
