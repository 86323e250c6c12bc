"""What turns have run of late, and how those who wait for news of them hear of a change."""

import asyncio
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from greylag.agentd.records import TurnRecord

EndpointType = Literal["agent-streaming", "sync", "provider-streaming"]
ActivityStatus = Literal["processing", "completed", "error"]

_KEPT_SECONDS = 300.0
_MOST_ENTRIES = 200  # of turns that have ended, beside those that run


@dataclass(slots=True)
class ActivityEntry:
    """One turn of late. Times are Unix seconds."""

    turn: TurnRecord
    endpoint_type: EndpointType
    status: ActivityStatus
    start_time: float
    last_update: float


class TurnActivity:
    """Counts turns since start, and remembers those of the last five minutes. Who waits for news
    of them, or of the sessions, names the revision that they know.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._started_at = now()
        self._entries: list[ActivityEntry] = []
        self._name = uuid.uuid4().hex[:8]
        self._changes = 0
        self._news = asyncio.Event()
        self.total_processed = 0
        self.last_at: float | None = None

    @property
    def revision(self) -> str:
        """What changes with each change, and with each start."""
        return f"{self._name}.{self._changes}"

    def touch(self) -> None:
        """Note that something has changed."""
        self._changes += 1
        self._news.set()
        self._news = asyncio.Event()

    async def changed(self, known: str | None, seconds: float) -> None:
        """Return when the revision is not the one that is known, or after so many seconds."""
        if known != self.revision:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    @property
    def uptime_seconds(self) -> int:
        """Whole seconds since start."""
        return max(0, int(self._now() - self._started_at))

    def begin(self, turn: TurnRecord, endpoint_type: EndpointType) -> ActivityEntry:
        """Note a new turn; hand the entry back to ``end``."""
        self.last_at = now = self._now()
        # Not its words: they may be long.
        entry = ActivityEntry(replace(turn, message=""), endpoint_type, "processing", now, now)
        self._entries.append(entry)
        self._forget_oldest()
        self.touch()
        return entry

    def end(self, entry: ActivityEntry, *, failed: bool) -> None:
        """Note that a turn ended."""
        entry.status = "error" if failed else "completed"
        entry.last_update = self.last_at = self._now()
        self.total_processed += 1
        self.touch()

    def _forget_oldest(self) -> None:
        """Forget the oldest that have ended, where there are too many; none that runs."""
        ended = [entry for entry in self._entries if entry.status != "processing"]
        for entry in ended[:-_MOST_ENTRIES]:
            self._entries.remove(entry)

    def recent(self) -> list[ActivityEntry]:
        """Return the turns that run, and those that ended less than five minutes ago."""
        oldest = self._now() - _KEPT_SECONDS
        return [e for e in self._entries if e.status == "processing" or e.last_update >= oldest]
