"""What is done with journals outside of a turn: repair after a crash, and making room."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from greylag import sse
from greylag.agentd.journal.journal import FRAME_END

SUFFIX = ".sse"

_BLOCK = 1024 * 1024


def cut_torn_end(path: Path) -> int:
    """Cut off a last frame that was not written whole; return how many frames remain.

    A journal that is not there counts as empty.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        frames, end = _whole_frames(fd)
        if end < os.fstat(fd).st_size:
            os.ftruncate(fd, end)
            os.fsync(fd)
    finally:
        os.close(fd)
    return frames


def events(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (type, content) of each event of a repaired journal, reading block by block.

    Raises:
        ValueError: a frame is not one that agentd wrote.
    """
    if not path.exists():
        return
    splitter = sse.FrameSplitter(limit=1 << 40)  # our own file: its size is the limit
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield from map(_event, splitter.feed(block))


def _event(frame: bytes) -> tuple[str, dict[str, Any]]:
    parsed = sse.parse(frame)
    if parsed is None:
        raise ValueError("a frame without data in a journal")
    value = json.loads(parsed.data)
    return value["type"], value["content"]


def remove_oldest(folder: Path, limit: int, keep: frozenset[str]) -> list[str]:
    """Delete the oldest journals until all together hold at most `limit` bytes.

    Args:
        folder: where the journals are.
        limit: bytes.
        keep: ids of turns that still run; theirs stay.

    Returns:
        the ids of the turns whose journals went.
    """
    files = [(path.stat(), path) for path in folder.glob(f"*{SUFFIX}")]
    total = sum(stat.st_size for stat, _ in files)
    removed: list[str] = []
    for stat, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
        if total <= limit:
            break
        if path.stem in keep:
            continue
        path.unlink(missing_ok=True)
        total -= stat.st_size
        removed.append(path.stem)
    return removed


def _whole_frames(fd: int) -> tuple[int, int]:
    """Return (number of whole frames, offset of the end of the last one)."""
    frames = end = offset = 0
    carry = b""
    while block := os.pread(fd, _BLOCK, offset):
        window = carry + block
        start = offset - len(carry)
        at = window.rfind(FRAME_END)
        if at >= 0:
            frames += window.count(FRAME_END)
            end = start + at + len(FRAME_END)
        offset += len(block)
        carry = b"" if window.endswith(FRAME_END) else window[-1:]
    return frames, end
