"""Streams that end although nothing is wrong, in a test's own time."""

from tests.clocks import FakeClock

from greylag.cli.errors import GIVE_UP_AFTER, Patience, ServerUnreachableError

ENDED = ServerUnreachableError("It ended.", connected=True)


async def test_silent_streams_that_last_are_opened_again_for_ever() -> None:
    clock = FakeClock()
    patience = Patience(pause=clock.sleep, clock=clock.monotonic, spread=max)
    for _ in range(10):
        patience.opened()
        clock.advance(GIVE_UP_AFTER)
        before = clock.monotonic()
        assert await patience.pause_after(ENDED)
        assert clock.monotonic() - before == 0.25


async def test_streams_that_end_at_once_are_borne_no_longer_than_a_broken_connection() -> None:
    clock = FakeClock()
    patience = Patience(pause=clock.sleep, clock=clock.monotonic, spread=max)
    patience.opened()
    while await patience.pause_after(ENDED):
        patience.opened()
    assert GIVE_UP_AFTER < clock.monotonic() <= GIVE_UP_AFTER + 5
