"""What is too large is cut where it enters, and what is around it stays as it was."""

import json
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greylag.agentd import shortening
from greylag.agentd.shortening import LineShortener, mark, shortened, true_size

TEXTS = st.text(st.characters(codec=None), max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(
    VALUES,
    st.sampled_from([True, False]),
    st.integers(1, 12),
    st.lists(st.integers(0, 400), max_size=5),
)
def test_a_line_is_the_same_json_with_its_long_texts_cut(
    value: Any, escapes: Any, kept: int, cuts: list[int]
) -> None:
    raw = json.dumps(value, ensure_ascii=escapes).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shortening, "KEPT", kept)
        line = LineShortener()
        ends = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
        for start, end in pairwise(ends):
            line.feed(raw[start:end])
    assert _alike(value, json.loads(bytes(line.line).decode("utf-8", "surrogatepass")), kept)
    assert line.values == _count(value)


def _alike(whole: Any, cut: Any, kept: int) -> bool:
    if isinstance(whole, str):
        size = true_size(cut)
        if size is None:
            return bool(cut == whole)
        begun = cut.removesuffix(mark(size))
        return bool(size > kept and len(begun) <= kept and whole.startswith(begun[:-1]))
    if isinstance(whole, list):
        return len(whole) == len(cut) and all(map(_alike, whole, cut, [kept] * len(whole)))
    if isinstance(whole, dict):
        pairs = zip(whole.values(), cut.values(), strict=False)
        return len(cut) <= len(whole) and (
            len(cut) < len(whole) or all(_alike(one, other, kept) for one, other in pairs)
        )
    return bool(cut == whole)


def _count(value: Any) -> int:
    """Return how many texts, lists, objects and commas a value is written with."""
    if isinstance(value, str):
        return 1
    if not isinstance(value, list | dict):
        return 0
    inside = [*value, *(value.values() if isinstance(value, dict) else ())]
    return 1 + max(len(value) - 1, 0) + sum(map(_count, inside))


@pytest.mark.parametrize(
    "line",
    [
        b'["",' + b'"",' * 100_000,
        b'{"text":"' + b"\\n" * 100_000,
        b'{"json":"' + b'{\\"name\\":1},' * 100_000,
        b'"' + b"\\" * 300_000,
        b"[[]," * 100_000,
    ],
)
def test_taking_a_line_is_the_same_work_however_many_signs_it_has(line: bytes) -> None:
    shortener, calls = LineShortener(), 0

    def called(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        for at in range(0, len(line), 65_536):
            shortener.feed(line[at : at + 65_536])
    finally:
        sys.setprofile(before)
    assert calls < 50 * (len(line) // 65_536 + 1)


def test_a_text_of_40_megabytes_costs_little_memory() -> None:
    line = LineShortener()
    line.feed(b'{"data":"')
    for _ in range(40):
        line.feed(b"A" * 1_000_000)
        assert len(line.line) < 2 * shortening.KEPT
    line.feed(b'"}')
    data = json.loads(line.line)["data"]
    assert true_size(data) == 40_000_000


def test_a_value_is_cut_in_every_part_and_keeps_the_true_size() -> None:
    value = {"a": ["x" * 1000] * 50, "b": 1}
    cut = shortened(value, 100, 10)
    assert (len(cut["a"]), cut["b"]) == (10, 1)
    assert true_size(cut["a"][0]) == 1000
    assert true_size(shortened(cut, 40, 10)["a"][0]) == 1000
    assert shortened(["x" * 100, "x" * 101], 100, 10) == ["x" * 100, "x" * 100 + mark(101)]


def test_what_is_deep_is_cut_where_it_is_too_deep() -> None:
    value: list[Any] = []
    for _ in range(900):
        value = [value]
    depth, cut = 0, shortened(value, 100, 10)
    while isinstance(cut, list):
        depth, (cut,) = depth + 1, cut
    assert (depth, cut) == (16, mark(0))
