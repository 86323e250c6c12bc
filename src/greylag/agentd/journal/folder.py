"""The folder of journals: a file for each turn, a limit for all of them, and repair after a crash.

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

from greylag.agentd.journal.journal import JournalTail, TurnJournal, event_id, frames, write_all
from greylag.common import sse

SUFFIX = ".sse"
RESERVE_BYTES = 1024 * 1024
_MARGIN = 16  # such a part of the limit is made free at once, so that few turns look for room

_log = structlog.get_logger(__name__)


class Journals:
    """Makes, opens and removes journals.

    Args:
        folder: where they are (must exist).
        turn_limit: most bytes of one journal.
        total_limit: most bytes of all of them; the oldest ended turns' go first.

    Attributes:
        reserve: the room that is kept for the ends of turns.
    """

    def __init__(self, folder: Path, turn_limit: int, total_limit: int) -> None:
        self._folder = folder
        self._turn_limit = turn_limit
        self._total_limit = total_limit
        self._room = -1  # bytes that may be written before the folder is looked through (again)
        self.reserve = Reserve(folder / "reserve")

    def path(self, turn_id: str) -> Path:
        """Return where a turn's journal is, or would be."""
        return self._folder / f"{turn_id}{SUFFIX}"

    def write(self, turn_id: str, next_number: int = 0) -> TurnJournal:
        """Open a turn's journal for its one writer; ``next_number`` is its next event's.

        Raises:
            OSError: the file cannot be made.
        """
        return TurnJournal(self.path(turn_id), turn_id, self._turn_limit, next_number)

    def read(self, turn_id: str, journal: TurnJournal | None) -> JournalTail:
        """Open a turn's journal for one reader; ``journal`` is its writer while the turn runs.

        Raises:
            JournalGoneError: it is no longer kept.
        """
        return JournalTail(self.path(turn_id), journal)

    def remove(self, turn_id: str) -> None:
        """Remove a turn's journal, if it is there; the log tells of one that cannot be removed."""
        try:
            self.path(turn_id).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("journal_not_removed", turn_id=turn_id, error=error.strerror)

    async def hold_reserve(self) -> None:
        """Keep some room on the disk for ending turns, unless it is kept already.

        Raises:
            OSError: there is not enough.
        """
        if not self.reserve.held:
            await asyncio.to_thread(self.reserve.hold)

    async def make_room(self, running: Callable[[str], bool], written: int = 0) -> list[str]:
        """Remove the oldest journals past the limit, but none of a turn that is ``running``.

        There may be very many: the folder is looked through only where there may be no room.

        Args:
            running: whether a turn runs.
            written: bytes of the journals that were written since the last call.

        Returns:
            the ids of the turns whose journals went.
        """
        self._room -= written
        if self._room >= 0:
            return []
        kept = 0

        def past_limit() -> Iterator[str]:
            nonlocal kept
            journals = sorted(self._all(), key=lambda journal: journal[0].st_mtime_ns)
            kept = sum(about.st_size for about, _ in journals)
            if kept <= self._total_limit:
                return
            enough = self._total_limit - self._total_limit // _MARGIN
            for about, turn_id in journals:
                if kept > enough and not running(turn_id):
                    kept -= about.st_size
                    yield turn_id

        removed = await asyncio.to_thread(self._remove_all, past_limit)
        self._room = self._total_limit - kept
        return removed

    async def remove_unknown(self, known: AbstractSet[str]) -> list[str]:
        """Remove the journals of turns that are not ``known``: a crash cut their removal short.

        Returns:
            the ids of the turns whose journals went.
        """
        return await asyncio.to_thread(
            self._remove_all, lambda: (name for _, name in self._all() if name not in known)
        )

    def _remove_all(self, find: Callable[[], Iterator[str]]) -> list[str]:
        turn_ids = list(find())
        for turn_id in turn_ids:
            self.remove(turn_id)
        if turn_ids:
            _log.info("journals_removed", count=len(turn_ids))
        return turn_ids

    def _all(self) -> list[tuple[os.stat_result, str]]:
        """Return the journals that are there, with their turns' ids."""
        found: list[tuple[os.stat_result, str]] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed with its session while we look
                    about = entry.stat(follow_symlinks=False)
                    if entry.name.endswith(SUFFIX) and stat.S_ISREG(about.st_mode):
                        found.append((about, entry.name.removesuffix(SUFFIX)))
        return found


class Reserve:
    """A file that takes up room until the room is needed. Its calls block for milliseconds.

    A full disk would otherwise leave no room to say, and to record, that it is full.

    Args:
        path: the file; one that a former agentd left is taken over.

    Attributes:
        held: whether the room is there, as far as is known.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.held = False

    def hold(self) -> None:
        """Take up the room.

        Raises:
            OSError: there is too little of it; nothing is taken up.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self._path, flags, 0o600)
            try:
                if os.fstat(fd).st_size < RESERVE_BYTES:
                    # Not zeros, which some file systems take no room for.
                    write_all(fd, os.urandom(RESERVE_BYTES))
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError:
            self.release()
            raise
        self.held = True

    def release(self) -> None:
        """Give the room up."""
        self.held = False
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            _log.error("reserve_not_released", error=error.strerror)


def repair(path: Path, turn_id: str, take: Callable[[str, dict[str, Any]], None]) -> int:
    """Hand the type and content of each whole event to ``take``, and cut off what comes after them.

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
        for frame in frames(fd):
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
