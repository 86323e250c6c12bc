"""Supervising environments' processes while this program runs: their end, their stopping,
and what is left to be done after them.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog

from greylag.cluster.local.environment import LocalEnvironment
from greylag.cluster.local.processes import ProcessId, wait_end
from greylag.cluster.shared import ChangeFeed
from greylag.domain.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

_log = structlog.get_logger(__name__)
_STOP_POLL_SECONDS = 0.05
_THREADS = 8
_T = TypeVar("_T")


class Threads:
    """Where what blocks is done. What has begun there is never cut short by cancellation."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="local-cluster")

    async def run(self, work: Callable[[], _T]) -> _T:
        """Return what ``work`` returns; an ``OSError`` becomes a ``ClusterError``."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except OSError as error:
            raise ClusterError(f"This machine refused a step: {error}") from error

    async def close(self) -> None:
        """Return when all that has begun is done."""
        await asyncio.to_thread(self._pool.shutdown)


class Supervisor:
    """Watches processes and brings stops to their end, in tasks that ``close`` cancels.

    Nothing is lost with them: the next supervisor, of this program or another, takes up what it
    finds, as all that matters is in the environments' records.

    Args:
        threads: where environments are worked on.
        unasked: is told of each environment that ended unasked.
        grace: seconds between a stop's SIGTERM and its SIGKILL.
    """

    def __init__(self, threads: Threads, unasked: ChangeFeed, grace: float) -> None:
        self._threads = threads
        self._unasked = unasked
        self._grace = grace
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._watched: dict[Path, ProcessId] = {}
        self._stopping: dict[Path, frozenset[ProcessId]] = {}

    def watch(self, environment: LocalEnvironment, process: ProcessId) -> None:
        """See to the end of ``process``, once: reap it, kill what it leaves, tell of it."""
        if self._watched.get(environment.path) == process:
            return
        self._watched[environment.path] = process

        async def see_to_end() -> None:
            await wait_end(process)
            if await self._threads.run(lambda: environment.note_end(process)):
                self._unasked.tell(environment.ref)
                await self._threads.run(lambda: environment.clear_after(process))

        self._start(_watch_name(environment, process), see_to_end)

    async def end_noted(
        self, environment: LocalEnvironment, process: ProcessId, seconds: float
    ) -> None:
        """Return when the end of a watched ``process`` has been noted, or after ``seconds``."""
        if task := self._tasks.get(_watch_name(environment, process)):
            await asyncio.wait({task}, timeout=seconds)

    def see_to_stop(
        self, environment: LocalEnvironment, known: frozenset[ProcessId] = frozenset()
    ) -> None:
        """Bring a stop to its end that has begun, here or elsewhere. Again: nothing.

        Args:
            environment: what is being stopped.
            known: processes that it had as its stop began.
        """
        path = environment.path
        self._stopping[path] = self._stopping.get(path, frozenset()) | known

        async def stop() -> None:
            seen: frozenset[ProcessId] | None = frozenset()
            while seen is not None:
                await asyncio.sleep(_STOP_POLL_SECONDS)
                known = self._stopping[path] = self._stopping[path] | seen
                step = partial(environment.go_on_stopping, self._grace, known)
                seen = await self._threads.run(step)
            del self._stopping[path]

        self._start(f"stop {path}", stop)

    def repeat(self, name: str, work: Callable[[], Coroutine[None, None, bool]]) -> None:
        """Do a piece of work again and again while it tells that there is more; once by a name."""

        async def go_on() -> None:
            while await work():
                _log.debug("work_goes_on", task=name)

        self._start(name, go_on)

    def forget(self, environment: LocalEnvironment) -> None:
        """Drop what is kept of an environment that was deleted."""
        self._watched.pop(environment.path, None)

    async def close(self) -> None:
        """Cancel the tasks and return when they have ended; the processes go on."""
        for task in (tasks := list(self._tasks.values())):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _start(self, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run ``work`` as a task unless the one of this name runs still."""
        if name not in self._tasks:
            task = asyncio.create_task(work(), name=name)
            self._tasks[name] = task
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task.get_name()]
        if not task.cancelled() and (error := task.exception()):
            _log.error("environment_task_failed", task=task.get_name(), exc_info=error)


def _watch_name(environment: LocalEnvironment, process: ProcessId) -> str:
    return f"watch {environment.path} {process.pid} {process.birth}"
