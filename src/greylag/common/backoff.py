"""How long to wait before the next try: longer each time, and never all at once."""

import random
from collections.abc import Callable

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
