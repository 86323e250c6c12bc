"""Words and pieces of the dashboard that need no server."""

from datetime import UTC, datetime, timedelta

import pytest
from jinja2 import nodes

from greylag.common import sse
from greylag.common.agent_api import ChatMessage, Turn
from greylag.domain.errors import InvalidRequestError
from greylag.web.dashboard.conversations import _turn_session, pair
from greylag.web.dashboard.pages import (
    ProjectForm,
    moment,
    on_page,
    parsed_moment,
    templates,
    visible,
)
from greylag.web.dashboard.rail import MOST_READ
from greylag.web.dashboard.users import parse_window

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("plain \u00e4 \U0001f600\ttab\nline", "plain \u00e4 \U0001f600\ttab\nline"),
        ("\x1b[31m", "\u241b[31m"),
        ("\x00\x7f", "\u2400\u2421"),
        ("\x85", "[U+0085]"),
        ("a\u202eb\u2069", "a[U+202E]b[U+2069]"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(written: str, shown: str) -> None:
    assert visible(written) == shown
    assert visible(shown) == shown


@pytest.mark.parametrize(
    ("passed", "ago", "short"),
    [
        (timedelta(seconds=59), "just now", "now"),
        (timedelta(seconds=-5), "just now", "now"),
        (timedelta(days=-3), "just now", "now"),
        (timedelta(minutes=1), "1 minute ago", "1m"),
        (timedelta(hours=5), "5 hours ago", "5h"),
        (timedelta(days=70), "2 months ago", "2mo"),
        (timedelta(days=400), "1 year ago", "1y"),
    ],
)
def test_times_are_told_as_people_tell_them(passed: timedelta, ago: str, short: str) -> None:
    told = moment(NOW - passed, NOW)
    assert (told.ago, told.short) == (ago, short)


@pytest.mark.parametrize("text", ["yesterday", "", "0001-01-01T00:00:00+14:00"])
def test_a_time_that_is_none_is_not_shown(text: str) -> None:
    assert parsed_moment(text, NOW) is None


def test_the_same_state_at_another_time_looks_the_same() -> None:
    at = NOW - timedelta(hours=1)
    assert moment(at, NOW) == moment(at, NOW + timedelta(hours=1))


@pytest.mark.parametrize(
    "query",
    [
        {"state": "idle"},
        {"order": "size"},
        {"show": "0"},
        {"show": "9" * 5000},
        {"show": "000000001" + "9" * 30},
        {"show": "000000001" + "9" * 5000},
    ],
)
def test_a_list_that_cannot_be_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError):
        parse_window(query)


def test_the_longest_list_is_taken() -> None:
    assert parse_window({"show": str(MOST_READ), "state": ""}).show == MOST_READ


@pytest.mark.parametrize("metadata", ["[1]", "{", '{"a": 1e999999}', "[" * 100_000, '"x"'])
def test_metadata_that_is_no_object_is_refused(metadata: str) -> None:
    with pytest.raises(InvalidRequestError, match="Metadata"):
        ProjectForm(metadata=metadata).metadata_object()


def _turn(number: int, message: str, status: str = "completed") -> Turn:
    return Turn(f"t{number}", "s", f"m{number}", status, message, "2026-11-24T12:00:00.000Z")


def _messages(*texts: tuple[str, str, int]) -> list[ChatMessage]:
    return [
        ChatMessage(role, text, None, index, f"t{turn}" if turn else None)
        for index, (role, text, turn) in enumerate(texts)
    ]


def test_messages_meet_their_turns() -> None:
    said = _messages(("User", "a", 1), ("Assistant", "A", 1), ("User", "b", 2), ("User", "c", 3))
    turns = [_turn(3, "c", "running"), _turn(2, "b", "error")]
    found = pair(said, turns)
    assert [(one.message, one.answer, one.turn and one.turn.turn_id) for one in found] == [
        ("a", "A", None),
        ("b", "", "t2"),
        ("c", "", "t3"),
    ]


def test_a_turn_that_began_after_the_messages_were_read_is_there() -> None:
    found = pair(_messages(("User", "a", 1), ("Assistant", "A", 1)), [_turn(2, "b", "running")])
    assert [one.message for one in found] == ["a", "b"]


def test_messages_of_the_same_words_meet_their_own_turns() -> None:
    said = _messages(("User", "again", 1), ("Assistant", "A", 1), ("User", "again", 3))
    found = pair(said, [_turn(3, "again", "error"), _turn(2, "again"), _turn(1, "again")])
    assert [one.turn and one.turn.turn_id for one in found] == ["t1", "t3"]


def test_a_page_that_begins_with_an_answer_shows_it() -> None:
    found = pair(_messages(("Assistant", "A", 1), ("User", "b", 2)), [_turn(2, "b")])
    assert [(one.message, one.answer) for one in found] == [("", "A"), ("b", "")]


def test_messages_without_a_turn_stand_alone() -> None:
    found = pair(_messages(("User", "a", 0), ("Assistant", "A", 0), ("Assistant", "B", 0)), [])
    assert [(one.message, one.answer, one.turn) for one in found] == [("a", "A\n\nB", None)]


def test_hints_of_commands_are_told_as_places_of_the_page() -> None:
    assert on_page("`greylag logs` shows it; try again.") == "The log shows it; try again."
    assert (
        on_page("It may be busy; `greylag logs` shows it.") == "It may be busy; the log shows it."
    )


@pytest.mark.parametrize("name", templates().list_templates())
def test_every_block_that_a_page_fills_is_shown(name: str) -> None:
    environment = templates()
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, name)
    base = environment.parse(source).find(nodes.Extends)
    if base is not None:
        shown = environment.get_template(base.template.as_const()).blocks.keys()
        assert environment.get_template(name).blocks.keys() <= shown


def test_a_session_whose_id_no_address_can_hold_is_led_to_all_the_same() -> None:
    frame = sse.parse(b'data: {"type": "turn", "content": {"session_id": "half \\ud800"}}\n\n')
    assert _turn_session(frame) == "half ?"
