"""The workspace's state, as execd tells it: listed, read, and brought back step by step.

What execd says is another's word: lists, names and lengths are checked and bounded here, contents
are given the digests that they have.
"""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from greylag.agentd.changes.states import (
    RULES,
    FileStatus,
    Folder,
    Plan,
    RestoreStep,
    Seen,
    Snapshot,
    SnapshotError,
)
from greylag.agentd.changes.store import PIECE, SnapshotStore
from greylag.agentd.execution import (
    Execution,
    ExecutionError,
    agreed,
    reason_of,
    send_content,
    whole_number,
)
from greylag.common.typed import parse_json
from greylag.execd.files import MOST_DEPTH, MOST_PATH, entry_path, parts_of, shown
from greylag.execd.protocol import (
    MOST_DATA,
    FrameKind,
    ProtocolError,
    Reader,
    RefusedError,
    Writer,
    json_frame,
    read_frame,
    send,
)
from greylag.execd.snapshots import FILE_HEAD, MOST_KEPT, RECORD, SENT, UNREADABLE

_MOST_LISTED = 64 * 1024 * 1024
_VALUE_COST = 40  # bytes of memory, for each value of a list
_MOST_OF_CHARACTER = 4
_MOST_FOLDERS = 200_000
_LIST_SECONDS = 120.0
_SILENCE_SECONDS = 60.0
_STEP_SECONDS = 120.0
_BATCH_FILES = 2000
_BATCH_TEXT = 256 * 1024
_BATCH_BYTES = 4 * PIECE
_BATCH_PIECES = 1000
_LISTED_AGAIN = 2
_MOST_NUMBER = 1 << 64
_STEP_OF_CLOCK = 1_000_000_000
_MOST_NAME = 255
_REASONS = RULES | {"special", "unreadable", "too_deep"}


class Capture:
    """Takes states of one workspace, and brings parts of them back.

    Every method raises ``SnapshotError`` when execd does not answer as it must.
    """

    def __init__(self, execution: Execution, root: Path, store: SnapshotStore) -> None:
        self._execution = execution
        self._root = str(root)
        self._store = store

    async def take(self, listed: asyncio.Event | None = None) -> Snapshot:
        """Keep the workspace's state; set ``listed`` when nothing later will count any more.

        What changes after that and before it is read is left out, and told. What the newest state
        holds is kept on though a rule names it now, as git goes on with what it tracks: else an
        agent that writes a rule would take from an undo what it changed.
        """
        plan = await self._planned()
        for _ in range(_LISTED_AGAIN):
            if plan.ruled_out:
                plan = await self._planned()
        if listed is not None:
            listed.set()
        for batch in _batches(plan):
            await self._read(batch)
        return await self._store.commit(plan, time.time())

    async def _planned(self) -> Plan:
        records, began = await self._list()
        with _understood():
            return await self._store.plan(records, lambda record: entries_of(record, began))

    async def _list(self) -> tuple[Mapping[str, bytes], int]:
        data = bytearray()
        asked = self._asked("list")
        async with asked as (reader, writer), asyncio.timeout(_LIST_SECONDS):
            await send_content(writer, _as_many(self._store.kept()))
            while (came := await read_frame(reader)) and came[0] is FrameKind.STDOUT:
                data += came[1]
                if len(data) > _MOST_LISTED:
                    raise _too_many()
            began = agreed(came)["began"]
            return await asyncio.to_thread(_records, data), _whole(began)

    async def _read(self, batch: Mapping[str, Seen]) -> None:
        """Read files' contents and keep them."""
        wanted = [(path, *seen.status) for path, seen in batch.items() if seen.status is not None]
        async with self._asked("contents", wanted=wanted) as (reader, _):
            stream, keeping = _ContentStream(reader), _Keeping(self._store)
            for seen in batch.values():
                await self._read_one(stream, keeping, seen)
            await keeping.flush()
            agreed(await stream.frame())

    async def _read_one(self, stream: "_ContentStream", keeping: "_Keeping", seen: Seen) -> None:
        how, size = FILE_HEAD.unpack(await stream.exactly(FILE_HEAD.size))
        if how != SENT:
            _lose(seen, "unreadable" if how == UNREADABLE else "changed")
            return
        if seen.status is None or size != seen.status.size:
            raise ProtocolError("a file has another length than it was said to have")
        seen.content = []
        while size > 0:
            piece = await stream.exactly(min(size, PIECE))
            size -= len(piece)
            await keeping.add(seen.content, piece)
        if await stream.exactly(1) != bytes([SENT]):
            await keeping.flush()
            _lose(seen, "changed")

    async def restore(self, steps: Sequence[RestoreStep]) -> dict[str, str]:
        """Take steps one after the other; return why some could not be taken, by path.

        All that they wrote is on the disk then.
        """
        refused: dict[str, str] = {}
        async with self._asked("restore") as (reader, writer):
            for step in (*steps, RestoreStep("sync", ".", {}, [])):
                about = {"do": step.do, "path": step.path, **step.about}
                async with asyncio.timeout(_STEP_SECONDS):
                    await send(writer, json_frame(FrameKind.JSON, about))
                if step.do == "file":
                    await send_content(writer, self._content(step.pieces), _STEP_SECONDS)
                async with asyncio.timeout(_STEP_SECONDS):
                    said = agreed(await read_frame(reader))
                if said["code"] is not None:
                    refused.setdefault(step.path, str(said["code"])[:100])
        return refused

    async def _content(self, pieces: Sequence[str]) -> AsyncIterator[bytes]:
        for digest in pieces:
            yield await self._store.read(digest)

    @asynccontextmanager
    async def _asked(self, verb: str, **about: Any) -> AsyncIterator[tuple[Reader, Writer]]:
        with _understood():
            asking = self._execution.exchange("snapshots", verb=verb, root=self._root, **about)
            async with asking as (_, reader, writer):
                yield reader, writer


@contextmanager
def _understood() -> Iterator[None]:
    """Turn all that execd can do wrong into an error that says so."""
    try:
        yield
    except (
        ExecutionError,
        ProtocolError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        reason = reason_of(error)
        raise SnapshotError(f"The workspace's state cannot be told: {reason}") from error


class _ContentStream:
    """Bytes that come in frames."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._data = bytearray()

    async def exactly(self, length: int) -> bytes:
        while len(self._data) < length:
            came = await self.frame()
            if came is None or came[0] is not FrameKind.STDOUT:
                agreed(came)  # a refusal says more
                raise ProtocolError("the content ended too early")
            self._data += came[1]
        found = bytes(self._data[:length])
        del self._data[:length]
        return found

    async def frame(self) -> tuple[FrameKind, bytes] | None:
        async with asyncio.timeout(_SILENCE_SECONDS):
            return await read_frame(self._reader)


class _Keeping:
    """Keeps pieces many at a time; each one's digest is added to the list that it came with."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._pieces: list[tuple[list[str], bytes]] = []
        self._size = 0

    async def add(self, digests: list[str], piece: bytes) -> None:
        self._pieces.append((digests, piece))
        self._size += len(piece)
        if self._size >= _BATCH_BYTES or len(self._pieces) >= _BATCH_PIECES:
            await self.flush()

    async def flush(self) -> None:
        kept = await self._store.keep([piece for _, piece in self._pieces])
        for (digests, _), digest in zip(self._pieces, kept, strict=True):
            digests.append(digest)
        self._pieces, self._size = [], 0


async def _as_many(paths: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield as many paths as execd takes."""
    room = MOST_KEPT
    async for text in paths:
        room -= len(text)
        if room < 0:
            return
        yield text


def _lose(seen: Seen, reason: str) -> None:
    seen.kind, seen.content, seen.settled = "x", reason, False


def _batches(plan: Plan) -> Iterator[dict[str, Seen]]:
    batch: dict[str, Seen] = {}
    size = 0
    for folder, name, seen in plan.wanted:
        path = entry_path(folder, name)
        batch[path] = seen
        size += 6 * len(path) + 100
        if len(batch) >= _BATCH_FILES or size > _BATCH_TEXT:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


# What a list must be.


def _records(data: bytearray) -> dict[str, bytes]:
    """Return the records of a list by their folders' paths, those above first.

    Each is charged with what it takes in memory, and each entry with its whole path, for that is
    what differences and undos are told by: a short list could else be more than agentd has.
    """
    found: dict[str, bytes] = {}
    place, view, room = 0, memoryview(data), _MOST_LISTED - len(data)
    while place < len(data):
        path_length, length = RECORD.unpack_from(data, place)
        start = place + RECORD.size
        place = start + path_length + length
        if place > len(data) or len(found) >= _MOST_FOLDERS:
            raise ProtocolError("a list is none")
        path = str(view[start : start + path_length], "utf-8")
        if path in found or path.count("/") > MOST_DEPTH or len(path) > MOST_PATH:
            raise ProtocolError("a folder is told of twice, or too deep")
        found[path] = bytes(view[start + path_length : place])
        room -= found[path].count(b",") * _VALUE_COST
        room -= found[path].count(b"[") * _MOST_OF_CHARACTER * len(path)  # no entry lacks one
        if room < 0:
            raise _too_many()
    if not found.get("", b"").startswith(b"["):
        raise ProtocolError("the workspace itself is not told of")
    return found


def _too_many() -> SnapshotError:
    return SnapshotError("The workspace holds more files than a state can have.")


def entries_of(record: bytes, began: int) -> Folder:
    """Return what a record says of a folder: its entries by name, or why it is left out.

    Raises:
        ProtocolError: it is none; so do TypeError and ValueError tell (``_understood``).
    """
    said = parse_json(record)
    if isinstance(said, str):
        return _reason(said)
    if not isinstance(said, list):
        raise ProtocolError("a record is none")
    found: dict[str, Seen] = {}
    for entry in said:
        name, seen = _entry(entry, began)
        if name in found:
            raise ProtocolError("a name is told twice")
        found[name] = seen
    return found


def _entry(said: Any, began: int) -> tuple[str, Seen]:
    name, kind, *rest = said
    if (name, kind) != ("", "x"):  # all else that a folder holds which is left out
        _check_name(name)
    match kind, rest:
        case "f", [mode, size, *numbers]:
            # A time may lie before 1970; the last is the number of an inode.
            signed = (whole_number(number, _MOST_NUMBER, -_MOST_NUMBER) for number in numbers)
            status = FileStatus(_whole(size), *signed)
            # The clock of changes goes in steps: within one, another change would not show.
            settled = status.changed < began - _STEP_OF_CLOCK
            return name, Seen("f", _whole(mode) & 0o7777, None, status, settled)
        case "d", [mode]:
            return name, Seen("d", _whole(mode) & 0o7777)
        case "l", [str(target)] if len(target) <= MOST_DATA:
            return name, Seen("l", 0, target)
        case "x", [str(reason)]:
            return name, Seen("x", 0, _reason(reason))
    raise ProtocolError("an entry is none")


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or "/" in name:
        raise ProtocolError("a name is none")
    plain_name = name.isascii() and name.isprintable() and "\\" not in name
    if plain_name and 0 < len(name) <= _MOST_NAME and name not in {".", ".."}:
        return
    try:
        (plain,) = parts_of(name)
    except RefusedError as error:
        raise ProtocolError("a name is none") from error
    if shown(plain) != name:
        raise ProtocolError("a name is not written as names are")


def _reason(said: str) -> str:
    return said if said in _REASONS else "special"


def _whole(said: Any) -> int:
    return whole_number(said, _MOST_NUMBER)
