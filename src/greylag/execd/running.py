"""A program that execd runs for agentd: how it starts, what it is told, what it says, its end."""

import asyncio
import fcntl
import os
import select
import signal
import socket
import struct
import termios
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from greylag.execd.protocol import (
    GROUP,
    MOST_DATA,
    FrameKind,
    HeldBytes,
    ProtocolError,
    Reader,
    RefusedError,
    Writer,
    frame,
    json_frame,
    read_frame,
    read_object,
    send,
    text_in,
    texts_in,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

_LOOK_SECONDS = 0.2
_QUIET_SECONDS = 1.0
_HANG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP
_KEYS = (termios.VINTR, termios.VQUIT, termios.VSUSP)

T = TypeVar("T")


class _Terminal(NamedTuple):
    """A pseudo-terminal: our side, open, and the path of its process's."""

    near: int
    far: str


class Started:
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
        """Make its terminal, if it has one, as large."""
        if self._terminal is not None:
            _set_size(self._terminal.near, rows, columns)

    async def write(self, data: bytes) -> None:
        """Write to its stdin, and return once there is room for more."""
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
        """Let its stdin end; a terminal's does not."""
        if self._terminal is None and self._stdin is not None:
            self._stdin.close()

    def close(self) -> None:
        """Let go of our ends."""
        if self._terminal is not None and self._stdin is not None:
            _abort(self._stdin)
        self._ends.close()


async def start(request: dict[str, Any], group: str, environ: Mapping[str, str]) -> Started:
    """Start what a request asks for, as one of a group, with ``environ`` and what is asked beside.

    Raises:
        RefusedError: the request is not of its form, or the program cannot be started.
    """
    argv = request.get("argv")
    if not isinstance(argv, list) or not argv or not all(isinstance(one, str) for one in argv):
        raise RefusedError("invalid_request", "argv is not a list of texts.")
    env = {**environ, **texts_in(request, "env"), GROUP: group}
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
            return Started(process, stdin_of, outputs, terminal, ours.pop_all())
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


async def attend(started: Started, reader: Reader, writer: Writer, *, paced: bool) -> None:
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


async def _exited(started: Started, outputs: list[asyncio.Task[None]], writer: Writer) -> None:
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
    await send(writer, json_frame(FrameKind.EXIT, {"code": code}))


async def _carry(kind: FrameKind, output: Reader, writer: Writer, started: Started) -> None:
    with suppress(OSError):  # a terminal says EIO at its end; a connection that is gone ends all
        while data := await output.read(MOST_DATA):
            await send(writer, frame(kind, data))
            started.spoke = asyncio.get_running_loop().time()


class _Input:
    """What a process is told, kept until it reads it, so that it holds back nothing else."""

    def __init__(self, started: Started, writer: Writer, *, paced: bool) -> None:
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


async def _take_input(started: Started, reader: Reader, stdin: _Input) -> None:
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
