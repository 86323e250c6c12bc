"""What is printed cannot steer the terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greylag.cli.output import moment, one_line, shortened, visible

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


@given(ANY_TEXT)
def test_no_text_keeps_a_character_that_a_terminal_obeys(text: str) -> None:
    shown = visible(text)
    assert all(char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cs"} for char in shown)
    assert not set(shown) & set("\u202e\u2066\u2067\u2068\u2069\u200f\u2028\u2029")


@given(ANY_TEXT)
def test_one_line_is_one_line_and_can_be_encoded(text: str) -> None:
    shown = one_line(text)
    assert not set(shown) & set("\n\t\r")
    shown.encode()


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界 👋🏽", "two\nlines\tand a tab", "e\u0301"])
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_an_escape_sequence_is_shown_and_not_obeyed() -> None:
    assert visible("\x1b]0;owned\x07\x9b2J") == "␛]0;owned␇\N{REPLACEMENT CHARACTER}2J"


def test_a_carriage_return_cannot_overwrite_what_was_shown() -> None:
    assert visible("rm -rf /\recho hello\r\n") == "rm -rf /echo hello\n"


def test_long_text_is_cut_to_its_first_line_and_says_so() -> None:
    assert shortened("a" * 20 + "\nb\nc", 10) == "aaaaaaa... (+2 more lines)"
    assert shortened("", 10) == ""


def test_times_are_shown_to_the_second() -> None:
    assert moment("2026-11-24T00:06:09.123Z") == "2026-11-24 00:06:09Z"
    assert moment(None) == "-"
