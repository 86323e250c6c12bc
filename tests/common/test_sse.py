"""Server-sent events: however the network cuts the bytes, the same frames come out."""

import json
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greylag.common import sse

TEXT = st.text(st.characters() | st.sampled_from("\r\n\u2028: \u0000"), max_size=30)
IDS = st.none() | st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True)
EVENTS = st.lists(st.tuples(st.dictionaries(TEXT, TEXT, max_size=3), IDS), max_size=6)
CUTS = st.lists(st.integers(0, 400), max_size=20)
LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
FIELDS = st.sampled_from(["data", "data: ", "data:", "id: ", "event: ", ":", "retry: ", "other: "])
FRAMES = st.lists(st.lists(st.tuples(FIELDS, LINE).map("".join), max_size=4), max_size=5)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """Return ``stream`` cut at these places."""
    edges = [0, *sorted(place for place in places if place < len(stream)), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


def frames(chunks: Iterable[bytes]) -> list[sse.Frame]:
    splitter = sse.FrameSplitter()
    parsed = [sse.parse(frame) for chunk in chunks for frame in splitter.feed(chunk)]
    return [frame for frame in parsed if frame is not None]


def by_the_standard(lines: Iterable[str]) -> list[sse.Frame]:
    """Interpret lines as section 9.2.6 tells, one after the other."""
    found, data, fields = [], [], dict[str, str]()
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event" or (name == "id" and "\0" not in value):
            fields[name] = value
        if not line:
            if data:
                found.append(sse.Frame("\n".join(data), fields.get("id"), fields.get("event")))
            data, fields = [], {}
    return found


@settings(deadline=None)
@given(EVENTS, CUTS)
def test_what_is_encoded_comes_out_whatever_the_cuts(
    events: list[tuple[dict[str, str], str | None]], places: list[int]
) -> None:
    stream = b"".join(sse.encode(data, id=event_id) + sse.HEARTBEAT for data, event_id in events)
    found = frames(cut(stream, places))
    assert [frame.id for frame in found] == [event_id for _, event_id in events]
    # An unpaired surrogate cannot be sent as UTF-8; a question mark takes its place.
    sent = [json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") for data, _ in events]
    assert [json.loads(frame.data) for frame in found] == [json.loads(each) for each in sent]


@settings(deadline=None)
@given(FRAMES, ENDS, CUTS)
def test_streams_of_others_are_read_as_the_standard_says(
    blocks: list[list[str]], end: str, places: list[int]
) -> None:
    lines = [line for block in blocks for line in (*block, "")]
    stream = "".join(line + end for line in lines).encode()
    assert frames(cut(stream, places)) == by_the_standard(lines)


@settings(deadline=None)
@given(FRAMES, ENDS, CUTS)
def test_no_byte_is_lost_and_what_is_forwarded_ends_with_a_frame(
    blocks: list[list[str]], end: str, places: list[int]
) -> None:
    stream = "".join(line + end for block in blocks for line in (*block, "")).encode() + b"data: x"
    splitter, sent = sse.FrameSplitter(), b""
    for chunk in cut(stream, places):
        whole = splitter.feed_whole(chunk)
        assert not whole or whole.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))
        sent += whole
        assert len(splitter._rest) <= len(stream)
    assert stream.startswith(sent)
    assert len(splitter._rest) == len(stream) - len(sent)


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"\r", b"\n", b"data: \xe9", b"id:", b"\0"]), max_size=40), CUTS)
def test_any_bytes_give_the_same_frames_however_cut(parts: list[bytes], places: list[int]) -> None:
    stream = b"".join(parts)
    assert frames(cut(stream, places)) == frames([stream])


def test_a_frame_without_end_is_refused_before_it_grows() -> None:
    splitter = sse.FrameSplitter(limit=100)
    splitter.feed_whole(b"x" * 100)
    with pytest.raises(sse.FrameTooLargeError):
        splitter.feed_whole(b"x")


def test_many_whole_frames_at_once_may_be_larger_than_the_limit() -> None:
    splitter = sse.FrameSplitter(limit=100)
    stream = sse.encode({"a": "b"}) * 1000
    assert splitter.feed_whole(stream) == stream


def test_a_heartbeat_is_no_event() -> None:
    assert sse.parse(sse.HEARTBEAT) is None
    assert list(sse.FrameSplitter().feed(sse.HEARTBEAT)) == [sse.HEARTBEAT]
