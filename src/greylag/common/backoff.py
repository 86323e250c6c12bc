"""How long to wait before the next try: longer each time, and never all at once."""

import asyncio
import random
from collections.abc import Awaitable, Callable

_MOST_DOUBLINGS = 60


def backoff(
    failed: int,
    first: float,
    longest: float,
    spread: Callable[[float, float], float] = random.uniform,
) -> float:
    """Return the seconds to wait after ``failed`` failures in a row.

    Doubled with each, at most ``longest``, then between half and all of it at random, so that many
    that failed together do not come again together.

    Args:
        failed: how many tries have failed, from 0.
        first: the most to wait after none.
        longest: the most to wait ever.
        spread: draws a number between two; given by tests and seeded runs.
    """
    most = min(longest, first * 2.0 ** min(failed, _MOST_DOUBLINGS))
    return spread(most / 2, most)


class Pauses:
    """The pauses of one who tries again: longer each time, until something has worked.

    Args:
        first: the most seconds to wait after the first failure.
        longest: the most to wait ever.
        sleep: waits so many seconds.
        spread: draws a number between two.
    """

    def __init__(
        self,
        first: float,
        longest: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.failed = 0
        self._first = first
        self._longest = longest
        self._sleep = sleep
        self._spread = spread

    def worked(self) -> None:
        """Begin anew with the next failure."""
        self.failed = 0

    async def pause(self) -> None:
        """Wait after a failure; ``failed`` counts it."""
        failed, self.failed = self.failed, self.failed + 1
        await self._sleep(backoff(failed, self._first, self._longest, self._spread))
