"""Trying again: when another writer was faster, and where the driver itself does not."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError

from greylag.domain.errors import StoreUnavailableError

T = TypeVar("T")

_TIMES = 5
_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.1


class Attempts:
    """The attempts at one write, over after about ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + seconds
        self._pause = _FIRST_PAUSE_SECONDS

    async def pause(self) -> None:
        """Wait a little longer than the last time: another writer's change may be visible only
        when a majority has it. Raises ``StoreUnavailableError`` when the time is over.
        """
        if self._loop.time() > self._end:
            raise StoreUnavailableError("Others changed the same project again and again.")
        await asyncio.sleep(random.uniform(0.5, 1) * self._pause)  # noqa: S311 - spreads writers, guards nothing
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)


async def repeated(work: Callable[[], Awaitable[T]]) -> T:
    """Return what ``work`` returns: a command to many documents that may be done twice.

    The driver tries other commands again when a connection or a primary is lost, but not these.
    """
    for _ in range(_TIMES - 1):
        try:
            return await work()
        except ServerSelectionTimeoutError:
            raise
        except AutoReconnect:
            await asyncio.sleep(_FIRST_PAUSE_SECONDS)
    return await work()
