"""What is done with journals outside of a turn: repair after a crash, and making room.

The agent's tools can write here too, so nothing is expected of what lies in the folder.
"""

import asyncio
import json
import os
import stat
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from greylag.agentd.journal.journal import Reserve, TurnJournal, event_id
from greylag.agentd.journal.tail import JournalTail
from greylag.common import sse

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


# The folder of journals: a file for each turn, and a limit for all of them.


class Journals:
    """Makes, opens and removes journals.

    Args:
        folder: where they are (must exist).
        turn_limit: most bytes of one journal.
        total_limit: most bytes of all of them; the oldest ended turns' go first.
    """

    def __init__(self, folder: Path, turn_limit: int, total_limit: int) -> None:
        self._folder = folder
        self._turn_limit = turn_limit
        self._total_limit = total_limit
        self._reserve = Reserve(folder / "reserve")

    def path(self, turn_id: str) -> Path:
        """Return where a turn's journal is, or would be."""
        return self._folder / f"{turn_id}{SUFFIX}"

    def write(self, turn_id: str, next_number: int = 0) -> TurnJournal:
        """Open a turn's journal for its one writer; `next_number` is its next event's.

        Raises:
            OSError: the file cannot be made.
        """
        return TurnJournal(self.path(turn_id), turn_id, self._turn_limit, next_number)

    def read(self, turn_id: str, journal: TurnJournal | None) -> JournalTail:
        """Open a turn's journal for one reader; `journal` is its writer while the turn runs.

        Raises:
            JournalGoneError: it is no longer kept.
        """
        return JournalTail(self.path(turn_id), journal)

    def remove(self, turn_id: str) -> None:
        """Remove a turn's journal, if it is there."""
        remove(self.path(turn_id))

    async def hold_reserve(self) -> None:
        """Keep some room on the disk for ending turns, unless it is kept already.

        Raises:
            OSError: there is not enough.
        """
        if not self._reserve.held:
            await asyncio.to_thread(self._reserve.hold)

    def release_reserve(self) -> None:
        """Give up the room that was kept, as the disk is full."""
        self._reserve.release()

    async def make_room(self, running: Callable[[str], bool]) -> int:
        """Remove the oldest journals past the limit, but none of a turn that is `running`.

        Returns:
            how many were removed.
        """
        removed = await asyncio.to_thread(remove_oldest, self._folder, self._total_limit, running)
        return len(removed)

    async def remove_unknown(self, known: AbstractSet[str]) -> int:
        """Remove the journals of turns that are not `known`: a crash cut their removal short.

        Returns:
            how many were removed.
        """
        return await asyncio.to_thread(remove_unknown, self._folder, known)
