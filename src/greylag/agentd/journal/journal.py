"""The journal of a turn: one append-only file that holds its frames exactly as they are sent.

A ``TurnJournal`` writes it, and any number of ``JournalTail`` read it meanwhile.

The page cache has a frame before any reader can see it, so a reader never knows more than the
file; the disk has all of them when the turn ends. A frame is one ``id:`` line, one ``data:`` line
and a blank line, and JSON holds no raw newline: two newlines in a row end a frame and nothing else.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from greylag.agentd.shortening import shortened
from greylag.common import sse
from greylag.common.agent_api import MOST_EVENT

_FLUSH_AT = 64 * 1024
# The last events of a turn (an error, ``complete``) must fit even when its limit has been reached.
_RESERVE = 64 * 1024
# Bytes of a text and items of a list that an event keeps which is too large, and then again.
_SHORTER = ((64 * 1024, 1000), (1024, 100), (100, 20))


class JournalError(Exception):
    """The journal cannot be written (disk full, volume gone); the message says why."""


class JournalFullError(JournalError):
    """The turn has written all that one turn may write."""


def event_id(turn_id: str, number: int) -> str:
    """Return the id of event ``number`` (from 0) of a turn."""
    return f"{turn_id}-{number}"


class TurnJournal:
    """The only writer of one turn's journal, and what its readers wait on.

    Events that arrive within one round of the event loop go to the file in one write.

    Args:
        path: the file; it is created, or continued when it exists.
        turn_id: the turn's id, the first part of every event's id.
        limit: most bytes that the file may grow to (the turn's end is written past it).
        next_number: number of the next event, when the file already has some.

    Attributes:
        size: bytes that readers may read now: always whole frames.
        closed: whether the file will never grow again.
        changed: set at the next growth or at the end. Take it before looking at ``size``, else a
            growth in between goes unnoticed.
    """

    def __init__(self, path: Path, turn_id: str, limit: int, next_number: int = 0) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        self._path = path
        self._turn_id = turn_id
        self._limit = limit
        self._next = self._next_written = next_number
        self.size = self._written = os.fstat(self._fd).st_size
        self._buffer = bytearray()
        self._flush_planned: asyncio.Handle | None = None
        self.changed = asyncio.Event()
        self._failure: JournalError | None = None
        self._sealed = False
        self.closed = False

    def append(
        self, kind: str, content: Mapping[str, Any], *, last_words: bool = False
    ) -> Mapping[str, Any]:
        """Add one event; readers see it a moment later.

        ``last_words`` lets the events that end a turn go past the limit.

        Returns:
            the content as it is kept, which is shortened where it was too large.

        Raises:
            JournalFullError: the turn's limit is reached.
            JournalError: the file could not be written (now, or by an earlier append).
        """
        if self._failure is not None:
            raise self._failure
        if self._sealed:
            raise JournalError("The turn has ended; its journal takes no more events.")
        frame, kept = self._frame(kind, content)
        room = self._limit + (_RESERVE if last_words else 0)
        if self._written + len(self._buffer) + len(frame) > room:
            raise JournalFullError(f"The answer is longer than {self._limit} bytes.")
        self._next += 1
        self._buffer += frame
        if len(self._buffer) >= _FLUSH_AT:
            self._flush()
        elif self._flush_planned is None:
            self._flush_planned = asyncio.get_running_loop().call_soon(self._flush)
        return kept

    def _frame(self, kind: str, content: Mapping[str, Any]) -> tuple[bytes, Mapping[str, Any]]:
        """Return an event as it is kept, and its content: what no client takes is shortened."""
        number = event_id(self._turn_id, self._next)
        frame = sse.encode({"type": kind, "content": content}, id=number)
        for text, items in _SHORTER:
            if len(frame) <= MOST_EVENT:
                return frame, content
            content = shortened(dict(content), text, items)
            frame = sse.encode({"type": kind, "content": content}, id=number)
        if len(frame) > MOST_EVENT:
            content = {name: one for name, one in content.items() if isinstance(one, str | int)}
            frame = sse.encode({"type": kind, "content": content}, id=number)
        return frame, content

    async def seal(self) -> None:
        """Write what is left and make all of it durable; no event may follow.

        What is written here stays unseen until ``publish_end``, so that the turn's record can say
        that it ended before any reader can know.

        Raises:
            JournalError: not everything could be written; the readers still need ``publish_end``.
        """
        self._sealed = True
        self._write_buffer()
        if self._failure is not None:
            raise self._failure
        try:
            await asyncio.to_thread(make_durable, self._fd, self._path.parent)
        except OSError as error:
            raise _translated(error) from error

    def try_again(self) -> bool:
        """Allow events again after a failed write: what was lost is lost, its numbers are reused.

        Not after ``publish_end``: there is no file any more to write to.

        Returns:
            False when no write has failed, and nothing is changed.
        """
        if self._failure is None:
            return False
        self._failure = None
        self._sealed = False
        return True

    def publish_end(self) -> None:
        """Show the readers the rest, and let them end. Does nothing the second time."""
        if self.closed:
            return
        self.closed = self._sealed = True
        self._cancel_flush()
        os.close(self._fd)
        self._publish()

    def _flush(self) -> None:
        self._write_buffer()
        self._publish()

    def _write_buffer(self) -> None:
        self._cancel_flush()
        if not self._buffer:
            return
        try:
            write_all(self._fd, self._buffer)
        except OSError as error:
            # Half a frame must never be seen, nor stay in front of what may be added later.
            os.ftruncate(self._fd, self._written)
            self._next = self._next_written
            self._failure = _translated(error)
        else:
            self._written += len(self._buffer)
            self._next_written = self._next
        self._buffer.clear()

    def _cancel_flush(self) -> None:
        if self._flush_planned is not None:
            self._flush_planned.cancel()
            self._flush_planned = None

    def _publish(self) -> None:
        self.size = self._written
        # A new event for the next wait: readers that hold the old one all wake, and none is
        # counted, so there is nothing to queue for a slow one.
        self.changed.set()
        self.changed = asyncio.Event()


def write_all(fd: int, data: bytes | bytearray) -> None:
    """Write all of ``data``, in as many steps as it takes."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])


def make_durable(fd: int, folder: Path) -> None:
    """Bring a file's content to the disk, and its name in its folder."""
    os.fsync(fd)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _translated(error: OSError) -> JournalError:
    translated = JournalError(f"The journal cannot be written: {error.strerror or error}.")
    translated.__cause__ = error
    return translated


# Reading a turn's journal: from any event on, and live while it grows.

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
    turn, _, number = value.rpartition("-")
    known = turn == turn_id and number.isascii() and number.isdigit()
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
