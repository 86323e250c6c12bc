"""How long a dropped connection is worth another try."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from greylag.cli.errors import CliError, RefusedError, ServerUnreachableError

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 5.0
GIVE_UP_AFTER = 60.0
# A server may end a stream that has lasted long (GREYLAG_STREAM_SECONDS), events or not; one that
# ends every stream at once is out of order.
STEADY = 0.2
# A busy or restarting server; 429 too, while the dropped stream's place is not free yet.
PASSING = {429, 502, 503, 504}


class Patience:
    """Pauses between tries that grow, until nothing has worked for ``limit`` seconds.

    ``pause`` and ``clock`` (seconds that never go back) are for tests.
    """

    def __init__(
        self,
        limit: float = GIVE_UP_AFTER,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._pause = pause
        self._clock = clock
        self._opened: float | None = None
        self.worked()

    def opened(self) -> None:
        """A stream was opened: if it lasts, it has worked, although nothing may have come."""
        self._opened = self._clock()

    def worked(self) -> None:
        """Something came: begin anew with the next failure."""
        self._since: float | None = None
        self._next = FIRST_PAUSE

    async def pause_after(self, error: CliError) -> bool:
        """Wait a little; False at once when it will not pass or has lasted too long."""
        now = self._clock()
        if self._opened is not None and now - self._opened >= STEADY:
            self.worked()
        self._opened = None
        self._since = now if self._since is None else self._since
        if not may_pass(error) or now - self._since > self._limit:
            return False
        await self._pause(self._next)
        self._next = min(self._next * 2, LONGEST_PAUSE)
        return True


def may_pass(error: CliError) -> bool:
    """Tell whether the same request may work a little later."""
    if isinstance(error, RefusedError):
        return error.problem.status in PASSING
    return isinstance(error, ServerUnreachableError)
