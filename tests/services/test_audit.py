"""What is told beside the store's own changes: in bounds, before and after, never silently lost."""

import asyncio
from collections import Counter
from datetime import timedelta
from itertools import product

import pytest
from structlog.testing import capture_logs
from tests.clocks import FakeClock
from tests.fakes.store import MemoryStore

from greylag.domain.audit import SYSTEM, AuditEntry, AuditEvent, Result, anonymous
from greylag.domain.errors import MissingError, StoreUnavailableError
from greylag.ports import AuditFilter
from greylag.services.audit import MOST_OF_ALL, MOST_OF_ONE, WINDOW_SECONDS, Audit, event_of


class Broken(MemoryStore):
    """Takes no entry of these results."""

    refused = frozenset(Result)
    asked = 0

    async def append_audit(self, event: AuditEvent) -> AuditEntry:
        self.asked += 1
        if event.result in self.refused:
            raise StoreUnavailableError("The store is away.")
        return await super().append_audit(event)


class Stuck(MemoryStore):
    """Does not come to an end with what is about one thing."""

    stuck_at = ""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def append_audit(self, event: AuditEvent) -> AuditEntry:
        if event.count > 1 and event.object == self.stuck_at:
            self.asked.set()
            await asyncio.Event().wait()
        return await super().append_audit(event)


class Late(MemoryStore):
    """Takes entries one by one, as it is told to, until two were taken."""

    def __init__(self) -> None:
        super().__init__()
        self._doors = [asyncio.Event(), asyncio.Event()]
        self._waiting = iter(self._doors)

    async def append_audit(self, event: AuditEvent) -> AuditEntry:
        if (door := next(self._waiting, None)) is not None:
            await door.wait()
        return await super().append_audit(event)

    async def enter(self, whose: asyncio.Task[None]) -> None:
        """Take the next entry."""
        await asyncio.sleep(0)  # whoever is to wait is there
        self._doors.pop(0).set()
        await whose


class TickingClock(FakeClock):
    """Sleeps until it is told how long that was."""

    def __init__(self) -> None:
        super().__init__()
        self._asleep = asyncio.Event()
        self._ticks: asyncio.Queue[float] = asyncio.Queue()

    async def sleep(self, seconds: float) -> None:
        del seconds
        self._asleep.set()
        self.advance(await self._ticks.get())

    async def tick(self, seconds: float) -> None:
        """Let a sleep end, and return when whoever slept sleeps again."""
        await self._asleep.wait()
        self._asleep.clear()
        await self._ticks.put(seconds)
        await self._asleep.wait()


async def told(store: MemoryStore) -> list[tuple[str, str, int]]:
    found = await store.audit_entries(AuditFilter(), 10_000)
    return [(one["object"], one["result"], one["count"]) for _, one in found]


async def test_a_flood_of_refusals_of_one_fills_little_and_is_counted_to_the_last() -> None:
    store, clock = MemoryStore(), FakeClock()
    audit = Audit(store, clock)
    for _, number in product(range(3), range(100)):
        await audit.refused(anonymous("10.0.0.1"), "request", f"/{number}", "unauthorized")
    await audit.refused(anonymous("10.0.0.2"), "request", "/", "unauthorized")
    assert len(await told(store)) == MOST_OF_ONE + 1
    await audit.flush()
    counts = [count for _, _, count in await told(store)]
    assert sum(counts) == 301
    assert len(counts) == 2 * MOST_OF_ONE + 2


async def test_a_flood_from_everywhere_fills_little_too() -> None:
    store, clock = MemoryStore(), FakeClock()
    audit = Audit(store, clock)
    for number in range(1000):
        await audit.refused(anonymous(f"10.0.{number}"), "request", "/", "unauthorized")
    await audit.refused(SYSTEM, "known", "told all the same", "forbidden")
    await audit.flush()
    found = await told(store)
    assert len(found) == MOST_OF_ALL + 2
    assert sum(count for _, _, count in found) == 1001
    assert ("told all the same", "refused", 1) in found


async def test_what_was_counted_is_told_each_minute_and_what_is_old_goes() -> None:
    store, clock = MemoryStore(), TickingClock()
    audit = Audit(store, clock)
    await audit.append(audit.event(SYSTEM, "old", "first"))
    for _ in range(5):
        await audit.refused(SYSTEM, "a", "b", "forbidden")
    running = asyncio.create_task(audit.run(timedelta(seconds=WINDOW_SECONDS)))
    await clock.tick(WINDOW_SECONDS)
    assert await told(store) == [("first", "done", 1), ("b", "refused", 1), ("b", "refused", 4)]
    await clock.tick(3600)
    assert await told(store) == []
    running.cancel()
    await asyncio.wait({running})


async def test_what_cannot_be_told_is_not_begun() -> None:
    store = Broken()
    audit, done = Audit(store, FakeClock()), False
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            await audit.repeatedly(audit.event(SYSTEM, "files.read", "x", reason="why"))
    with pytest.raises(StoreUnavailableError):
        async with audit.doing(SYSTEM, "files.write", "x"):
            done = True
    assert not done


async def test_how_it_ended_is_told_the_log_if_the_store_is_away() -> None:
    store = Broken()
    audit = Audit(store, FakeClock())
    store.refused = frozenset({Result.DONE, Result.REFUSED})
    with pytest.raises(MissingError):
        async with audit.doing(SYSTEM, "files.write", "x"):
            raise MissingError("There is none.")
    with capture_logs() as logs:
        async with audit.doing(SYSTEM, "files.write", "y"):
            pass
        await audit.refused(SYSTEM, "a", "z", "forbidden")
    assert await told(store) == [("x", "begun", 1), ("x", "failed", 1), ("y", "begun", 1)]
    assert [(one["event"], one["entry"]["object"]) for one in logs] == [
        ("audit_lost", "y"),
        ("audit_lost", "z"),
    ]


async def test_what_a_flush_that_was_cut_off_has_not_told_the_next_one_tells() -> None:
    store = Stuck()
    audit = Audit(store, FakeClock())
    for _, number in product(range(3), range(3)):
        await audit.refused(SYSTEM, "a", str(number), "forbidden")
    store.stuck_at = "1"
    flushing = asyncio.create_task(audit.flush(), name="flush")
    await store.asked.wait()
    await audit.refused(SYSTEM, "a", "1", "forbidden")
    flushing.cancel()
    await asyncio.wait({flushing})
    store.stuck_at = ""
    await audit.flush()
    counts = Counter[str]()
    for name, _, count in await told(store):
        counts[name] += count
    assert counts == {"0": 3, "1": 4, "2": 3}


async def test_a_store_that_is_away_is_asked_once_for_all_that_was_counted() -> None:
    store = Broken()
    audit = Audit(store, FakeClock())
    with capture_logs() as logs:
        for _, number in product(range(2), range(3)):
            await audit.refused(SYSTEM, "a", str(number), "forbidden")
        assert len(logs) == 3
        store.asked = 0
        await audit.flush()
    assert store.asked == 1
    assert [one["entry"]["object"] for one in logs[3:]] == ["0", "1", "2"]


def test_values_are_what_every_store_can_hold() -> None:
    event = event_of(
        SYSTEM, FakeClock().now(), "a", "x" * 5000 + "\ud800", names={"b", "a"}, none=None, n=[1]
    )
    assert (len(event.object), event.changed) == (1000, {"names": ["a", "b"], "n": [1]})


async def test_what_is_counted_while_another_like_it_is_told_stays_counted() -> None:
    store = Late()
    audit = Audit(store, FakeClock())
    read = audit.event(SYSTEM, "files.read", "x", reason="why")
    both = [asyncio.create_task(audit.repeatedly(read), name="read") for _ in range(2)]
    await store.enter(both[0])
    for _ in range(50):
        await audit.repeatedly(read)
    await store.enter(both[1])
    await audit.flush()
    assert [count for _, _, count in await told(store)] == [1, 1, 50]
