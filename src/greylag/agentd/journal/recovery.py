"""What is done with journals outside of a turn: repair after a crash, and making room.

The agent's tools can write here too, so nothing is expected of what lies in the folder.
"""

import json
import os
import stat
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from greylag import sse
from greylag.agentd.journal.journal import event_id

SUFFIX = ".sse"

_BLOCK = 1024 * 1024
_log = structlog.get_logger()


def repair(path: Path, turn_id: str, take: Callable[[str, dict[str, Any]], None]) -> int:
    """Hand the type and content of each whole event to `take`, and cut off what comes after them.

    A crash may leave a part of a frame, a loss of power worse. A journal that is not there counts
    as empty.

    Returns:
        how many events remain.

    Raises:
        OSError: the file cannot be read or cut.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return 0
    count = end = 0
    try:
        for frame in _frames(fd):
            if not _taken(frame, event_id(turn_id, count), take):
                break
            count += 1
            end += len(frame)
        if end < os.fstat(fd).st_size:
            os.ftruncate(fd, end)
            os.fsync(fd)
    finally:
        os.close(fd)
    return count


def remove_oldest(folder: Path, limit: int, running: Callable[[str], bool]) -> list[str]:
    """Delete the oldest journals until all together hold at most `limit` bytes.

    Args:
        folder: where the journals are.
        limit: bytes.
        running: tells of a turn's id whether it still runs; its journal stays then.

    Returns:
        the ids of the turns whose journals went.
    """
    files = _journals(folder)
    total = sum(about.st_size for about, _ in files)
    removed: list[str] = []
    for about, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
        if total <= limit:
            break
        if running(path.stem):
            continue
        remove(path)
        total -= about.st_size
        removed.append(path.stem)
    return removed


def remove_unknown(folder: Path, known: AbstractSet[str]) -> int:
    """Delete the journals of turns that are not `known`, and return how many."""
    unknown = [path for _, path in _journals(folder) if path.stem not in known]
    for path in unknown:
        remove(path)
    return len(unknown)


def remove(path: Path) -> None:
    """Delete a journal, if it is there; one that cannot be deleted stays, and the log says so."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("journal_not_removed", turn_id=path.stem, reason=error.strerror)


def _journals(folder: Path) -> list[tuple[os.stat_result, Path]]:
    """Return the journals that are there."""
    found: list[tuple[os.stat_result, Path]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # removed with its session while we look
                about = entry.stat(follow_symlinks=False)
                if entry.name.endswith(SUFFIX) and stat.S_ISREG(about.st_mode):
                    found.append((about, Path(entry.path)))
    return found


def _frames(fd: int) -> Iterator[bytes]:
    splitter = sse.FrameSplitter(limit=1 << 40)  # our own file: its size is the limit
    offset = 0
    while block := os.pread(fd, _BLOCK, offset):
        offset += len(block)
        yield from splitter.feed(block)


def _taken(frame: bytes, expected_id: str, take: Callable[[str, dict[str, Any]], None]) -> bool:
    """Hand over the event of a frame; tell whether it is the one that is expected here."""
    parsed = sse.parse(frame)
    if parsed is None or parsed.id != expected_id:
        return False
    try:
        event = json.loads(parsed.data)
        take(event["type"], event["content"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return True
