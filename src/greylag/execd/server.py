"""execd's server: one operation for each connection on its unix socket."""

import asyncio
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import termios
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from greylag.execd import file_server, ports, processes, snapshots
from greylag.execd.protocol import (
    GROUP,
    MOST_DATA,
    VERSION,
    FrameKind,
    HeldBytes,
    ProtocolError,
    Reader,
    RefusedError,
    Writer,
    agree,
    frame,
    json_frame,
    pipe,
    read_frame,
    read_object,
    text_in,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

_REAP_SECONDS = 10.0
_LOOK_SECONDS = 0.2
_QUIET_SECONDS = 1.0
_MOST_WAITING = 64
_MOST_PORTS = 200
_REQUEST_SECONDS = 10.0
_LINGER_SECONDS = 5.0
_HANG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP
_KEYS = (termios.VINTR, termios.VQUIT, termios.VSUSP)
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: unix(7)

T = TypeVar("T")


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
        server = await asyncio.start_unix_server(self._answer, sock=listener)
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
        except (ProtocolError, TimeoutError, OSError):
            writer.transport.abort()
        finally:
            with suppress(OSError, RuntimeError):  # RuntimeError: uvloop, on a closed connection
                await _linger(reader, writer)
                writer.close()
                await writer.wait_closed()

    async def _hello(self, _request: dict[str, Any], _reader: Reader, writer: Writer) -> None:
        await agree(writer, pid=os.getpid(), python=platform.python_version())

    async def _end(self, request: dict[str, Any], _reader: Reader, writer: Writer) -> None:
        wanted: dict[str, str | frozenset[str]] = {**_texts(request, "environ")}
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
            started = await _started(request, group, self._environ)
            self._owned.add(started.process.pid)
            paced = request.get("paced") is True
            await agree(writer, pid=started.process.pid, paced=paced)
            await _attend(started, reader, writer, paced=paced)
        finally:
            self._runs -= 1
            if started is not None:
                await self._end_run(started, group)

    async def _end_run(self, started: "_Started", group: str) -> None:
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
        near = self._waiting.pop(int(request.get("number") or 0), None)
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


class _Terminal(NamedTuple):
    """A pseudo-terminal: our side, open, and the path of its process's."""

    near: int
    far: str


class _Started:
    """A process that runs, with our ends of its pipes, its sockets or its terminal.

    Attributes:
        spoke: when it said something last, on the loop's clock.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        stdin: Writer,
        outputs: list[tuple[FrameKind, Reader]],
        terminal: _Terminal | None,
        ends: ExitStack,
    ) -> None:
        self.process = process
        self.outputs = outputs
        self.spoke = 0.0
        self._ends = ends
        self._stdin: Writer | None = stdin
        self._terminal = terminal

    def resize(self, rows: int, columns: int) -> None:
        if self._terminal is not None:
            _set_size(self._terminal.near, rows, columns)

    async def write(self, data: bytes) -> None:
        if self._stdin is None and self._terminal is not None:
            self._stdin = await _writer_to(self._terminal.near)
        if self._stdin is not None:
            self._stdin.write(data)
            await self._stdin.drain()

    def interrupts(self, typed: bytes) -> int:
        """Return where the last key is at which a terminal signals its program; -1: nowhere."""
        if self._terminal is None:
            return -1
        with suppress(termios.error):  # nobody has it open any more
            _, _, _, flags, _, _, keys = termios.tcgetattr(self._terminal.near)
            if flags & termios.ISIG and not flags & termios.NOFLSH:
                signalling = {keys[one] for one in _KEYS} - {b"\0"}
                return max((typed.rfind(key) for key in signalling), default=-1)
        return -1

    def forget_typed(self) -> None:
        """Throw away what was typed and not read, as the terminal does once such a key comes to be
        looked at: behind more than it holds, which nobody reads, it never would.
        """
        if self._stdin is None or self._terminal is None:
            return
        _abort(self._stdin)
        self._stdin = None
        # Ours alone would leave what its program could read already.
        with suppress(OSError, termios.error):
            theirs = os.open(self._terminal.far, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                termios.tcflush(theirs, termios.TCIFLUSH)
            finally:
                os.close(theirs)

    def end_input(self) -> None:
        if self._terminal is None and self._stdin is not None:
            self._stdin.close()

    def close(self) -> None:
        if self._terminal is not None and self._stdin is not None:
            _abort(self._stdin)
        self._ends.close()


async def _started(request: dict[str, Any], group: str, environ: Mapping[str, str]) -> _Started:
    argv = request.get("argv")
    if not isinstance(argv, list) or not argv or not all(isinstance(one, str) for one in argv):
        raise RefusedError("invalid_request", "argv is not a list of texts.")
    env = {**environ, **_texts(request, "env"), GROUP: group}
    size, cwd = request.get("terminal"), text_in(request, "cwd")
    stdin = stdout = stderr = asyncio.subprocess.PIPE
    terminal, writer, reader = None, None, None
    try:
        with ExitStack() as ours, ExitStack() as theirs:
            if size is not None:
                terminal, stdin, reader, writer = await _terminal(size, ours, theirs)
                stdout = stderr = stdin
            elif request.get("private") is True:
                stdin, _, writer = await _socket(ours, theirs)
                stdout, reader, _ = await _socket(ours, theirs)
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=env,
                start_new_session=True,
                preexec_fn=None if terminal is None else _take_terminal,
                limit=MOST_DATA,
            )
            outputs = [(FrameKind.STDOUT, _there(reader or process.stdout))]
            outputs += [] if process.stderr is None else [(FrameKind.STDERR, process.stderr)]
            stdin_of = _there(writer or process.stdin)
            return _Started(process, stdin_of, outputs, terminal, ours.pop_all())
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no more threads
        reason = getattr(error, "strerror", None) or str(error)
        # Python names the folder where the process could not get into that.
        is_folder = getattr(error, "filename", None) == cwd
        what = "its folder cannot be entered: " if is_folder else ""
        sentence = f"{argv[0]} cannot be started: {what}{reason}."
        raise RefusedError("not_started", sentence) from error


async def _socket(ours: ExitStack, theirs: ExitStack) -> tuple[int, Reader, Writer]:
    """Return a socket to be a process's stdin or stdout, with our end of it.

    A pipe any other process of its user could open again, below /proc, and so speak as this process
    and to it. The kernel opens no socket so.
    """
    near, far = socket.socketpair()
    theirs.callback(far.close)
    reader, writer = await asyncio.open_connection(sock=near, limit=MOST_DATA)
    ours.callback(lambda: writer.transport.abort())  # noqa: PLW0108 - one let go of would close it
    return far.fileno(), reader, writer


async def _terminal(
    size: Any, ours: ExitStack, theirs: ExitStack
) -> tuple[_Terminal, int, Reader, Writer]:
    """Return a terminal of this size, a process's end of it, and what it says and is told."""
    rows, columns = _size(size)
    near, far = os.openpty()
    ours.callback(os.close, near)
    theirs.callback(os.close, far)
    _set_size(near, rows, columns)
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(MOST_DATA)
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(near), "rb", buffering=0)
    )
    writer = await _writer_to(near)
    ours.callback(_abort, writer)
    return _Terminal(near, _name_of(far)), far, reader, writer


def _abort(writer: Writer) -> None:
    """Let go of a pipe that may be let go of already, or have failed: asyncio's bear no second
    time.
    """
    if not writer.transport.is_closing():
        writer.transport.abort()


def _name_of(terminal: int) -> str:
    """Return a terminal's path; "" where it has none here."""
    with suppress(OSError):
        return os.ttyname(terminal)
    return ""


async def _writer_to(terminal: int) -> Writer:
    """Return a writer that waits for room: a program that reads nothing takes little."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()),
        os.fdopen(os.dup(terminal), "wb", buffering=0),
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


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


async def _attend(started: _Started, reader: Reader, writer: Writer, *, paced: bool) -> None:
    """Carry what is said both ways until the process has ended or the connection does."""
    outputs = [
        asyncio.create_task(_carry(kind, output, writer, started), name=f"carry {kind.name}")
        for kind, output in started.outputs
    ]
    stdin = _Input(started, writer, paced=paced)
    inputs = asyncio.create_task(_take_input(started, reader, stdin), name="input")
    feeding = asyncio.create_task(stdin.feed(), name="feed")
    exited = asyncio.create_task(_exited(started, outputs, writer), name="exit")
    try:
        await asyncio.wait({inputs, exited}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (inputs, feeding, exited, *outputs):
            task.cancel()
        await asyncio.wait({inputs, feeding, exited, *outputs})


async def _exited(started: _Started, outputs: list[asyncio.Task[None]], writer: Writer) -> None:
    code = await started.process.wait()
    # What it started may hold its pipes open, and speaks to nobody any more. But what it has said
    # is still to come, when agentd is slow to read it.
    loop = asyncio.get_running_loop()
    ended, left = loop.time(), set(outputs)
    while left:
        _, left = await asyncio.wait(left, timeout=_LOOK_SECONDS)
        unread = writer.transport.get_write_buffer_size() > 0
        if not unread and loop.time() - max(ended, started.spoke) > _QUIET_SECONDS:
            break
    writer.write(json_frame(FrameKind.EXIT, {"code": code}))
    await writer.drain()


async def _carry(kind: FrameKind, output: Reader, writer: Writer, started: _Started) -> None:
    with suppress(OSError):  # a terminal says EIO at its end; a connection that is gone ends all
        while data := await output.read(MOST_DATA):
            writer.write(frame(kind, data))
            await writer.drain()
            started.spoke = asyncio.get_running_loop().time()


class _Input:
    """What a process is told, kept until it reads it, so that it holds back nothing else."""

    def __init__(self, started: _Started, writer: Writer, *, paced: bool) -> None:
        self._started = started
        self._writer = writer
        self._paced = paced
        self._waiting = HeldBytes()
        self._over = False
        self._hung_up = _hung_up(writer)

    async def take(self, data: bytes) -> bool:
        """Keep input once there is room for it; return whether there was any as long as agentd is
        connected. For what is paced there is.
        """
        if self._over:
            self._told(len(data))
            return True
        at = self._started.interrupts(data)
        if at >= 0:
            self._started.forget_typed()
            self._told(await self._waiting.drop() + at)
        return await _while_asked(self._waiting.feed(data[max(at, 0) :]), self._hung_up)

    async def end(self) -> None:
        """Let it hear of the input's end, after all of it."""
        self._over = True
        await self._waiting.end()

    async def feed(self) -> None:
        """Tell it all, as it reads it."""
        while data := await self._waiting.read(MOST_DATA):
            with suppress(OSError):  # it reads no more; its end will be told
                await self._started.write(data)
            self._told(len(data))
        self._started.end_input()

    def _told(self, taken: int) -> None:
        if self._paced and taken:
            self._writer.write(json_frame(FrameKind.TAKEN, {"bytes": taken}))


async def _take_input(started: _Started, reader: Reader, stdin: _Input) -> None:
    while (came := await read_frame(reader)) is not None:
        kind, body = came
        match kind:
            case FrameKind.STDIN:
                if not await stdin.take(body):
                    return
            case FrameKind.STDIN_END:
                await stdin.end()
            case FrameKind.RESIZE:
                started.resize(*_size(read_object(body).get("size")))
            case FrameKind.KILL:
                with suppress(ProcessLookupError):
                    started.process.send_signal(_signal(read_object(body)))
            case _:
                raise ProtocolError(f"{kind.name} has no place here")


async def _while_asked(work: "Coroutine[Any, Any, None]", hung_up: Callable[[], object]) -> bool:
    """Do the work, as long as somebody waits for it; return whether it was done."""
    doing = asyncio.create_task(work, name="take")
    try:
        while not doing.done():
            await asyncio.wait({doing}, timeout=_LOOK_SECONDS)
            if not doing.done() and hung_up():
                return False
        await doing
    finally:
        doing.cancel()
    return True


def _hung_up(writer: Writer) -> Callable[[], object]:
    """Return what tells whether agentd has closed a connection, though much of it is unread."""
    poll = select.poll()
    poll.register(writer.get_extra_info("socket").fileno(), _HANG_UP)
    return lambda: poll.poll(0)


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


def _texts(request: dict[str, Any], name: str) -> dict[str, str]:
    value = request.get(name)
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise RefusedError("invalid_request", f"{name} is not an object of texts.")
    return value


def _choices(value: Any) -> dict[str, frozenset[str]]:
    lists = value.values() if isinstance(value, dict) else [None]
    if not all(isinstance(one, list) and all(isinstance(v, str) for v in one) for one in lists):
        raise RefusedError("invalid_request", "any is not an object of lists of texts.")
    return {name: frozenset(values) for name, values in value.items()}


def _size(size: Any) -> tuple[int, int]:
    if isinstance(size, list) and len(size) == 2:  # noqa: PLR2004 - rows and columns
        rows, columns = size
        if type(rows) is int and type(columns) is int and min(size) > 0 and max(size) < 1 << 15:
            return rows, columns
    raise RefusedError("invalid_request", "A terminal's size is two numbers, rows and columns.")


def _set_size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _signal(about: dict[str, Any]) -> signal.Signals:
    try:
        return signal.Signals(int(about.get("signal") or 0))
    except (ValueError, TypeError) as error:
        raise ProtocolError("there is no such signal") from error


def _there(end: T | None) -> T:
    if end is None:
        raise RefusedError("not_started", "It was started without pipes.")
    return end
