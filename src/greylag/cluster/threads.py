"""Blocking work off the event loop, with the system's errors put into our words."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from greylag.domain.errors import ClusterError

_T = TypeVar("_T")
_COUNT = 8


class Threads:
    """Threads of the local cluster. What has begun in one is never cut short by cancellation."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_COUNT, thread_name_prefix="local-cluster")

    async def run(self, work: Callable[[], _T]) -> _T:
        """Return what ``work`` returns; an ``OSError`` becomes a ``ClusterError``."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except OSError as error:
            raise ClusterError(f"This machine refused a step: {error}") from error

    async def close(self) -> None:
        """Return when all that has begun is done."""
        await asyncio.to_thread(self._pool.shutdown)
