"""Rules of .gitignore files as git reads them, in a time that no line of theirs can stretch."""

import pytest

from greylag.execd.snapshots import _rule


@pytest.mark.parametrize(
    ("line", "name"),
    [("a  ", "a"), ("a", "a"), ("a\\   ", "a "), ("a b", "a b"), ("a \r", "a"), ("\\ ", " ")],
)
def test_a_rule_ends_before_spaces_unless_one_is_escaped(line: str, name: str) -> None:
    rule = _rule(line)
    assert rule is not None
    assert rule.pattern.fullmatch(name)
    assert not rule.pattern.fullmatch(f"{name} ")


def test_a_line_of_spaces_costs_its_length_and_no_more() -> None:
    # In a time that grew with its square it would take more than half an hour.
    assert _rule(" " * 1024 * 1024 + "x") is None
