"""The keyed loop, over work that a test hands out."""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from greylag.reconcile.loop import WAITING_FACTOR, Slot, WorkLoop


@dataclass
class Handout:
    """Work whose items wait for ``gate``; an item is (key, claim number)."""

    due: deque[tuple[str, int]] = field(default_factory=deque)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    more: asyncio.Event = field(default_factory=asyncio.Event)
    running: list[tuple[str, int]] = field(default_factory=list)
    done: list[tuple[str, int]] = field(default_factory=list)
    most_at_once: int = 0

    def give(self, *items: tuple[str, int]) -> None:
        self.due.extend(items)
        self.more.set()

    async def claim(self) -> tuple[str, int] | None:
        return self.due.popleft() if self.due else None

    def key(self, item: tuple[str, int]) -> str:
        return item[0]

    async def news(self) -> None:
        self.more.clear()
        await self.more.wait()

    async def handle(self, item: tuple[str, int], slot: Slot) -> None:
        self.running.append(item)
        self.most_at_once = max(self.most_at_once, len(self.running))
        try:
            if item[0] == "broken":
                raise RuntimeError("a fault")
            if item[0].startswith("waiting"):
                async with slot.given_up():
                    await self.gate.wait()
            await self.gate.wait()
            self.done.append(item)
        finally:
            self.running.remove(item)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_more_than_the_concurrency_are_handled_at_once_and_all_are() -> None:
    work = Handout()
    work.give(*((str(n), 1) for n in range(10)))
    loop = WorkLoop(work, concurrency=3)
    task = asyncio.create_task(loop.run())
    await settle()
    assert len(work.running) == 3
    work.gate.set()
    await loop.idle.wait()
    assert len(work.done) == 10
    assert work.most_at_once == 3
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_those_that_wait_hold_back_nobody_up_to_a_bound() -> None:
    work = Handout()
    work.give(*((f"waiting {n}", 1) for n in range(WAITING_FACTOR - 1)), ("a", 1), ("b", 1))
    loop = WorkLoop(work, concurrency=1)
    task = asyncio.create_task(loop.run())
    for _ in range(WAITING_FACTOR):
        await settle()
    assert ("a", 1) in work.running, "it waits behind those that only wait"
    assert ("b", 1) not in work.running
    work.gate.set()
    await loop.idle.wait()
    assert len(work.done) == WAITING_FACTOR + 1
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_one_that_is_cancelled_while_it_waits_takes_no_place_with_it() -> None:
    work = Handout()
    work.give(("waiting", 1))
    loop = WorkLoop(work, concurrency=1)
    task = asyncio.create_task(loop.run())
    await settle()
    work.give(("waiting", 2), ("a", 1), ("b", 1))
    await settle()
    assert work.running == [("waiting", 2), ("a", 1)]
    work.gate.set()
    await loop.idle.wait()
    assert set(work.done) == {("waiting", 2), ("a", 1), ("b", 1)}
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_key_given_again_while_it_runs_replaces_the_older_never_joins_it() -> None:
    work = Handout()
    work.give(("a", 1))
    loop = WorkLoop(work, concurrency=3)
    task = asyncio.create_task(loop.run())
    await settle()
    work.give(("a", 2))
    await settle()
    assert work.running == [("a", 2)]
    work.gate.set()
    await loop.idle.wait()
    assert work.done == [("a", 2)]
    assert work.most_at_once == 1
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_fault_in_the_work_itself_ends_the_loop_loudly() -> None:
    work = Handout()
    work.give(("broken", 1))
    with pytest.raises(ExceptionGroup):
        await WorkLoop(work, concurrency=1).run()


async def test_it_is_idle_only_when_nothing_is_due_and_nothing_runs() -> None:
    work = Handout()
    loop = WorkLoop(work, concurrency=2)
    task = asyncio.create_task(loop.run())
    await loop.idle.wait()
    work.give(("a", 1))
    await settle()
    assert not loop.idle.is_set()
    work.gate.set()
    await loop.idle.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
