"""A clock that only a test moves."""

from datetime import UTC, datetime, timedelta


class FakeClock:
    """Time that stands still until ``advance``; a sleep passes at once and moves it."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        self._start = self._now

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return (self._now - self._start).total_seconds()

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def set_back(self, seconds: float) -> None:
        """Have been ahead by so much until now."""
        self._now -= timedelta(seconds=seconds)
        self._start -= timedelta(seconds=seconds)

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
