"""Reading a turn's journal: from any event on, and live while it grows."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from greylag.agentd.journal.journal import TurnJournal
from greylag.common import sse

FRAME_END = b"\n\n"
READ_SIZE = 64 * 1024
HEARTBEAT_SECONDS = 15.0
"""After so long a silence a comment is sent."""

_MOST_DIGITS = 18


class UnknownEventError(ValueError):
    """The id to go on from is not one of this turn's events."""


class JournalGoneError(Exception):
    """The turn's journal has been removed to make room; only its record is left."""


def event_number(turn_id: str, value: str) -> int:
    """Return the number in an event's id.

    Raises:
        UnknownEventError: the id has another shape, or is another turn's.
    """
    turn, dash, number = value.rpartition("-")
    known = dash and turn == turn_id and number.isascii() and number.isdigit()
    if not known or len(number) > _MOST_DIGITS:
        raise UnknownEventError(f"{value[:100]!r} is not the id of an event of this turn.")
    return int(number)


class JournalTail:
    """One reader of one journal. It holds an open file and an offset, and nothing else.

    Args:
        path: the journal's file.
        journal: its writer, while the turn runs; None for a turn that has ended.

    Raises:
        JournalGoneError: there is no such file any more, or none that can be read.
    """

    def __init__(self, path: Path, journal: TurnJournal | None) -> None:
        # The agent's tools can put a link or a pipe in its place.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags)
        except OSError as error:
            raise JournalGoneError("The events of this turn are no longer kept.") from error
        self._journal = journal
        self._offset = 0

    async def skip(self, number: int) -> None:
        """Start after event ``number`` (from 0).

        Raises:
            UnknownEventError: the turn has no such event (yet).
        """
        end = self._readable()
        offset = await asyncio.to_thread(_offset_after, self._fd, number, end)
        if offset is None:
            raise UnknownEventError(f"The turn has no event {number}.")
        self._offset = offset

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the journal's frames as they are there, until its end.

        Each piece is whole frames, about 64 KiB of them or one that is longer: older clients parse
        each piece that they read as whole lines. A comment (heartbeat) comes between two pieces.
        """
        while True:
            journal = self._journal
            changed = None if journal is None else journal.changed
            end = self._readable()
            if self._offset < end:
                chunk = await self._read(end)
                if not chunk:
                    return  # a tool has cut the file off
                yield chunk
            elif journal is None or journal.closed or changed is None:
                return
            else:
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    yield sse.HEARTBEAT

    @property
    def is_over(self) -> bool:
        """Whether nothing follows and nothing ever will."""
        ended = self._journal is None or self._journal.closed
        return ended and self._offset >= self._readable()

    def close(self) -> None:
        """Close the file; the reader is done."""
        os.close(self._fd)

    def _readable(self) -> int:
        return os.fstat(self._fd).st_size if self._journal is None else self._journal.size

    async def _read(self, end: int) -> bytes:
        size = min(READ_SIZE, end - self._offset)
        if self._journal is not None and end - self._offset <= READ_SIZE:
            # The live end was written a moment ago: it is in the page cache, no disk is touched.
            chunk = os.pread(self._fd, size, self._offset)
        else:
            chunk = await asyncio.to_thread(os.pread, self._fd, size, self._offset)
        if self._offset + len(chunk) < end:
            last = chunk.rfind(FRAME_END)
            if last >= 0:
                chunk = chunk[: last + len(FRAME_END)]
            else:
                chunk = await asyncio.to_thread(self._whole_frame, chunk)
        self._offset += len(chunk)
        return chunk

    def _whole_frame(self, chunk: bytes) -> bytes:
        """Return the frame that ``chunk`` is the beginning of."""
        whole = bytearray(chunk)
        while piece := os.pread(self._fd, READ_SIZE, self._offset + len(whole)):
            before = len(whole)
            whole += piece
            # Its end may lie across two pieces.
            end = whole.find(FRAME_END, max(0, before - 1))
            if end >= 0:
                return bytes(whole[: end + len(FRAME_END)])
        return bytes(whole)


def frames(fd: int) -> Iterator[bytes]:
    """Yield the whole frames of a journal's file."""
    splitter = sse.FrameSplitter(limit=1 << 40)  # our own file: its size is the limit
    offset = 0
    while block := os.pread(fd, READ_SIZE, offset):
        offset += len(block)
        yield from splitter.feed(block)


def _offset_after(fd: int, number: int, end: int) -> int | None:
    """Return the offset just past frame ``number``, None when ``end`` comes before it.

    Blank lines are counted and no frame is made: a resumed stream waits for this.
    """
    left = number + 1
    offset = 0
    carry = b""
    while offset < end and (block := os.pread(fd, min(READ_SIZE, end - offset), offset)):
        # A frame's end may lie across two blocks; as no frame begins with a newline, one carried
        # byte cannot make a false end.
        window = carry + block
        found = window.count(FRAME_END)
        if found >= left:
            return offset - len(carry) + _end_of(window, left)
        left -= found
        offset += len(block)
        carry = b"" if window.endswith(FRAME_END) else window[-1:]
    return None


def _end_of(window: bytes, nth: int) -> int:
    at = 0
    for _ in range(nth):
        at = window.index(FRAME_END, at) + len(FRAME_END)
    return at
