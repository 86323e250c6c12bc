"""The folder of journals: a file for each turn, and a limit for all of them."""

import asyncio
from pathlib import Path

from greylag.agentd.journal import recovery as journal_recovery
from greylag.agentd.journal.journal import TurnJournal
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
        self.path(turn_id).unlink(missing_ok=True)

    async def make_room(self, keep: frozenset[str]) -> int:
        """Remove the oldest journals past the limit, but none of the turns in `keep`.

        Returns:
            how many were removed.
        """
        removed = await asyncio.to_thread(
            journal_recovery.remove_oldest, self._folder, self._total_limit, keep
        )
        return len(removed)
