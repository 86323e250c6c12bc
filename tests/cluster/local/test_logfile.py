"""Reading a log: its last lines, and what comes."""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greylag.cluster.local.logfile import (
    ROTATE_ABOVE,
    last_words,
    read_lines,
    rotate,
    rotate_written,
    start_of,
)


def read(path: Path, tail: int, *, follow: bool = False) -> AsyncIterator[bytes]:
    return read_lines(path, follow=follow, tail=tail, closing=lambda: False)


async def all_of(lines: AsyncIterator[bytes]) -> list[bytes]:
    return [line async for line in lines]


@settings(deadline=None)
@given(
    lines=st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=12),
    torn=st.binary(max_size=5).map(lambda line: line.replace(b"\n", b"")),
    tail=st.integers(0, 14),
)
def test_the_tail_is_the_last_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], torn: bytes, tail: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + torn)
    expected = [line + b"\n" for line in lines] + ([torn] if torn else [])
    assert asyncio.run(all_of(read(path, tail))) == expected[len(expected) - tail :][:tail] or (
        tail >= len(expected) and asyncio.run(all_of(read(path, tail))) == expected
    )


@pytest.mark.parametrize("tail", [1, 7, 4000, 20_000, 30_000])
async def test_the_tail_of_a_log_of_many_blocks_is_exact(tmp_path: Path, tail: int) -> None:
    chance = random.Random(1)  # noqa: S311 - to be repeatable
    lines = [b"%d " % n + b"x" * chance.randrange(60) + b"\n" for n in range(20_000)]
    path = tmp_path / "log"
    path.write_bytes(b"".join(lines))
    assert await all_of(read(path, tail)) == lines[-tail:]


async def test_a_follower_gets_whole_lines_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\nbegun")
    lines = read(path, 2, follow=True)
    assert await anext(lines) == b"old\n"
    waiting = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)
    with path.open("ab") as log:
        log.write(b" and ended\nnext\n")
    assert await waiting == b"begun and ended\n"
    assert await anext(lines) == b"next\n"


async def test_a_follower_goes_on_with_the_new_log_after_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    lines = read(path, 5, follow=True)
    assert await anext(lines) == b"one\n"
    with path.open("ab") as log:
        log.write(b"two\n")
    path.replace(tmp_path / "log.1")
    path.write_bytes(b"three\n")
    assert await anext(lines) == b"two\n"
    assert await anext(lines) == b"three\n"


async def test_a_log_that_is_written_is_put_aside_and_followed_from_its_new_beginning(
    tmp_path: Path,
) -> None:
    path, aside = tmp_path / "log", tmp_path / "log.1"
    with path.open("ab", buffering=0) as log:
        log.write(b"x" * ROTATE_ABOVE)
        rotate_written(path)
        assert not aside.exists()
        log.write(b"\none\n")
        assert start_of(path, ROTATE_ABOVE) == ROTATE_ABOVE
        lines = read(path, 1, follow=True)
        assert await anext(lines) == b"one\n"
        rotate_written(path)
        log.write(b"two\n")
        assert await anext(lines) == b"two\n"
    assert path.read_bytes() == b"two\n"
    assert (aside.stat().st_size, aside.stat().st_mode & 0o777) == (ROTATE_ABOVE + 5, 0o600)
    assert last_words(path, start_of(path, ROTATE_ABOVE)) == "two"
    assert start_of(tmp_path / "none", 7) == 7


def test_a_log_is_put_aside_only_where_there_is_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, aside = tmp_path / "log", tmp_path / "log.1"
    path.write_bytes(b"x" * (ROTATE_ABOVE + 1))
    aside.write_bytes(b"older")
    disk = os.statvfs(tmp_path)
    for blocks in (0, ROTATE_ABOVE // disk.f_frsize - 1):
        left = os.statvfs_result((*disk[:4], blocks, *disk[5:]))
        monkeypatch.setattr(os, "statvfs", lambda _path, left=left: left)
        with pytest.raises(OSError, match="No space left"):
            rotate_written(path)
        assert aside.read_bytes() == b"older"
    monkeypatch.undo()
    rotate_written(path)
    assert (path.stat().st_size, aside.stat().st_size) == (0, ROTATE_ABOVE + 1)


async def test_a_follower_waits_for_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = read(path, 5, follow=True)
    waiting = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)
    path.write_bytes(b"first\n")
    assert await waiting == b"first\n"


async def test_a_line_without_end_is_given_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 3_000_000)
    pieces = await all_of(read(path, 1))
    assert sum(map(len, pieces)) == 3_000_000
    assert max(map(len, pieces)) < 1_200_000


def test_only_a_large_log_is_put_aside_and_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    rotate(path)
    path.write_bytes(b"small")
    rotate(path)
    assert path.read_bytes() == b"small"
    for _ in range(2):
        with path.open("wb") as log:
            log.truncate(ROTATE_ABOVE + 1)
        rotate(path)
    assert [left.name for left in tmp_path.iterdir()] == ["log.1"]


def test_last_words_are_this_run_s_bounded_and_harmless(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"an earlier run\n" + b"\x1b[2Jhello\xff\n\n" + "\u202eworld\n".encode())
    assert last_words(path, 15) == " [2Jhello\ufffd |  world"
    assert last_words(path, 10_000) == ""
    assert last_words(tmp_path / "none", 0) == ""
    path.write_text("x" * 1000 + "\n1\n2\n3\n4\n5\n")
    assert last_words(path, 0) == "1 | 2 | 3 | 4 | 5"
    path.write_text("x" * 1000)
    assert last_words(path, 0) == "x" * 600


def test_last_words_have_of_agentd_s_records_what_they_say_to_people(tmp_path: Path) -> None:
    path = tmp_path / "log"
    inner = {"exc_type": "TypeError", "exc_value": "no set", "exceptions": []}
    outer = {"exc_type": "ExceptionGroup", "exc_value": "errors", "exceptions": [[inner]]}
    told: list[object] = [
        {"event": "request", "level": "info", "ms": 2},
        {"event": "disk_full", "level": "error", "reason": "There is no room."},
        {"event": "crashed", "level": "critical", "exception": [outer]},
        {"event": "request", "level": "info", "ms": 3},
        {"event": "execd_ended", "level": "error", "code": 1, "said": "no shell:\n/bin/sh"},
        {"no": "record"},
    ]
    path.write_text("\n".join(json.dumps(one) for one in told) + "\nKilled\n")
    assert last_words(path, 0) == (
        "disk_full: There is no room. | crashed: TypeError: no set"
        ' | execd_ended: no shell: /bin/sh | {"no": "record"} | Killed'
    )
