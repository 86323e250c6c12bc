"""JSON from outside: what it may be written in, and what it may say."""

import pytest

from greylag.common.typed import parse_encodable, parse_json

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
