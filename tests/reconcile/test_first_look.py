"""The look at everything: once for all who start together, and never left undone."""

import asyncio

import pytest
from tests.clocks import FakeClock
from tests.contract.store_adapters import make_project
from tests.fakes.cluster import MemoryCluster
from tests.fakes.store import MemoryStore
from tests.reconcile.bench import Bench

from greylag.domain.errors import ClusterUnavailableError, StoreUnavailableError
from greylag.domain.project import Desired, ProjectRef, Status
from greylag.reconcile import worker
from greylag.reconcile.worker import DUTY, HELD_SECONDS, FirstLook, Worker


class CountingCluster(MemoryCluster):
    """Counts how often it was asked for everything."""

    def __init__(self) -> None:
        super().__init__(auto=True)
        self.asked = 0

    async def inventory(self) -> tuple[ProjectRef, ...]:
        self.asked += 1
        await asyncio.sleep(0)
        return tuple(await super().inventory())


async def test_three_that_start_together_look_once() -> None:
    store, cluster, clock = MemoryStore(), CountingCluster(), FakeClock()
    looks = [FirstLook(store, cluster, clock, name) for name in "abc"]
    assert sorted(await asyncio.gather(*(one.attempt() for one in looks))) == [False, False, True]
    await asyncio.gather(*(one.rest() for one in looks))
    assert cluster.asked == 1


async def test_one_that_starts_later_looks_anew() -> None:
    store, cluster, clock = MemoryStore(), CountingCluster(), FakeClock()
    assert await FirstLook(store, cluster, clock, "a").attempt()
    clock.advance(1)
    assert await FirstLook(store, cluster, clock, "b").attempt()
    assert cluster.asked == 2


async def test_when_the_one_that_looks_dies_another_does_it() -> None:
    store, cluster, clock = MemoryStore(), CountingCluster(), FakeClock()
    now = clock.now()
    await store.take_duty(DUTY, "dead", since=now, now=now, seconds=HELD_SECONDS)
    look = FirstLook(store, cluster, clock, "a")
    assert not await look.attempt()
    assert cluster.asked == 0
    await look.rest()
    assert cluster.asked == 1


async def test_what_exists_and_has_a_record_is_made_due_and_what_has_none_is_left_alone() -> None:
    store, cluster, clock = MemoryStore(), CountingCluster(), FakeClock()
    known, unknown = make_project("known"), make_project("unknown")
    await store.create(known)
    for one in (known, unknown):
        await cluster.prepare(one.environment)
    assert await FirstLook(store, cluster, clock, "a").attempt()
    claim = await store.claim_due("a", clock.now(), 10)
    assert claim is not None
    assert claim.project.ref == known.ref
    assert list(await MemoryCluster.inventory(cluster)) == [known.ref, unknown.ref]


async def test_of_many_environments_some_are_due_at_a_time() -> None:
    store, cluster, clock = MemoryStore(), CountingCluster(), FakeClock()
    for number in range(230):
        await store.create(made := make_project(f"p{number}", observed_generation=1))
        await cluster.prepare(made.environment)
    assert await FirstLook(store, cluster, clock, "a").attempt()

    async def claimed() -> int:
        count = 0
        while await store.claim_due("a", clock.now(), 1000) is not None:
            count += 1
        return count

    counts = [await claimed()]
    for _ in range(2):
        clock.advance(2)
        counts.append(await claimed())
    assert counts == [100, 100, 30]


async def test_a_look_that_takes_long_holds_up_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ALONE_SECONDS", 0)
    bench, ready = Bench(), asyncio.Event()

    async def listing() -> tuple[ProjectRef, ...]:
        await asyncio.Event().wait()
        return ()

    monkeypatch.setattr(bench.cluster, "inventory", listing)
    await bench.create()
    work = Worker(bench.store, bench.cluster, bench.clock, bench.reconciler, concurrency=1)
    running = asyncio.create_task(work.run(ready, 10))
    async with asyncio.timeout(5):
        await ready.wait()
    assert (await bench.project()).observed_generation == 1
    running.cancel()
    await asyncio.wait({running})


async def test_a_worker_looks_when_the_one_that_looked_has_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, looked = Bench(), asyncio.Event()

    async def listing() -> tuple[ProjectRef, ...]:
        looked.set()
        return ()

    monkeypatch.setattr(bench.cluster, "inventory", listing)
    now = bench.clock.now()
    await bench.store.take_duty(DUTY, "dead", since=now, now=now, seconds=HELD_SECONDS)
    work = Worker(bench.store, bench.cluster, bench.clock, bench.reconciler, concurrency=1)
    running = asyncio.create_task(work.run(asyncio.Event(), 10))
    async with asyncio.timeout(5):
        await looked.wait()
    running.cancel()
    await asyncio.wait({running})


async def test_a_store_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    store, cluster, clock = MemoryStore(), CountingCluster(), FakeClock()
    take, tried = store.take_duty, 0

    async def away(*words: object, **more: object) -> object:
        nonlocal tried
        tried += 1
        if tried < 3:
            raise StoreUnavailableError("It is away.")
        return await take(*words, **more)  # type: ignore[arg-type] # passed on as they came

    monkeypatch.setattr(store, "take_duty", away)
    assert await FirstLook(store, cluster, clock, "a").attempt()
    assert (tried, cluster.asked) == (3, 1)


async def test_a_record_that_says_active_is_looked_at_though_its_environment_is_gone() -> None:
    store, cluster, clock = MemoryStore(), CountingCluster(), FakeClock()
    gone = make_project("gone", status=Status.ACTIVE, desired=Desired.ACTIVE, observed_generation=1)
    await store.create(gone)
    assert await FirstLook(store, cluster, clock, "a").attempt()
    claim = await store.claim_due("a", clock.now(), 10)
    assert claim is not None
    assert claim.project.ref == gone.ref


async def test_while_environments_cannot_be_listed_it_is_not_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, cluster, clock = MemoryStore(), CountingCluster(), FakeClock()
    look, listed, poked = FirstLook(store, cluster, clock, "a"), cluster.inventory, 0

    async def away() -> tuple[ProjectRef, ...]:
        raise ClusterUnavailableError("It is away.")

    async def poke(*_: object) -> int:
        nonlocal poked
        poked += 1
        return 0

    monkeypatch.setattr(store, "poke_unsettled", poke)
    monkeypatch.setattr(cluster, "inventory", away)
    assert not await look.attempt()
    assert not await look.attempt()
    monkeypatch.setattr(cluster, "inventory", listed)
    await look.rest()
    assert (cluster.asked, poked) == (1, 1)


async def test_one_that_takes_too_long_leaves_it_to_another_and_does_not_call_it_done() -> None:
    store, cluster, clock = MemoryStore(), SlowCluster(), FakeClock()
    project = make_project()
    await store.create(project)
    await cluster.prepare(project.environment)
    slow = FirstLook(store, cluster, clock, "slow")
    looking = asyncio.create_task(slow.attempt())
    await cluster.begun.wait()
    clock.advance(HELD_SECONDS + 1)
    now = clock.now()
    await store.take_duty(DUTY, "other", since=now, now=now, seconds=HELD_SECONDS)
    cluster.go_on.set()
    assert not await looking
    await slow.rest()
    assert cluster.asked == 2


class SlowCluster(CountingCluster):
    """Lists everything when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def inventory(self) -> tuple[ProjectRef, ...]:
        self.begun.set()
        await self.go_on.wait()
        return await super().inventory()
