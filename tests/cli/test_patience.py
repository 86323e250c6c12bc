"""How long the client tries again, in a test's own time."""

from itertools import pairwise

import pytest
from tests.clocks import FakeClock

from greylag.cli.errors import (
    GIVE_UP_AFTER,
    CliError,
    Patience,
    Problem,
    ServerUnreachableError,
    may_pass,
    refusal,
)

BROKEN = ServerUnreachableError("It broke.", connected=True)


def patience(clock: FakeClock) -> Patience:
    return Patience(pause=clock.sleep, clock=clock.monotonic, spread=max)


async def test_pauses_grow_and_end_when_nothing_works_for_a_minute() -> None:
    clock = FakeClock()
    patient = patience(clock)
    moments = [clock.monotonic()]
    while await patient.pause_after(BROKEN):
        moments.append(clock.monotonic())
    pauses = [later - earlier for earlier, later in pairwise(moments)]
    assert pauses[:6] == [0.25, 0.5, 1, 2, 4, 5]
    assert set(pauses[5:]) == {5}
    assert GIVE_UP_AFTER < clock.monotonic() <= GIVE_UP_AFTER + 5


async def test_something_that_works_begins_the_minute_anew() -> None:
    clock = FakeClock()
    patient = patience(clock)
    assert await patient.pause_after(BROKEN)
    clock.advance(GIVE_UP_AFTER)
    patient.worked()
    before = clock.monotonic()
    assert await patient.pause_after(BROKEN)
    assert clock.monotonic() - before == 0.25


async def test_a_refusal_that_will_not_pass_is_not_borne() -> None:
    clock = FakeClock()
    assert not await patience(clock).pause_after(refusal(Problem(404, "turn_not_found", "Gone.")))
    assert clock.monotonic() == 0


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (BROKEN, True),
        (refusal(Problem(502, "agent_unreachable", "-")), True),
        (refusal(Problem(503, "store_unavailable", "-")), True),
        (refusal(Problem(429, "limit_exceeded", "-")), True),
        (refusal(Problem(401, "unauthorized", "-")), False),
        (refusal(Problem(500, "internal_error", "-")), False),
        (CliError("-"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: CliError, *, passes: bool) -> None:
    assert may_pass(error) is passes


async def test_silent_streams_that_last_are_opened_again_for_ever() -> None:
    clock = FakeClock()
    patient = patience(clock)
    for _ in range(10):
        patient.opened()
        clock.advance(GIVE_UP_AFTER)
        before = clock.monotonic()
        assert await patient.pause_after(BROKEN)
        assert clock.monotonic() - before == 0.25


async def test_streams_that_end_at_once_are_borne_no_longer_than_a_broken_connection() -> None:
    clock = FakeClock()
    patient = patience(clock)
    patient.opened()
    while await patient.pause_after(BROKEN):
        patient.opened()
    assert GIVE_UP_AFTER < clock.monotonic() <= GIVE_UP_AFTER + 5
