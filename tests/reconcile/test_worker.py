"""What a worker makes of what a cluster tells unasked."""

from tests.reconcile.bench import REF, Bench

from greylag.domain.errors import ErrorInfo
from greylag.domain.project import Desired, Status
from greylag.ports import Outcome

CRASHED = ErrorInfo("crashed", "It crashed.", "Mend it.")


async def failed_once(bench: Bench) -> None:
    """Let the environment end unasked, once, and be active again."""
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    bench.cluster.end(REF, CRASHED)
    await bench.worker._note(REF)
    await bench.loop.drain()
    assert ((project := await bench.project()).status, project.attempts) == (Status.ACTIVE, 1)


async def test_what_keeps_failing_is_looked_at_after_its_pause() -> None:
    bench = Bench()
    await failed_once(bench)
    bench.cluster.end(REF, CRASHED)
    await bench.worker._note(REF)
    assert await bench.loop.drain() == 0
    bench.clock.advance(1)
    assert await bench.loop.drain() == 1
    assert (await bench.project()).attempts == 2


async def test_what_ends_again_after_its_pause_is_set_right_at_once() -> None:
    bench = Bench()
    await failed_once(bench)
    bench.clock.advance(1)
    await bench.loop.drain()
    bench.clock.advance(1)
    assert await bench.loop.drain() == 0
    bench.cluster.end(REF, CRASHED)
    await bench.worker._note(REF)
    assert await bench.loop.drain() == 1
    assert ((project := await bench.project()).status, project.attempts) == (Status.ACTIVE, 2)


async def test_what_another_works_on_is_left_to_it_until_its_lease_is_over() -> None:
    bench = Bench()
    await bench.create()
    now = bench.clock.now()
    claim = await bench.store.claim_due("other", now, 10)
    assert claim is not None
    await bench.worker._note(REF)
    await bench.store.record(claim, Outcome(status=Status.INACTIVE), now, release=True)
    assert await bench.loop.drain() == 0
    await bench.worker._note(REF)
    assert await bench.loop.drain() == 1


async def test_what_another_s_lease_holds_no_more_is_looked_at() -> None:
    bench = Bench()
    await bench.create()
    await bench.store.claim_due("other", bench.clock.now(), 10)
    bench.clock.advance(11)
    await bench.worker._note(REF)
    assert await bench.loop.drain() == 1


async def test_what_had_failed_for_good_and_comes_all_the_same_is_active_at_once() -> None:
    bench = Bench()
    await failed_once(bench)
    bench.clock.advance(1)
    bench.cluster.end(REF, CRASHED, terminal=True)
    await bench.worker._note(REF)
    await bench.loop.drain()
    assert ((project := await bench.project()).status, project.due_at) == (Status.ERROR, None)
    bench.cluster.stumble(REF, CRASHED)
    bench.cluster.advance(REF)
    await bench.worker._note(REF)
    await bench.loop.drain()
    assert (await bench.project()).status is Status.ACTIVE


async def test_what_was_just_set_right_is_not_looked_at_all_the_time_it_has_to_prove_itself() -> (
    None
):
    bench = Bench()
    await failed_once(bench)
    bench.observations()
    while (await bench.project()).attempts:
        bench.clock.advance(0.5)
        await bench.loop.drain()
    assert bench.observations() <= 3
