"""A step that lands after its lease has run out and others have gone on."""

import asyncio

import pytest
from tests.reconcile.bench import PACE, REF, Bench

from greylag.domain.errors import StoreUnavailableError
from greylag.domain.lifecycle import Observed, Verb
from greylag.domain.project import Desired, Status
from greylag.reconcile.loop import Slot


async def test_what_lands_after_another_has_found_nothing_to_do_is_looked_at_again() -> None:
    bench = Bench()
    await _start_late(bench)
    await bench.loop.drain()
    assert (await bench.project()).status is Status.INACTIVE
    assert await _state(bench) is Observed.STOPPED
    assert bench.verbs()[-1] is Verb.STOP


async def test_a_store_that_is_away_then_ends_nobodys_work(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    async def away(*_: object) -> None:
        raise StoreUnavailableError("It is away.")

    monkeypatch.setattr(bench.store, "poke", away)
    await _start_late(bench)
    assert await _state(bench) is Observed.READY


async def _start_late(bench: Bench) -> None:
    """Let one worker's start land after its lease, and after another has seen nothing to stop."""
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
    other = bench.another("w2")
    claim = await other.claim()
    assert claim is not None
    await other.handle(claim, Slot())
    assert (await bench.project()).status is Status.INACTIVE
    assert Verb.STOP not in bench.verbs()
    gate.set()
    await paused


async def _state(bench: Bench) -> Observed:
    return (await bench.cluster.observe((await bench.project()).environment)).state
