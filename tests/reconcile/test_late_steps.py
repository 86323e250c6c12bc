"""A step that lands after its lease has run out and others have gone on."""

import asyncio

import pytest
from tests.reconcile.bench import PACE, REF, Bench

from greylag.domain.errors import StoreUnavailableError
from greylag.domain.lifecycle import Observed, Verb
from greylag.domain.project import Desired, Status
from greylag.ports.store import Claim


async def test_what_lands_after_others_have_found_nothing_to_do_is_looked_at_again() -> None:
    bench = Bench()
    await _start_late(bench)
    assert await bench.loop.drain() == 1
    assert (await bench.project()).status is Status.INACTIVE
    assert (await _state(bench)) is Observed.STOPPED


async def test_a_store_that_is_away_then_ends_nobodys_work(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    async def away(*_: object) -> None:
        raise StoreUnavailableError("It is away.")

    monkeypatch.setattr(bench.store, "poke", away)
    await _start_late(bench)


async def _start_late(bench: Bench) -> None:
    """Let a worker's start reach the cluster after another worker has deactivated the project."""
    await bench.create()
    await bench.loop.drain()
    await bench.want(Desired.ACTIVE)
    gate = bench.cluster.hang(REF, Verb.START)
    paused = asyncio.create_task(bench.loop.drain())
    with bench.store.subscribe(REF) as news:
        while (await bench.project()).status is not Status.ACTIVATING:
            await news.changed(5)
    bench.clock.advance(PACE.lease + 1)
    await bench.want(Desired.INACTIVE)
    await bench.another("w2").handle(await _claimed(bench))
    assert (await bench.project()).status is Status.INACTIVE
    gate.set()
    await paused
    assert (await _state(bench)) is not Observed.STOPPED, "it was to be late"


async def _claimed(bench: Bench) -> Claim:
    claim = await bench.another("w2").claim()
    assert claim is not None
    return claim


async def _state(bench: Bench) -> Observed:
    return (await bench.cluster.observe(await bench.project())).state
