"""Reading a log that grows: its last lines, then what comes, in constant memory."""

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from greylag.cluster.shared import end_of_log

ROTATE_ABOVE = 10 * 1024 * 1024
"""A log larger than this, in bytes, is put aside (one older one is kept)."""

_LINES = 5
_CHARACTERS = 600
_BLOCK = 64 * 1024
_LONGEST_LINE = 1024 * 1024
_POLL_SECONDS = 0.2


def rotate(path: Path) -> None:
    """Put a log that is too large aside, over the one put aside before."""
    with suppress(FileNotFoundError):
        if path.stat().st_size > ROTATE_ABOVE:
            path.replace(_aside(path))


def rotate_written(path: Path) -> None:
    """Do the same while somebody appends to the log, who goes on at its beginning.

    A line that is written in just this moment may be lost.

    Raises:
        OSError: the disk has no room for it, say; the log and the older one are as they were.
    """
    with (
        suppress(FileNotFoundError),
        os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b") as log,
    ):
        size = os.fstat(log.fileno()).st_size
        if size > ROTATE_ABOVE:
            _require_room(path, size)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with os.fdopen(os.open(_aside(path), flags, 0o600), "wb") as aside:
                shutil.copyfileobj(log, aside)
            log.truncate(0)


def _require_room(path: Path, size: int) -> None:
    """Fail where a copy would eat what a full disk has left, over and over."""
    disk, older = os.statvfs(path.parent), _aside(path)
    there = disk.f_bavail * disk.f_frsize + (older.stat().st_size if older.exists() else 0)
    if there < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def start_of(path: Path, start: int) -> int:
    """Return where a run's lines begin in a log, which began at byte ``start``: at the log's
    beginning, if it was put aside since.
    """
    with suppress(FileNotFoundError):
        return start if path.stat().st_size >= start else 0
    return start


def last_words(path: Path, start: int) -> str:
    """Return the last 5 lines that begin at byte ``start`` or later, as one line of at most 600
    characters, free of control characters; empty when there are none.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - _BLOCK))
            content = file.read(_BLOCK)
    except FileNotFoundError:
        return ""
    return end_of_log(content, _LINES, _CHARACTERS)


async def read_lines(
    path: Path, *, follow: bool, tail: int, closing: Callable[[], bool]
) -> AsyncGenerator[bytes, None]:
    """Yield the last ``tail`` lines of ``path``, each with its line end.

    With ``follow`` go on with what comes, through rotations, until ``closing()``; then a line is
    given when it is whole. A line of more than 1 MiB is given in pieces.
    """
    file = await asyncio.to_thread(_open_at_tail, path, tail)
    rest = b""
    try:
        while True:
            block = await asyncio.to_thread(file.read, _BLOCK) if file else b""
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                yield line + b"\n"
            if len(rest) > _LONGEST_LINE or (rest and not block and not follow):
                yield rest
                rest = b""
            if block:
                continue
            if not follow or closing():
                return
            await asyncio.sleep(_POLL_SECONDS)
            file = await asyncio.to_thread(_reopen_if_rotated, path, file)
    finally:
        if file:
            file.close()


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _open_at_tail(path: Path, lines: int) -> BinaryIO | None:
    """Open ``path`` where its last ``lines`` lines begin; ``None`` when there is no such file."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    position = file.seek(0, os.SEEK_END)
    # A line end that closes the file does not begin a line after it.
    end = max(0, position - 1)
    while lines > 0 and position > 0:
        position = max(0, end - _BLOCK)
        file.seek(position)
        before, *found = file.read(end - position).rsplit(b"\n", lines)
        if len(found) == lines:
            position += len(before) + 1
            break
        lines -= len(found)
        end = position
    file.seek(position)
    return file


def _reopen_if_rotated(path: Path, file: BinaryIO | None) -> BinaryIO | None:
    """Return ``file``, or the new file when it was put aside and has been read to its end."""
    try:
        now = path.stat()
        if file is not None:
            opened = os.fstat(file.fileno())
            read_out = file.tell() >= opened.st_size
            if (opened.st_dev, opened.st_ino) == (now.st_dev, now.st_ino) or not read_out:
                if file.tell() > opened.st_size:  # put aside while it is written
                    file.seek(0)
                return file
            file.close()
        return path.open("rb")
    except FileNotFoundError:
        return file
