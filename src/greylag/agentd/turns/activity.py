"""What agentd is busy with, as `agent/status` shows it."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

EndpointType = Literal["agent-streaming", "sync", "provider-streaming"]
ActivityStatus = Literal["processing", "completed", "error"]

_KEPT_SECONDS = 300.0
_MOST_ENTRIES = 200


@dataclass(slots=True)
class ActivityEntry:
    """One turn of late. Times are Unix seconds."""

    session_id: str
    endpoint_type: EndpointType
    status: ActivityStatus
    start_time: float
    last_update: float


class Activity:
    """Counts turns since start, and remembers those of the last five minutes."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._started_at = now()
        self._entries: deque[ActivityEntry] = deque(maxlen=_MOST_ENTRIES)
        self.total_processed = 0

    @property
    def uptime_seconds(self) -> int:
        """Whole seconds since start."""
        return max(0, int(self._now() - self._started_at))

    def begin(self, session_id: str, endpoint_type: EndpointType) -> ActivityEntry:
        """Note a new turn; hand the entry back to `end`."""
        now = self._now()
        entry = ActivityEntry(session_id, endpoint_type, "processing", now, now)
        self._entries.append(entry)
        return entry

    def end(self, entry: ActivityEntry, *, failed: bool) -> None:
        """Note that a turn ended."""
        entry.status = "error" if failed else "completed"
        entry.last_update = self._now()
        self.total_processed += 1

    def recent(self) -> list[ActivityEntry]:
        """Return the turns that run, and those that ended less than five minutes ago."""
        oldest = self._now() - _KEPT_SECONDS
        return [e for e in self._entries if e.status == "processing" or e.last_update >= oldest]
