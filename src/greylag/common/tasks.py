"""Tasks that belong to one owner: named, one of each name, their failure logged, ended with it."""

import asyncio
from collections.abc import Callable, Coroutine

import structlog

_log = structlog.get_logger(__name__)


class OwnedTasks:
    """The running tasks of an object that has a ``close``."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run ``work`` as a task unless the one of this name runs still."""
        if name not in self._tasks:
            task = asyncio.create_task(work(), name=name)
            self._tasks[name] = task
            task.add_done_callback(self._ended)

    async def wait(self, name: str, seconds: float) -> None:
        """Return when the task of this name has ended, at the latest after ``seconds``."""
        if task := self._tasks.get(name):
            await asyncio.wait({task}, timeout=seconds)

    async def close(self) -> None:
        """Cancel all and return when they have ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task.get_name()]
        if not task.cancelled() and (error := task.exception()):
            _log.error("environment_task_failed", task=task.get_name(), exc_info=error)
