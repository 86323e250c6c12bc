"""A keyed work loop: claims what is due and handles it, each key at most once at a time.

It knows no projects. The queue itself is the source's (for Greylag: the store's due times and
leases), so it survives any process and is shared by all workers.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

import structlog

from greylag.domain.errors import StoreUnavailableError
from greylag.ports import Clock

Item = TypeVar("Item")

WAITING_FACTOR = 16
OUTAGE_PAUSE = 2.0
_log = structlog.get_logger(__name__)


class Slot:
    """A place among those that work at once, which is given up for a wait."""

    def __init__(self, room: asyncio.Semaphore | None = None) -> None:
        self._room = room or asyncio.Semaphore()
        self._is_held = False

    async def take(self) -> None:
        """Return when there is room."""
        await self._room.acquire()
        self._is_held = True

    def leave(self) -> None:
        """Let another have it."""
        if self._is_held:
            self._is_held = False
            self._room.release()

    @asynccontextmanager
    async def given_up(self) -> AsyncIterator[None]:
        """Let another have it meanwhile; what raises in there goes on without one."""
        self.leave()
        yield
        await self.take()


class WorkSource(Protocol[Item]):
    """What a loop works on."""

    async def claim(self) -> Item | None:
        """Return the next item that is due and mark it as ours, ``None`` when there is none."""

    def key(self, item: Item) -> Hashable:
        """Return what must not be handled twice at once."""

    async def handle(self, item: Item, slot: Slot) -> None:
        """Work on the item until it can rest. What it raises is a fault and ends the loop.

        ``slot`` is held; while the item only waits it is to be given up.
        """

    async def news(self) -> None:
        """Return when a claim may succeed that did not before."""


class WorkLoop(Generic[Item]):
    """Runs ``work`` with at most ``concurrency`` items at once.

    Those that wait do not count, as what is slow must hold back nobody: up to ``WAITING_FACTOR``
    times as many are held. ``idle`` is set while nothing is due and nothing is being handled.
    """

    def __init__(self, work: WorkSource[Item], concurrency: int) -> None:
        self._work = work
        self._room = asyncio.Semaphore(concurrency)
        self._held = asyncio.Semaphore(concurrency * WAITING_FACTOR)
        self._running: dict[Hashable, asyncio.Task[None]] = {}
        self._nothing_due = False
        self.idle = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled; then every handler has been cancelled and has ended."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._nothing_due = not await self._start_next(tasks)
                if self._nothing_due:
                    self._note_idle()
                    await self._work.news()

    async def drain(self) -> int:
        """Handle all that is due, one after the other, and return how many (for tests: a step)."""
        count = 0
        while (item := await self._work.claim()) is not None:
            await self._work.handle(item, Slot())
            count += 1
        return count

    async def _start_next(self, tasks: asyncio.TaskGroup) -> bool:
        slot = Slot(self._room)
        await self._held.acquire()
        try:
            await slot.take()
            item = await self._work.claim()
        except BaseException:
            self._let_go(slot)
            raise
        if item is None:
            self._let_go(slot)
            return False
        self.idle.clear()
        key = self._work.key(item)
        before = self._running.get(key)
        task = tasks.create_task(self._handle(key, item, before, slot), name=f"handle {key}")
        self._running[key] = task
        return True

    def _let_go(self, slot: Slot) -> None:
        slot.leave()
        self._held.release()

    async def _handle(
        self, key: Hashable, item: Item, before: asyncio.Task[None] | None, slot: Slot
    ) -> None:
        try:
            if before is not None and not before.done():
                # Its claim ran out (this process slept too long) and was given to us again.
                before.cancel()
                await asyncio.wait([before])
            await self._work.handle(item, slot)
        finally:
            self._let_go(slot)
            if self._running.get(key) is asyncio.current_task():
                del self._running[key]
            self._note_idle()

    def _note_idle(self) -> None:
        if self._nothing_due and not self._running:
            self.idle.set()


@asynccontextmanager
async def outage_waited_out(clock: Clock) -> AsyncIterator[None]:
    """Go on after a pause where the store cannot be reached."""
    try:
        yield
    except StoreUnavailableError as error:
        _log.warning("store_unavailable", error=str(error))
        await clock.sleep(OUTAGE_PAUSE)
