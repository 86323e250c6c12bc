"""How long is waited: longer each time, within bounds, and never all at once."""

import random

from hypothesis import given
from hypothesis import strategies as st

from greylag.common.backoff import Pauses, backoff

SECONDS = st.floats(0.001, 1e6)


@given(failed=st.integers(0, 10**6), first=SECONDS, longest=SECONDS, seed=st.integers())
def test_a_pause_is_between_half_and_all_of_what_is_due_and_never_above_the_longest(
    failed: int, first: float, longest: float, seed: int
) -> None:
    most = backoff(failed, first, longest, lambda _least, most: most)
    least = backoff(failed, first, longest, lambda least, _most: least)
    assert least == most / 2
    assert min(first, longest) <= most <= longest
    spread = random.Random(seed).uniform  # noqa: S311 - to be repeatable
    assert least <= backoff(failed, first, longest, spread) <= most


@given(failed=st.integers(0, 200), first=SECONDS, longest=SECONDS)
def test_each_failure_doubles_the_pause_until_the_longest(
    failed: int, first: float, longest: float
) -> None:
    before, after = (
        backoff(count, first, longest, lambda _least, most: most) for count in (failed, failed + 1)
    )
    assert after >= before
    assert after == longest or after == 2 * before


def test_two_that_failed_together_do_not_come_again_together() -> None:
    assert len({backoff(3, 1.0, 60.0) for _ in range(20)}) > 1


async def test_pauses_grow_with_each_failure_and_begin_anew_once_something_has_worked() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    pauses = Pauses(1.0, 3.0, sleep, lambda _least, most: most)
    for _ in range(3):
        await pauses.pause()
    assert pauses.failed == 3
    pauses.worked()
    await pauses.pause()
    assert slept == [1.0, 2.0, 3.0, 1.0]
