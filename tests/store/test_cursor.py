"""The cursor of a page."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greylag.domain.errors import InvalidRequestError
from greylag.domain.project import new_record_id
from greylag.store import records

MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis wants naive bounds and adds the zone


@settings(deadline=None)
@given(MOMENTS)
def test_a_cursor_leads_back_to_its_place(moment: datetime) -> None:
    place = records.Position(records.millis(moment), new_record_id(datetime.now(UTC)))
    assert records.decode(records.encode(place)) == place


@settings(deadline=None)
@given(MOMENTS)
def test_milliseconds_lose_less_than_one(moment: datetime) -> None:
    kept = records.from_millis(records.millis(moment))
    assert kept == moment.replace(microsecond=moment.microsecond // 1000 * 1000)


@settings(deadline=None)
@given(st.text())
def test_any_other_text_is_refused_or_read_but_never_a_crash(text: str) -> None:
    try:
        place = records.decode(text)
    except InvalidRequestError:
        return
    assert place.record_id.isalnum()


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        records.cut([], 0)
