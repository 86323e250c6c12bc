"""Time: the machine's clock behind the Clock port, and moments as JSON has them."""

import asyncio
import time
from datetime import UTC, datetime

LAST_MOMENT = 253_402_300_799.0
"""Of the year 9999, in Unix seconds: the last that RFC 3339 can tell."""
_NO_TIME = "must be a time with its zone, such as 2026-11-26T12:00:00Z"


class SystemClock:
    """Real time."""

    def now(self) -> datetime:
        """Return the time, aware, in UTC, cut to milliseconds."""
        moment = datetime.now(UTC)
        return moment.replace(microsecond=moment.microsecond // 1000 * 1000)

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        await asyncio.sleep(seconds)


def rfc3339(moment: datetime | float) -> str:
    """Return a moment (aware, or Unix seconds) as RFC 3339 has it: in UTC, milliseconds, ``Z``."""
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, UTC)
    return f"{moment.astimezone(UTC).isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"


def parse_rfc3339(text: str) -> datetime:
    """Return the moment that an RFC 3339 text tells, in UTC.

    Raises:
        ValueError: it is none, such as a time without its zone.
    """
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(_NO_TIME) from error
    raise ValueError(_NO_TIME)


def maybe_rfc3339(moment: datetime | float | None) -> str | None:
    """Return ``rfc3339(moment)``, or ``None`` for none."""
    return None if moment is None else rfc3339(moment)
