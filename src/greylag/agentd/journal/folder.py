"""The folder of journals: a file for each turn, and a limit for all of them."""

import asyncio
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path

from greylag.agentd.journal import recovery as journal_recovery
from greylag.agentd.journal.journal import TurnJournal
from greylag.agentd.journal.reserve import Reserve
from greylag.agentd.journal.tail import JournalTail


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
        return self._folder / f"{turn_id}{journal_recovery.SUFFIX}"

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
        journal_recovery.remove(self.path(turn_id))

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
        removed = await asyncio.to_thread(
            journal_recovery.remove_oldest, self._folder, self._total_limit, running
        )
        return len(removed)

    async def remove_unknown(self, known: AbstractSet[str]) -> int:
        """Remove the journals of turns that are not `known`: a crash cut their removal short.

        Returns:
            how many were removed.
        """
        return await asyncio.to_thread(journal_recovery.remove_unknown, self._folder, known)
