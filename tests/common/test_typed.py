"""JSON from outside: what it may be written in, and what it may say."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greylag.common.typed import encodable, holds_more, parse_encodable, parse_json

HALF = '"a\\ud83db"'


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_in_another_encoding_than_utf_8_is_none(encoding: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - either the decoder's or the parser's
        parse_json(HALF.encode(encoding))


def test_half_a_character_is_a_question_mark_when_spelled_and_no_json_as_bytes() -> None:
    assert parse_encodable(HALF.encode()) == "a?b"
    with pytest.raises(ValueError, match="can't decode"):
        parse_encodable(b'"\xed\xa0\xbd"')


def test_a_byte_order_mark_is_overlooked() -> None:
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]


TEXTS = st.text(st.sampled_from('\\\\u"d83cf,[{ä\ud83d\ude00\n'), max_size=12)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_halves_alone_are_replaced_wherever_they_are_spelled(value: Any) -> None:
    line = json.dumps(value).encode()
    said = json.dumps(json.loads(line), ensure_ascii=False)
    assert parse_encodable(line) == json.loads(encodable(said))


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "-1e999"])
def test_what_is_no_finite_number_is_no_json(number: str) -> None:
    with pytest.raises(ValueError, match="number"):
        parse_json(f'{{"a": [{number}]}}')


@given(VALUES)
def test_what_a_line_holds_is_counted_without_what_its_texts_hold(value: Any) -> None:
    def parts(one: Any) -> int:
        if isinstance(one, dict):
            held = len(one) + sum(map(parts, one.values()))  # its names are texts
            return held + 1 + max(len(one) - 1, 0)
        if isinstance(one, list):
            return sum(map(parts, one)) + 1 + max(len(one) - 1, 0)
        return int(isinstance(one, str))

    line = json.dumps(value).encode()
    signs = sum(map(line.count, (b",", b"[", b"{")))
    assert not holds_more(line, max(parts(value), signs))
    if signs > (most := parts(value) - 1) >= 0:
        assert holds_more(line, most)


def test_a_text_without_an_end_is_looked_at_once() -> None:
    # Each of its quotes would begin another look to the end: a line of 3 MB took an hour.
    line = b'"' + b'\\",' * 1_000_001
    assert not holds_more(line, 1_000_000)
    assert not holds_more(line + b"\\", 1_000_000)
