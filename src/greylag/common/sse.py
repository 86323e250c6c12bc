"""Server-sent events as bytes: whole frames in, whole frames out.

Follows the WHATWG HTML standard, section 9.2.6 ("Interpreting an event stream"). A network chunk
may end anywhere, inside a UTF-8 character too, so bytes are only ever cut at the blank line that
ends a frame. This module depends on nothing else of Greylag: the gateway, the relay, agentd and
the command line all use it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

HEARTBEAT = b":\n\n"
MEDIA_TYPE = "text/event-stream"

_FRAME_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class FrameTooLargeError(ValueError):
    """One frame grew past the splitter's limit before its blank line came."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One parsed event: its ``data`` (lines joined by a newline), its ``id`` and its name."""

    data: str
    id: str | None = None
    event: str | None = None


def encode(data: Mapping[str, Any], *, id: str | None = None) -> bytes:  # noqa: A002 - the field's name
    """Return one frame that carries ``data`` as a single line of JSON, ready to send."""
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    head = f"id: {id}\n".encode() if id is not None else b""
    return head + b"data: " + body + b"\n\n"


def parse(frame: bytes) -> Frame | None:
    """Read one whole frame; ``None`` for one without data (a comment, a heartbeat)."""
    text = frame.decode("utf-8", "replace")
    data: list[str] = []
    event_id: str | None = None
    event: str | None = None
    for line in re.split(r"\r\n|\n|\r", text):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "id" and "\0" not in value:
            event_id = value
        elif field == "event":
            event = value
    if not data:
        return None
    return Frame(data="\n".join(data), id=event_id, event=event)


class FrameSplitter:
    """Cuts a byte stream into whole frames, however the network cut it.

    ``limit`` is the most bytes that one unfinished frame may hold; past it ``feed`` fails
    by ``FrameTooLargeError``, so that a broken peer cannot grow our memory.
    """

    def __init__(self, limit: int = 16 * 1024 * 1024) -> None:
        self._rest = bytearray()
        self._limit = limit

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Take ``chunk`` and yield each frame that it completes, with its closing blank line."""
        whole = self.feed_whole(chunk)
        start = 0
        for end in _FRAME_END.finditer(whole):
            yield whole[start : end.end()]
            start = end.end()

    def feed_whole(self, chunk: bytes) -> bytes:
        """Take ``chunk`` and return all that is complete as one run of bytes (maybe empty).

        This is what a relay wants: it forwards whole frames without looking at each.
        """
        if not self._rest and chunk.endswith(b"\n\n"):
            return chunk  # nearly always: whole frames come in one piece
        # A blank line may straddle two chunks, so the search begins a little before the new bytes.
        search_from = max(0, len(self._rest) - 3)
        self._rest += chunk
        cut = _last_frame_end(self._rest, search_from)
        if len(self._rest) - cut > self._limit:
            raise FrameTooLargeError(f"a frame of more than {self._limit} bytes has no end")
        whole = bytes(self._rest[:cut])
        del self._rest[:cut]
        return whole


def _last_frame_end(buffer: bytearray, start: int) -> int:
    """Return the offset just past the last blank line found from ``start`` on, else 0."""
    ends = ((mark, buffer.rfind(mark, start)) for mark in (b"\r\n\r\n", b"\n\n", b"\r\r"))
    return max((at + len(mark) for mark, at in ends if at >= 0), default=0)
