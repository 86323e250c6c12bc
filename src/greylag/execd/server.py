"""execd's server: one operation for each connection on its unix socket."""

import asyncio
import os
import platform
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from greylag.execd import file_server, ports, processes, snapshots
from greylag.execd.protocol import (
    GROUP,
    MOST_DATA,
    VERSION,
    FrameKind,
    ProtocolError,
    Reader,
    RefusedError,
    Writer,
    agree,
    json_frame,
    pipe,
    read_frame,
    read_object,
    text_in,
    texts_in,
)
from greylag.execd.running import Started, attend, start

if TYPE_CHECKING:
    from collections.abc import Awaitable

_REAP_SECONDS = 10.0
_MOST_WAITING = 64
_MOST_PORTS = 200
_REQUEST_SECONDS = 10.0
_LINGER_SECONDS = 5.0
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: unix(7)


class ExecServer:
    """Serves agentd.

    Args:
        client: the user id of whoever may connect; ``None``: all who can reach the socket.
        environ: what a process gets beside the variables that it is started with.
    """

    def __init__(self, client: int | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._client = client
        self._environ = dict(environ or {})
        self._clients: set[Writer] = set()
        self._alone = asyncio.Event()
        self._alone.set()
        self._runs = 0
        self._owned: set[int] = set()
        self._waiting: dict[int, tuple[Reader, Writer, Writer]] = {}
        self._accepted = 0
        self._looks = ports.Looks()
        self._operations: dict[str, Callable[[dict[str, Any], Reader, Writer], Awaitable[None]]] = {
            "hello": self._hello,
            "run": self._run,
            "end": self._end,
            "listen": self._listen,
            "accept": self._accept,
            "connect": self._connect,
            "folders": _folders,
            "ports": self._ports,
            "files": file_server.answer,
            "snapshots": snapshots.answer,
        }

    async def serve(self, listener: socket.socket) -> None:
        """Answer until cancelled; then nothing that was begun lives on."""
        processes.adopt_orphans()
        # `start_unix_server` removes the socket's file at its end, from Python 3.13 on; but it is
        # agentd's, who gives the socket to the next execd too.
        server = await asyncio.start_server(self._answer, sock=listener)
        async with server:
            try:
                await self._reap()
            finally:
                # From Python 3.12 on a server waits for its clients' connections to end.
                for client in self._clients:
                    client.transport.abort()

    async def alone(self) -> None:
        """Return as soon as nobody is connected."""
        await self._alone.wait()

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(_REAP_SECONDS)
            processes.reap(self._owned)

    async def _answer(self, reader: Reader, writer: Writer) -> None:
        if self._client not in {None, _user_of(writer)}:
            writer.transport.abort()
            return
        self._clients.add(writer)
        self._alone.clear()
        try:
            await self._do(reader, writer)
        finally:
            self._clients.discard(writer)
            if not self._clients:
                self._alone.set()

    async def _do(self, reader: Reader, writer: Writer) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                request = await _request(reader)
            operation = self._operations.get(str(request.get("operation")), _unknown)
            await operation(request, reader, writer)
        except RefusedError as error:
            answer = {"ok": False, "code": error.code, "message": str(error)}
            writer.write(json_frame(FrameKind.JSON, answer))
        except (ProtocolError, OSError):  # TimeoutError is an OSError
            writer.transport.abort()
        finally:
            with suppress(OSError, RuntimeError):  # RuntimeError: uvloop, on a closed connection
                await _linger(reader, writer)
                writer.close()
                await writer.wait_closed()

    async def _hello(self, _request: dict[str, Any], _reader: Reader, writer: Writer) -> None:
        await agree(writer, pid=os.getpid(), python=platform.python_version())

    async def _end(self, request: dict[str, Any], _reader: Reader, writer: Writer) -> None:
        wanted: dict[str, str | frozenset[str]] = {**texts_in(request, "environ")}
        wanted |= _choices(request.get("any", {}))
        wanted[GROUP] = text_in(request, "group")
        since = request.get("since")
        if not isinstance(since, int | float):
            raise RefusedError("invalid_request", "since is not a number.")
        left = await asyncio.to_thread(processes.end_matching, wanted, since)
        await agree(writer, left=left)

    async def _run(self, request: dict[str, Any], reader: Reader, writer: Writer) -> None:
        group, started = text_in(request, "group"), None
        self._runs += 1
        try:
            started = await start(request, group, self._environ)
            self._owned.add(started.process.pid)
            paced = request.get("paced") is True
            await agree(writer, pid=started.process.pid, paced=paced)
            await attend(started, reader, writer, paced=paced)
        finally:
            self._runs -= 1
            if started is not None:
                await self._end_run(started, group)

    async def _end_run(self, started: Started, group: str) -> None:
        if self._is_idle():
            processes.end_all()  # at once: none of them may take the port of an agentd that died
        process = started.process
        root = process.pid if process.returncode is None else None
        await to_its_end(processes.end_group, group, root, self._is_idle)
        await process.wait()
        self._owned.discard(process.pid)
        started.close()
        if self._is_idle():  # else what begins just now is not known as owned yet
            processes.reap(self._owned)

    def _is_idle(self) -> bool:
        return not self._runs

    async def _listen(self, _request: dict[str, Any], reader: Reader, writer: Writer) -> None:
        async def accepted(near_reader: Reader, near_writer: Writer) -> None:
            if len(self._waiting) >= _MOST_WAITING:
                near_writer.transport.abort()
                return
            self._accepted += 1
            self._waiting[self._accepted] = near_reader, near_writer, writer
            writer.write(json_frame(FrameKind.ACCEPTED, {"number": self._accepted}))

        server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        try:
            await agree(writer, port=server.sockets[0].getsockname()[1])
            await reader.read()  # nothing comes but its end
        finally:
            server.close()
            for number, (_, near_writer, asker) in list(self._waiting.items()):
                if asker is writer:
                    del self._waiting[number]
                    near_writer.transport.abort()

    async def _accept(self, request: dict[str, Any], reader: Reader, writer: Writer) -> None:
        number = request.get("number")
        near = self._waiting.pop(number, None) if type(number) is int else None
        if near is None:
            raise RefusedError("not_waiting", "No such connection waits.")
        await agree(writer)
        await _joined(near[:2], (reader, writer))

    async def _connect(self, request: dict[str, Any], reader: Reader, writer: Writer) -> None:
        port = request.get("port")
        found = await self._looks.listener(port) if type(port) is int else None
        near = await _connected(found)
        await agree(writer)
        await _joined(near, (reader, writer))

    async def _ports(self, _request: dict[str, Any], _reader: Reader, writer: Writer) -> None:
        found = (await self._looks.listeners())[:_MOST_PORTS]
        await agree(writer, ports=[{"port": one.port, "process": one.process} for one in found])


async def _linger(reader: Reader, writer: Writer) -> None:
    """Say no more, and return once agentd says no more either, or after a moment.

    What it sends on a connection that is closed already, the end of a program's input say, would
    be met by an error that takes from it what it has not read yet.
    """
    if writer.transport.is_closing():
        return
    writer.write_eof()
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while await reader.read(MOST_DATA):
                pass


async def _folders(request: dict[str, Any], _reader: Reader, writer: Writer) -> None:
    paths = request.get("paths")
    if not isinstance(paths, list) or not all(isinstance(one, str) for one in paths):
        raise RefusedError("invalid_request", "paths is not a list of texts.")
    for path in paths:
        try:
            await asyncio.to_thread(os.makedirs, path, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise RefusedError("not_made", f"{path}: {reason}.") from error
    await agree(writer)


async def _connected(found: ports.Listener | None) -> tuple[Reader, Writer]:
    reason = "none of the environment's processes"
    for address, port in [(one, found.port) for one in found.addresses] if found else ():
        try:
            return await asyncio.open_connection(address, port)
        except OSError as error:
            reason = str(error)
    raise RefusedError("not_listening", f"Nothing listens there: {reason}.")


async def _unknown(_request: dict[str, Any], _reader: Reader, _writer: Writer) -> None:
    raise RefusedError("unknown_operation", "There is no such operation.")


async def to_its_end(work: Callable[..., object], *args: object) -> None:
    """Do blocking work in a thread, all of it, however often the caller is cancelled meanwhile.

    Work that waits for a thread would be dropped by a cancellation, as at execd's end; then what it
    was to kill would live on.
    """
    doing = asyncio.get_running_loop().run_in_executor(None, work, *args)
    cancelled: asyncio.CancelledError | None = None
    while not doing.done():
        try:
            await asyncio.shield(doing)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _joined(one: tuple[Reader, Writer], other: tuple[Reader, Writer]) -> None:
    """Carry raw bytes both ways until both directions have ended."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pipe(one[0], other[1]), name="towards agentd")
        tasks.create_task(pipe(other[0], one[1]), name="from agentd")
    with suppress(OSError):
        one[1].close()
        await one[1].wait_closed()


def _user_of(writer: Writer) -> int:
    """Return the user id of the process at the other end."""
    made = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    _, user, _ = _CREDENTIALS.unpack(made)
    return int(user)


async def _request(reader: Reader) -> dict[str, Any]:
    came = await read_frame(reader)
    if came is None or came[0] is not FrameKind.JSON:
        raise ProtocolError("a connection begins with a request")
    request = read_object(came[1])
    if request.get("version") != VERSION:
        raise RefusedError("version", f"This execd speaks version {VERSION} of the protocol.")
    return request


def _choices(value: Any) -> dict[str, frozenset[str]]:
    lists = value.values() if isinstance(value, dict) else [None]
    if not all(isinstance(one, list) and all(isinstance(v, str) for v in one) for one in lists):
        raise RefusedError("invalid_request", "any is not an object of lists of texts.")
    return {name: frozenset(values) for name, values in value.items()}
