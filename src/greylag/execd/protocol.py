"""What agentd and execd say to each other over a unix socket, version 1.

Each connection carries one operation, so that the kernel holds back whoever writes faster than the
other side reads. It begins with a request, a JSON frame ``{"version": 1, "operation": ...}``, which
is answered by a JSON frame: ``{"ok": true, ...}`` or ``{"ok": false, "code", "message"}``.

===========  ==========================================  =========================================
operation    request                                     after the answer
===========  ==========================================  =========================================
hello        -                                           (answer: ``pid``, ``python``)
run          ``argv``, ``env`` (over execd's own),       frames both ways until ``EXIT``; when the
             ``cwd``, ``group``, ``terminal``            connection ends, all of it is killed
             (``[rows, columns]`` or null),              (answer: ``pid``, ``paced``)
             ``private`` (sockets, not pipes),
             ``paced`` (input is told of by
             ``TAKEN`` as it is read)
end          ``group``, ``environ``, ``since``,          (answer: ``left``, pids that live on)
             ``any`` (of which each has one
             of some values)
listen       -                                           (answer: ``port``), ``ACCEPTED`` frames
accept       ``number``                                  raw bytes both ways
ports        -                                           (answer: ``ports``, each with ``port``
                                                         and ``process``)
connect      ``port``, one of these                      raw bytes both ways
folders      ``paths``                                   -
files        ``verb``, ``root``, and what it takes       as ``greylag.execd.file_server`` says
snapshots    ``verb``, ``root``, and what it takes       as ``greylag.execd.snapshots`` says
===========  ==========================================  =========================================

Of the input of a process that is paced at most ``MOST_INPUT`` bytes, and a frame, are on their way,
so that whatever is said to it besides is heard at once, though it reads nothing.

A frame is its kind (one byte), the length of its body (four bytes, big-endian), and the body. What
comes from execd is another's word: agentd bounds every length before it reads.
"""

import asyncio
import json
import struct
from collections import deque
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter

VERSION = 1
GROUP = "GREYLAG_PROCESS_GROUP"
"""The environment variable that everything of one run inherits."""

MOST_DATA = 64 * 1024
MOST_JSON = 1024 * 1024
MOST_INPUT = 4 * MOST_DATA
_MOST_HELD = 4 * MOST_DATA
_HEADER = struct.Struct("!BI")
FRAME_HEAD = _HEADER.size
"""How many bytes a frame has beside its body."""


class FrameKind(IntEnum):
    """What a frame's body is."""

    JSON = 1
    STDIN = 2
    STDIN_END = 3
    STDOUT = 4
    STDERR = 5
    EXIT = 6
    RESIZE = 7
    KILL = 8
    ACCEPTED = 9
    TAKEN = 10


class RefusedError(Exception):
    """An operation cannot be done."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ProtocolError(Exception):
    """The other side does not keep to the protocol; the message says how."""


_DATA = frozenset({FrameKind.STDIN, FrameKind.STDOUT, FrameKind.STDERR})


def frame(kind: FrameKind, body: bytes = b"") -> bytes:
    """Return a frame as it is sent."""
    return _HEADER.pack(kind, len(body)) + body


def frames(kind: FrameKind, data: bytes) -> Iterator[bytes]:
    """Yield data of any length in frames that the other side takes."""
    for start in range(0, len(data), MOST_DATA):
        yield frame(kind, data[start : start + MOST_DATA])


async def send(writer: Writer, data: bytes) -> None:
    """Send bytes; return once there is room for more.

    Raises:
        OSError: the connection is closed.
    """
    try:
        writer.write(data)
    except RuntimeError as error:  # uvloop, on a connection that is closed already
        raise ConnectionResetError("the connection is closed") from error
    await writer.drain()


async def send_data(
    writer: Writer, kind: FrameKind, data: bytes, within: float | None = None
) -> None:
    """Send data of any length, each frame once there is room for it.

    Raises:
        OSError: the connection is closed.
        TimeoutError: nothing of a frame was taken ``within`` so many seconds (``None``: for ever).
    """
    for one in frames(kind, data):
        async with asyncio.timeout(within):
            await send(writer, one)


def json_frame(kind: FrameKind, content: dict[str, Any]) -> bytes:
    """Return a frame whose body is JSON.

    Raises:
        ProtocolError: it is longer than the other side would take.
    """
    body = json.dumps(content).encode()
    if len(body) > MOST_JSON:
        raise ProtocolError("a request is too long")
    return frame(kind, body)


async def read_frame(reader: Reader) -> tuple[FrameKind, bytes] | None:
    """Return the next frame, ``None`` when the other side has closed the connection.

    Raises:
        ProtocolError: what came is no frame, or it ends within one.
    """
    try:
        header = await reader.readexactly(_HEADER.size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise ProtocolError("the connection ended within a frame") from error
        return None
    kind, length = _HEADER.unpack(header)
    try:
        known = FrameKind(kind)
    except ValueError as error:
        raise ProtocolError(f"{kind} is no kind of frame") from error
    if length > (MOST_DATA if known in _DATA else MOST_JSON):
        raise ProtocolError("a frame is too long")
    try:
        return known, await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise ProtocolError("the connection ended within a frame") from error


def read_object(body: bytes) -> dict[str, Any]:
    """Return the object that a JSON frame holds.

    Raises:
        ProtocolError: it is not one.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a frame is not JSON") from error
    if not isinstance(found, dict):
        raise ProtocolError("a frame is no JSON object")
    return found


class HeldBytes:
    """What comes piece by piece, kept for who reads it; a slow reader holds the other side back."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._over = False
        self._changed = asyncio.Condition()

    async def feed(self, data: bytes) -> None:
        """Take what came, once there is room for it; after the end it is dropped."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._held < _MOST_HELD or self._over)
            if self._over or not data:
                return
            self._chunks.append(data)
            self._held += len(data)
            self._changed.notify_all()

    async def end(self) -> None:
        """Say that nothing more will come."""
        async with self._changed:
            self._over = True
            self._changed.notify_all()

    async def read(self, most: int) -> bytes:
        """Return up to ``most`` bytes as soon as there are some, b"" at the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._chunks or self._over)
            if not self._chunks:
                return b""
            data = self._chunks.popleft()
            if len(data) > most:
                self._chunks.appendleft(data[most:])
                data = data[:most]
            self._held -= len(data)
            self._changed.notify_all()
            return data

    async def drop(self) -> int:
        """Forget what nobody has read yet, and return how many bytes that was."""
        async with self._changed:
            dropped, self._held = self._held, 0
            self._chunks.clear()
            self._changed.notify_all()
            return dropped


async def agree(writer: Writer, **facts: Any) -> None:
    """Send an answer that says that something is done, or begun, with these facts."""
    await send(writer, json_frame(FrameKind.JSON, {"ok": True, **facts}))


def text_in(request: dict[str, Any], name: str) -> str:
    """Return a member of a request, a text that is not empty.

    Raises:
        RefusedError: it is none.
    """
    value = request.get(name)
    if not isinstance(value, str) or not value:
        raise RefusedError("invalid_request", f"{name} is not a text.")
    return value


def texts_in(request: dict[str, Any], name: str) -> dict[str, str]:
    """Return a member of a request, an object of texts; errors are those of ``text_in``."""
    value = request.get(name)
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise RefusedError("invalid_request", f"{name} is not an object of texts.")
    return value


async def pipe(source: Reader, target: Writer) -> None:
    """Carry raw bytes one way to their end; a side that breaks breaks the other."""
    try:
        while data := await source.read(MOST_DATA):
            await send(target, data)
        if target.can_write_eof() and not target.is_closing():
            target.write_eof()
    except OSError:
        target.transport.abort()
