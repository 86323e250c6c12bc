"""Attending to environments' processes while this program runs: their end, and their stopping."""

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from greylag.cluster.local.environment import LocalEnvironment
from greylag.cluster.local.processes import ProcessId, Threads, wait_end
from greylag.cluster.news import News
from greylag.common.tasks import OwnedTasks
from greylag.domain.project import ProjectRef

if TYPE_CHECKING:
    from pathlib import Path

_STOP_POLL_SECONDS = 0.05


class Attendant:
    """Watches processes and brings stops to their end, in tasks that ``close`` cancels.

    Nothing is lost with them: the next attendant, of this program or another, takes up what it
    finds, as all that matters is in the environments' records.
    """

    def __init__(self, threads: Threads, unasked: News, grace: float) -> None:
        self._threads = threads
        self._unasked = unasked
        self._grace = grace
        self._tasks = OwnedTasks()
        self._watched: dict[Path, ProcessId] = {}
        self._stopping: dict[Path, frozenset[ProcessId]] = {}

    def watch(self, local: LocalEnvironment, ref: ProjectRef, process: ProcessId) -> None:
        """See to the end of ``process``, once: reap it, kill what it leaves, tell of it."""
        if self._watched.get(local.folder.path) == process:
            return
        self._watched[local.folder.path] = process

        async def see_to_end() -> None:
            await wait_end(process)
            if await self._threads.run(lambda: local.note_end(process)):
                self._unasked.tell(ref)
                await self._threads.run(lambda: local.clear_after(process))

        self._tasks.start(_watch_name(local, process), see_to_end)

    async def end_noted(self, local: LocalEnvironment, process: ProcessId, seconds: float) -> None:
        """Return when the end of a watched ``process`` has been noted, or after ``seconds``."""
        await self._tasks.wait(_watch_name(local, process), seconds)

    async def begin_stop(self, local: LocalEnvironment) -> None:
        """Hand over the wish that the environment stops, and see to it."""
        known = await self._threads.run(local.begin_stop)
        if known is not None:
            self._see_to_stop(local, known)

    def take_up_stop(self, local: LocalEnvironment) -> None:
        """Bring a stop to its end that has begun elsewhere and may have been left; again: nothing.

        It does no harm when it has not been left.
        """
        self._see_to_stop(local, frozenset())

    def forget(self, local: LocalEnvironment) -> None:
        """Drop what is kept of an environment that was deleted."""
        self._watched.pop(local.folder.path, None)

    async def close(self) -> None:
        """Let go; the processes go on."""
        await self._tasks.close()

    def _see_to_stop(self, local: LocalEnvironment, known: frozenset[ProcessId]) -> None:
        path = local.folder.path
        self._stopping[path] = self._stopping.get(path, frozenset()) | known

        async def stop() -> None:
            seen: frozenset[ProcessId] | None = frozenset()
            while seen is not None:
                await asyncio.sleep(_STOP_POLL_SECONDS)
                known = self._stopping[path] = self._stopping[path] | seen
                seen = await self._threads.run(partial(local.go_on_stopping, self._grace, known))
            del self._stopping[path]

        self._tasks.start(f"stop {path}", stop)


def _watch_name(local: LocalEnvironment, process: ProcessId) -> str:
    return f"watch {local.folder.path} {process.pid} {process.birth}"
