"""A proxy on MongoDB's wire that makes the faults of a network and of a replica set, as told.

It understands just enough: the frame of a message (length, id, the id answered, opcode) and the
OP_MSG with one document (https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/).
Clients must connect with ``directConnection=true``, lest they learn the server's own address.
"""

import asyncio
import random
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

import bson

_HEADER = struct.Struct("<iiii")
_OP_MSG = 2013
_BODY = 5  # flags, and the kind of the first section
_FAULTY = frozenset({"find", "insert", "update", "delete", "findAndModify", "aggregate"})
_WRITES = frozenset({"insert", "update", "delete", "findAndModify"})


class Fault(Enum):
    """What happens to one command. The first three never reach the server."""

    UNAUTHORIZED = "refused to who may only read"

    NOT_PRIMARY = "answered as by a server that is not the primary"
    CUT_BEFORE = "the connection ends"
    STEP_DOWN = "done, then answered as by a primary that steps down"
    CUT_REPLY = "done, and the connection ends in the middle of the reply"
    WRITE_CONCERN = "done, and not replicated in time"
    SLOW = "done, and the reply waits until `hurry` is set"


_ERRORS = {
    Fault.UNAUTHORIZED: (13, "Unauthorized"),
    Fault.NOT_PRIMARY: (10107, "NotWritablePrimary"),
    Fault.STEP_DOWN: (11602, "InterruptedDueToReplStateChange"),
}


@dataclass(slots=True)
class _Plan:
    """Faults to come: a list for each command, then by chance."""

    listed: list[tuple[str, Fault]] = field(default_factory=list)
    dice: random.Random | None = None
    rate: float = 0.0
    kinds: tuple[Fault, ...] = ()

    def take(self, command: str) -> Fault | None:
        for place, (name, fault) in enumerate(self.listed):
            if name == command:
                del self.listed[place]
                return fault
        if self.dice is None or command not in _FAULTY or self.dice.random() >= self.rate:
            return None
        fault = self.dice.choice(self.kinds)
        return None if fault is Fault.WRITE_CONCERN and command not in _WRITES else fault


class WireProxy:
    """Listens on a port of its own and passes on what it does not spoil."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 27017)
        self._plan = _Plan()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._port = 0
        self.hurry = asyncio.Event()
        self.seen: Counter[str] = Counter()
        self.made: Counter[Fault] = Counter()

    @property
    def uri(self) -> str:
        """What clients connect to."""
        # The server behind does not know of the faults, so it does not tell of them by itself.
        options = "directConnection=true&serverMonitoringMode=poll"
        return f"mongodb://127.0.0.1:{self._port}/?{options}"

    def inject(self, command: str, fault: Fault, times: int = 1) -> None:
        """Spoil the next ``times`` of this command."""
        self._plan.listed += [(command, fault)] * times

    def storm(self, seed: int, rate: float, *kinds: Fault) -> None:
        """Spoil this share of all commands, in ways chosen by chance."""
        self._plan = _Plan(dice=random.Random(seed), rate=rate, kinds=kinds)  # noqa: S311 - the same storm again

    def calm(self) -> None:
        """Spoil nothing more."""
        self._plan = _Plan()

    async def accept(self) -> None:
        """Take connections, on the same port as before."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """End all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        try:
            upstream = await asyncio.open_connection(*self._upstream)
            await self._relay((reader, writer), upstream)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _relay(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        link = _Link(self, client[1], upstream[1])
        pumps = {
            asyncio.create_task(_pump(client[0], link.ask)),
            asyncio.create_task(_pump(upstream[0], link.answer)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            upstream[1].close()

    def fault_for(self, message: bytes) -> Fault | None:
        """Return what is to happen to a client's message."""
        if _HEADER.unpack_from(message)[3] != _OP_MSG:
            return None
        command = next(iter(_document(message)))
        self.seen[command] += 1
        fault = self._plan.take(command)
        if fault is not None:
            self.made[fault] += 1
        return fault


class _Link:
    """One client's connection to the server."""

    def __init__(
        self, proxy: WireProxy, client: asyncio.StreamWriter, upstream: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._upstream = upstream
        self._spoiled: dict[int, Fault] = {}

    async def ask(self, message: bytes) -> None:
        """Take a message of the client's."""
        fault = self._proxy.fault_for(message)
        number = _HEADER.unpack_from(message)[1]
        if fault is Fault.CUT_BEFORE:
            raise ConnectionAbortedError
        if fault in {Fault.NOT_PRIMARY, Fault.UNAUTHORIZED}:
            await _send(self._client, _refusal(number, fault))
            return
        if fault is not None:
            self._spoiled[number] = fault
        await _send(self._upstream, _without_deadline(message))

    async def answer(self, message: bytes) -> None:
        """Take a message of the server's."""
        number = _HEADER.unpack_from(message)[2]
        match self._spoiled.pop(number, None):
            case Fault.CUT_REPLY:
                await _send(self._client, message[: len(message) // 2])
                raise ConnectionAbortedError
            case Fault.STEP_DOWN as fault:
                message = _refusal(number, fault)
            case Fault.WRITE_CONCERN:
                message = _not_replicated(message)
            case Fault.SLOW:
                await self._proxy.hurry.wait()
        await _send(self._client, message)


@asynccontextmanager
async def proxied(upstream: str) -> AsyncIterator[WireProxy]:
    """Put a proxy before the server at the URI ``upstream``."""
    proxy = WireProxy(upstream)
    await proxy.accept()
    try:
        yield proxy
    finally:
        await proxy.refuse()


async def _pump(reader: asyncio.StreamReader, take: Callable[[bytes], Awaitable[None]]) -> None:
    with suppress(OSError, asyncio.IncompleteReadError):
        while True:
            header = await reader.readexactly(_HEADER.size)
            rest = await reader.readexactly(_HEADER.unpack(header)[0] - _HEADER.size)
            await take(header + rest)


async def _send(writer: asyncio.StreamWriter, message: bytes) -> None:
    writer.write(message)
    await writer.drain()


def _document(message: bytes) -> dict[str, Any]:
    start = _HEADER.size + _BODY
    (length,) = struct.unpack_from("<i", message, start)
    found: dict[str, Any] = bson.decode(message[start : start + length])
    return found


def _without_deadline(message: bytes) -> bytes:
    """Return a command without its ``maxTimeMS``, which differs with each attempt.

    MongoDB knows a write that is tried again by its session and number; SecantusDB by all of it.
    """
    start = _HEADER.size + _BODY
    length, number, answered, opcode = _HEADER.unpack_from(message)
    if opcode != _OP_MSG:
        return message
    document = _document(message)
    (old,) = struct.unpack_from("<i", message, start)
    document.pop("maxTimeMS", None)
    new = bson.encode(document)
    header = _HEADER.pack(length - old + len(new), number, answered, opcode)
    return header + message[_HEADER.size : start] + new + message[start + old :]


def _reply(number: int, document: dict[str, Any]) -> bytes:
    body = struct.pack("<iB", 0, 0) + bson.encode(document)
    return _HEADER.pack(_HEADER.size + len(body), 0, number, _OP_MSG) + body


def _refusal(number: int, fault: Fault) -> bytes:
    code, name = _ERRORS[fault]
    return _reply(
        number,
        {
            "ok": 0.0,
            "code": code,
            "codeName": name,
            "errmsg": "made by the proxy",
            "errorLabels": [] if fault is Fault.UNAUTHORIZED else ["RetryableWriteError"],
        },
    )


def _not_replicated(message: bytes) -> bytes:
    number = _HEADER.unpack_from(message)[2]
    error = {"code": 64, "codeName": "WriteConcernTimeout", "errmsg": "made by the proxy"}
    return _reply(number, _document(message) | {"writeConcernError": error})
