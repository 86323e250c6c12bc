"""Moments as JSON has them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greylag.common.clock import SystemClock, maybe_rfc3339, parse_rfc3339, rfc3339

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.builds(
    lambda micros, zone: (EPOCH + timedelta(microseconds=micros)).astimezone(zone),
    st.integers(-30 * 10**15, 250 * 10**15),
    ZONES,
)


def test_a_moment_is_in_utc_to_the_millisecond_whoever_gives_it() -> None:
    moment = datetime(2025, 1, 2, 3, 4, 5, 6789, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert rfc3339(moment) == "2025-01-01T21:34:05.006Z"
    assert rfc3339(datetime(2025, 1, 1, tzinfo=UTC)) == "2025-01-01T00:00:00.000Z"
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1735689600.25) == "2025-01-01T00:00:00.250Z"
    assert maybe_rfc3339(None) is None
    assert maybe_rfc3339(0) == rfc3339(0)


@given(MOMENTS)
def test_what_is_written_is_read_as_the_same_moment(moment: datetime) -> None:
    read = parse_rfc3339(rfc3339(moment))
    assert read.tzinfo is UTC
    assert timedelta(0) <= moment - read < timedelta(milliseconds=1)
    assert rfc3339(read) == rfc3339(moment)


@pytest.mark.parametrize("text", ["", "soon", "2025-01-01T00:00:00", "0001-01-01T00:00:00+14:00"])
def test_what_is_no_moment_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match="must be a time with its zone, such as"):
        parse_rfc3339(text)


def test_the_systems_clock_gives_what_every_store_can_keep() -> None:
    now = SystemClock().now()
    assert now.tzinfo is UTC
    assert now.microsecond % 1000 == 0
    assert datetime.fromisoformat(rfc3339(now)) == now
