"""What differs between two texts, line by line, in a time that whoever wrote them cannot stretch.

Lines that occur once in each are the anchors (as in a patience diff); what lies between two anchors
is compared by difflib where that is quick, and is else replaced as a whole. Each comparison has so
many steps for all of it: what is not compared when they are gone is replaced as a whole, too.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import Match, SequenceMatcher
from io import BytesIO
from itertools import accumulate
from typing import AnyStr, NamedTuple

_MOST_COMPARED = 1500
_MOST_PAIRS = 50_000
_MOST_STEPS = 3_000_000
_BINARY_WITHIN = 8000


class Counts(NamedTuple):
    """How many lines came and went."""

    added: int
    deleted: int


class _Steps:
    """How many steps a comparison has left."""

    def __init__(self) -> None:
        self.left = _MOST_STEPS


class _GapMatcher(SequenceMatcher[str | bytes]):
    """A matcher that takes steps for each look, and finds nothing more once there are too few.

    difflib looks for the longest block, then for the longest before and behind it, and so on; each
    look costs every pair of equal lines in its part of the old text, so that many short blocks cost
    the pairs as many times.

    Args:
        old, new: what lies between two anchors.
        pairs: how many lines of ``new`` each line of ``old`` is equal to.
        steps: what the whole comparison has left.
    """

    def __init__(
        self,
        old: Sequence[str | bytes],
        new: Sequence[str | bytes],
        pairs: Sequence[int],
        steps: _Steps,
    ) -> None:
        super().__init__(None, old, new, autojunk=False)
        self._costs = [0, *accumulate(1 + count for count in pairs)]
        self._steps = steps

    def find_longest_match(
        self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None
    ) -> Match:
        """Return the longest block that is the same in two parts; one of no size: none is told."""
        self._steps.left -= self._costs[-1 if ahi is None else ahi] - self._costs[alo]
        if self._steps.left < 0:
            return Match(alo, blo, 0)
        return super().find_longest_match(alo, ahi, blo, bhi)


class _Matcher(SequenceMatcher[str]):
    """A matcher with blocks that were found already."""

    def __init__(self, old: Sequence[str], new: Sequence[str]) -> None:
        super().__init__(None, "", "", autojunk=False)
        self.a, self.b = old, new
        blocks = [*_merged(_blocks(old, new)), Match(len(old), len(new), 0)]
        self.matching_blocks = blocks


def is_binary(content: bytes) -> bool:
    """Tell whether a content is no text, as git tells it."""
    return b"\0" in content[:_BINARY_WITHIN]


def counts(old: bytes, new: bytes) -> Counts:
    """Return how many lines came and went between two texts."""
    one, other = BytesIO(old).readlines(), BytesIO(new).readlines()
    same = sum(block.size for block in _blocks(one, other))
    return Counts(len(other) - same, len(one) - same)


def unified(old: bytes, new: bytes, old_name: str, new_name: str) -> Iterator[str]:
    """Yield a unified diff line by line, with three lines around each change."""
    one, other = (
        [line.decode("utf-8", "replace") for line in BytesIO(text)] for text in (old, new)
    )
    begun = False
    for group in _Matcher(one, other).get_grouped_opcodes(3):
        if not begun:
            begun = True
            yield f"--- {old_name}\n"
            yield f"+++ {new_name}\n"
        (_, i1, _, j1, _), (_, _, i2, _, j2) = group[0], group[-1]
        yield f"@@ -{_span(i1, i2)} +{_span(j1, j2)} @@\n"
        for tag, a1, a2, b1, b2 in group:
            if tag == "equal":
                yield from _signed(" ", one[a1:a2])
                continue
            yield from _signed("-", one[a1:a2])
            yield from _signed("+", other[b1:b2])


def _span(start: int, end: int) -> str:
    length = end - start
    first = start + 1 if length else start
    return f"{first}" if length == 1 else f"{first},{length}"


def _signed(sign: str, lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield sign + line
        if not line.endswith("\n"):
            yield "\n\\ No newline at end of file\n"


# Blocks of lines that are the same.


def _blocks(old: Sequence[AnyStr], new: Sequence[AnyStr]) -> list[Match]:
    """Return what is the same in both, in order, not yet put together."""
    start: int = 0
    end: int = 0
    shorter = min(len(old), len(new))
    while start < shorter and old[start] == new[start]:
        start += 1
    while end < shorter - start and old[-1 - end] == new[-1 - end]:
        end += 1
    last_old, last_new = len(old) - end, len(new) - end
    blocks = [Match(0, 0, start)]
    place, steps = (start, start), _Steps()
    for one, other in [*_anchors(old, new, start, end), (last_old, last_new)]:
        blocks += _compared(old[place[0] : one], new[place[1] : other], place, steps)
        if one < last_old:
            blocks.append(Match(one, other, 1))
        place = one + 1, other + 1
    blocks.append(Match(last_old, last_new, end))
    return [block for block in blocks if block.size]


def _anchors(
    old: Sequence[AnyStr], new: Sequence[AnyStr], start: int, end: int
) -> list[tuple[int, int]]:
    """Return where lines are that occur once in each, as many as are in the same order."""
    inner = (range(start, len(old) - end), range(start, len(new) - end))
    often = [
        Counter(text[place] for place in places)
        for text, places in zip((old, new), inner, strict=True)
    ]
    where = {new[place]: place for place in inner[1] if often[1][new[place]] == 1}
    pairs = [
        (place, where[old[place]])
        for place in inner[0]
        if old[place] in where and often[0][old[place]] == 1
    ]
    return _rising(pairs)


def _rising(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return a longest run of pairs whose second numbers rise, as the first ones do."""
    tops: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for number, (_, place) in enumerate(pairs):
        length = bisect_left(tops, place)
        before.append(ends[length - 1] if length else -1)
        tops[length : length + 1] = [place]
        ends[length : length + 1] = [number]
    found = []
    number = ends[-1] if ends else -1
    while number >= 0:
        found.append(pairs[number])
        number = before[number]
    return found[::-1]


def _compared(
    old: Sequence[AnyStr], new: Sequence[AnyStr], place: tuple[int, int], steps: _Steps
) -> Iterator[Match]:
    """Yield what is the same in what lies behind a place, where it is quick to find."""
    if not old or not new or max(len(old), len(new)) > _MOST_COMPARED:
        return
    often = Counter(new)
    pairs = [often[line] for line in old]
    if sum(pairs) > _MOST_PAIRS:
        return
    for block in _GapMatcher(old, new, pairs, steps).get_matching_blocks():
        yield Match(place[0] + block.a, place[1] + block.b, block.size)


def _merged(blocks: list[Match]) -> Iterator[Match]:
    """Yield blocks with those that touch put together."""
    held = Match(0, 0, 0)
    for block in blocks:
        if (held.a + held.size, held.b + held.size) == (block.a, block.b):
            held = Match(held.a, held.b, held.size + block.size)
            continue
        if held.size:
            yield held
        held = block
    if held.size:
        yield held
