"""The cursor of a page."""

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greylag.domain.errors import InvalidRequestError
from greylag.domain.project import new_record_id
from greylag.ports import CURSOR_FORM
from greylag.store import records

MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis wants naive bounds and adds the zone


@settings(deadline=None)
@given(MOMENTS, st.just(new_record_id(datetime.now(UTC))) | st.text(st.characters(codec="utf-8")))
def test_a_cursor_leads_back_to_its_place(moment: datetime, record_id: str) -> None:
    place = records.Position(records.millis(moment), record_id)
    cursor = records.encode(place)
    assert records.decode(cursor) == place
    assert re.fullmatch(r"[-.\w]+", cursor, re.ASCII)  # safe inside a URL


def test_a_cursor_of_an_earlier_version_leads_where_it_did() -> None:
    place = records.Position(1_735_787_045_678, "65a000000000000000000001")
    assert records.encode(place) == "1735787045678.65a000000000000000000001"
    assert records.decode("1735787045678.65a000000000000000000001") == place


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
    assert records.decode(records.encode(place)) == place


@settings(deadline=None)
@given(st.from_regex(CURSOR_FORM, fullmatch=True))
def test_nothing_that_looks_like_a_cursor_is_refused(text: str) -> None:
    place = records.decode(text)
    # Every store can be asked for it.
    assert records.millis(records.from_millis(place.created)) == place.created
    assert place.record_id.encode() is not None


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        records.cut([], 0)
