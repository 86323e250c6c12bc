"""Lines are compared in bounded work, whatever a text holds, and what is told is a true diff."""

from difflib import Match, SequenceMatcher
from typing import Any

import pytest

from greylag.agentd.changes.lines import counts, unified

_LETTERS = 12
_STEPS = 4_000_000


def _dear(gaps: int) -> tuple[bytes, bytes]:
    """Return two texts with anchors, between which each line that is the same stands alone."""
    old, new = [], []
    for gap in range(gaps):
        old.append(b"#%d\n" % gap)
        new.append(b"#%d\n" % gap)
        for place in range(700):
            line = bytes([97 + place * place % 101 % _LETTERS]) + b"\n"
            old.append(line)
            new += [line, bytes([65 + place % 20]) + b"\n"]
    return b"".join(old), b"".join(new)


async def test_a_comparison_has_so_many_steps_for_all_of_its_gaps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: Any = SequenceMatcher.find_longest_match
    steps = 0

    def counted(matcher: Any, first: int, last: int, *others: int) -> Match:
        nonlocal steps
        steps += sum(1 + len(matcher.b2j.get(line, ())) for line in matcher.a[first:last])
        found: Match = looked(matcher, first, last, *others)
        return found

    monkeypatch.setattr(SequenceMatcher, "find_longest_match", counted)
    old, new = _dear(3)
    counts(old, new)
    assert 0 < steps < _STEPS


async def test_a_diff_that_ran_out_of_steps_still_leads_from_one_text_to_the_other() -> None:
    old, new = _dear(3)
    lines = list(unified(old, new, "a", "b"))[2:]
    came = [line[1:] for line in lines if line[0] in " +"]
    went = [line[1:] for line in lines if line[0] in " -"]
    assert "".join(came).encode() == new
    assert "".join(went).encode() == old
    told = counts(old, new)
    assert told.added == sum(line[0] == "+" for line in lines)
    assert told.added - told.deleted == len(new.splitlines()) - len(old.splitlines())


def test_a_last_line_without_an_end_is_marked_as_such_on_its_side() -> None:
    mark = "\\ No newline at end of file\n"
    ended, open_ended = b"a\nb\n", b"a\nb"
    for sides, told in (
        ((ended, open_ended), f"-b\n+b\n{mark}"),
        ((open_ended, ended), f"-b\n{mark}+b\n"),
    ):
        assert "".join(unified(*sides, "f", "f")).endswith(f"@@ -1,2 +1,2 @@\n a\n{told}")
