"""agentd's way to execd: processes that run on the untrusted side, as if they were its own.

What comes back is another's word: lengths are bounded as they arrive, and nothing of it is taken
for more than bytes, an exit code and pids.
"""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from greylag.common.backoff import backoff
from greylag.common.concurrent import cancel_all
from greylag.common.typed import encodable
from greylag.execd.protocol import (
    FRAME_HEAD,
    MOST_INPUT,
    MOST_JSON,
    VERSION,
    FrameKind,
    HeldBytes,
    ProtocolError,
    Reader,
    Writer,
    frame,
    frames,
    json_frame,
    pipe,
    read_frame,
    read_object,
    send,
    send_data,
)

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
_END_SECONDS = 10.0
_STEADY_SECONDS = 10.0
_LAST_WORDS_SECONDS = 1.0
_MOST_CONNECTIONS = 128
_MOST_WORDS = 500
_MOST_PORTS = 200
_LONGEST_NAME = 64
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0


_log = structlog.get_logger(__name__)


class ExecutionError(Exception):
    """execd cannot be reached or does not keep to the protocol; the message says what happened."""


class ExecutionRefusedError(ExecutionError):
    """execd refused an operation.

    Attributes:
        code: ``not_started``, ``not_listening``, ``invalid_request``, ...
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RemoteOutput(HeldBytes):
    """What a process says on one of its outputs; a slow reader holds the process back."""


class RemoteProcess:
    """A process that execd runs. ``end`` it: then all that it started is dead.

    Attributes:
        pid: its id in execd's own process namespace.
        stdout, stderr: what it says; a terminal has no stderr.
        is_paced: whether it is told how much of its input is read.
        written, taken: how many bytes its input has, and how many of them it has read.
    """

    def __init__(self, pid: int, reader: Reader, writer: Writer, *, paced: bool = False) -> None:
        self.pid = pid
        self.stdout = RemoteOutput()
        self.stderr = RemoteOutput()
        self._reader = reader
        self._writer = writer
        self.written = self.taken = 0
        self.is_paced = paced
        self._unsent: deque[bytes] = deque()
        self._on_way = 0
        self._moved = asyncio.Event()
        self._over = False
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pumping = asyncio.create_task(self._pump(), name=f"execd process {pid}")

    def write(self, data: bytes) -> None:
        """Send to its stdin; ``drain`` waits for room."""
        self.written += len(data)
        self._unsent.extend(frames(FrameKind.STDIN, data))
        self._send_input()

    async def drain(self) -> None:
        """Wait until more may be written.

        Raises:
            OSError: execd is gone.
        """
        while self._unsent and not self._over:
            await self.input_moved()
        await self._writer.drain()

    async def input_moved(self) -> None:
        """Wait until some of its input was written or taken."""
        self._moved.clear()
        await self._moved.wait()

    def end_input(self) -> None:
        """Close its stdin, once it has read all that was written."""
        self._unsent.append(frame(FrameKind.STDIN_END))
        self._send_input()

    def _send_input(self) -> None:
        """Send as much of its input as may be on its way."""
        while self._unsent and (not self.is_paced or self._on_way < MOST_INPUT):
            one = self._unsent.popleft()
            self._on_way += len(one) - FRAME_HEAD
            self._send(one)
        self._moved.set()

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal."""
        self._send(json_frame(FrameKind.RESIZE, {"size": [rows, columns]}))

    def send_signal(self, number: int) -> None:
        """Signal the process itself, if it runs still."""
        self._send(json_frame(FrameKind.KILL, {"signal": number}))

    def _send(self, data: bytes) -> None:
        """Send; what comes after its end is for nobody."""
        with suppress(OSError, RuntimeError):  # RuntimeError: uvloop, on a closed connection
            self._writer.write(data)

    async def wait(self) -> int:
        """Return its exit code, negative for a signal.

        Raises:
            ExecutionError: execd went away before it told.
        """
        return await asyncio.shield(self._exit)

    async def end(self) -> None:
        """Kill it with all that it started; return when they are gone."""
        with suppress(OSError, RuntimeError):  # RuntimeError: uvloop, on a closed connection
            if self._writer.transport.get_write_buffer_size():
                self._writer.transport.abort()  # its end would wait for what nobody reads
            else:
                self._writer.write_eof()
        if not self._pumping.done():
            await self._finish()
        await cancel_all([self._pumping])
        await _closed(self._writer)

    async def _finish(self) -> None:
        """Wait for its end; one that nobody reads any more must not wait for a reader."""
        _, waits = await asyncio.wait({self._pumping}, timeout=_LAST_WORDS_SECONDS)
        if waits:
            await self.stdout.end()
            await self.stderr.end()
            await asyncio.wait(waits, timeout=_END_SECONDS)

    async def _pump(self) -> None:
        reason = "execd went away"
        try:
            while (came := await read_frame(self._reader)) is not None:
                await self._take(*came)
        except (ProtocolError, OSError) as error:
            reason = f"execd does not keep to the protocol: {error}"
        finally:
            self._over = True
            self._moved.set()
            await self.stdout.end()
            await self.stderr.end()
            if not self._exit.done():
                self._exit.set_exception(ExecutionError(f"{reason}."))
                self._exit.exception()  # nobody need ask

    async def _take(self, kind: FrameKind, body: bytes) -> None:
        match kind:
            case FrameKind.STDOUT:
                await self.stdout.feed(body)
            case FrameKind.STDERR:
                await self.stderr.feed(body)
            case FrameKind.EXIT:
                code = read_object(body).get("code")
                if type(code) is not int:
                    raise ProtocolError("an exit code is no number")
                if not self._exit.done():
                    self._exit.set_result(code)
                await self.stdout.end()
                await self.stderr.end()
            case FrameKind.TAKEN:
                taken = whole_number(read_object(body).get("bytes"), MOST_JSON)
                self._on_way = max(0, self._on_way - taken)
                self.taken += taken
                self._send_input()
            case _:
                raise ProtocolError(f"{kind.name} has no place here")


class Execution:
    """execd, found at a unix socket.

    Args:
        path: the socket. It must lie where only execd or we ourselves can put things: what is
            connected to here is given the agent's messages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def hello(self) -> Mapping[str, Any]:
        """Return what execd tells of itself."""
        async with self.exchange("hello") as (facts, _, _):
            return facts

    async def run(  # noqa: PLR0913 - all that a process is given
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        group: str,
        terminal: tuple[int, int] | None = None,
        private: bool = False,
        paced: bool = False,
    ) -> RemoteProcess:
        """Start a process.

        Args:
            argv: the program and its arguments.
            env: all of its environment.
            cwd: where it starts.
            group: a name by which all that it starts is found; of a run of its own.
            terminal: rows and columns, for a process that gets a terminal; None: pipes.
            private: whether no other process may open its stdin and stdout: they are sockets then,
                which programs that open ``/dev/stdout`` do not take.
            paced: whether input that it does not read waits here, so that signals and sizes reach
                it all the same. Its output must be read meanwhile, as that is what tells of room.

        Raises:
            ExecutionRefusedError: it cannot be started.
        """
        facts, reader, writer = await self._ask(
            "run",
            argv=list(argv),
            env=dict(env),
            cwd=str(cwd),
            group=group,
            terminal=None if terminal is None else list(terminal),
            private=private,
            paced=paced,
        )
        pid = facts.get("pid")
        if type(pid) is not int:
            writer.transport.abort()
            raise ExecutionError("execd told no process id.")
        # An execd of an older version paces nothing.
        return RemoteProcess(pid, reader, writer, paced=facts.get("paced") is True)

    async def end_matching(
        self, group: str, environ: Mapping[str, Sequence[str]], since: float
    ) -> None:
        """Kill what in a group has these variables and has begun since then.

        Args:
            group: of the run that it belongs to.
            environ: further environment variables that it has, each with the values it may have;
                an execd of an older version looks for the first ones alone.
            since: a value of ``process_clock``.
        """
        firsts = {name: values[0] for name, values in environ.items()}
        every = {name: list(values) for name, values in environ.items()}
        async with self.exchange("end", group=group, environ=firsts, since=since, any=every):
            return

    async def make_folders(self, paths: Sequence[Path]) -> None:
        """Make folders where they are not, and those on the way to them."""
        async with self.exchange("folders", paths=[str(one) for one in paths]):
            return

    @asynccontextmanager
    async def listening(
        self, host: str, port: int, ended: asyncio.Event | None = None
    ) -> AsyncIterator[int]:
        """Let the untrusted side reach one port of ours; yield the port by which it does.

        Every connection to that port of its loopback becomes one to ``host`` and ``port`` here,
        until execd goes away: then ``ended`` is set.
        """
        async with self.exchange("listen") as (facts, reader, _):
            inside = facts.get("port")
            if type(inside) is not int:
                raise ExecutionError("execd told no port.")
            tasks: set[asyncio.Task[None]] = set()
            taking = asyncio.create_task(
                self._take_connections(reader, (host, port), tasks), name="connections from execd"
            )
            if ended is not None:
                taking.add_done_callback(lambda _: ended.set())
            try:
                yield inside
            finally:
                await cancel_all([taking, *tasks])

    async def ports(self) -> list[tuple[int, str]]:
        """Return the ports on which the untrusted side listens, each with a process's name."""
        async with self.exchange("ports") as (facts, _, _):
            said = facts.get("ports")
        if not isinstance(said, list):
            raise ExecutionError("execd told no ports.")
        found = []
        for one in said[:_MOST_PORTS]:
            port, name = (one.get("port"), one.get("process")) if isinstance(one, dict) else (0, 0)
            if type(port) is not int or not 0 < port < 1 << 16 or not isinstance(name, str):
                raise ExecutionError("execd told a port that is none.")
            found.append((port, encodable(name[:_LONGEST_NAME])))
        return found

    async def connect(self, port: int) -> tuple[Reader, Writer]:
        """Return a connection to a port on which the untrusted side listens.

        Raises:
            ExecutionRefusedError: ``not_listening``.
        """
        _, reader, writer = await self._ask("connect", port=port)
        return reader, writer

    async def _take_connections(
        self, reader: Reader, target: tuple[str, int], tasks: set[asyncio.Task[None]]
    ) -> None:
        try:
            while (came := await read_frame(reader)) is not None:
                number = read_object(came[1]).get("number")
                if len(tasks) >= _MOST_CONNECTIONS:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                task = asyncio.create_task(self._join(number, target), name="connection from execd")
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        except (ProtocolError, OSError) as error:
            _log.warning("execd_connections_ended", error=str(error))

    async def _join(self, number: Any, target: tuple[str, int]) -> None:
        try:
            _, far_reader, far_writer = await self._ask("accept", number=number)
        except ExecutionError:
            return
        try:
            near_reader, near_writer = await asyncio.open_connection(*target)
        except OSError:
            await _closed(far_writer)  # that is how whoever connected hears of it
            return
        await joined((near_reader, near_writer), (far_reader, far_writer))

    @asynccontextmanager
    async def exchange(
        self, operation: str, **about: Any
    ) -> AsyncIterator[tuple[Mapping[str, Any], Reader, Writer]]:
        """Ask for an operation; yield execd's answer, and the connection until the block ends."""
        facts, reader, writer = await self._ask(operation, **about)
        try:
            yield facts, reader, writer
        finally:
            await _closed(writer)

    async def _ask(self, operation: str, **about: Any) -> tuple[Mapping[str, Any], Reader, Writer]:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(self._path))
        except OSError as error:  # TimeoutError is one
            raise ExecutionError(f"execd cannot be reached: {reason_of(error)}.") from error
        try:
            request = {"version": VERSION, "operation": operation, **about}
            await send(writer, json_frame(FrameKind.JSON, request))
            async with asyncio.timeout(_ANSWER_SECONDS):
                return agreed(await read_frame(reader)), reader, writer
        except (OSError, ProtocolError) as error:
            writer.transport.abort()
            raise ExecutionError(f"execd did not answer: {reason_of(error)}.") from error
        except BaseException:
            writer.transport.abort()
            raise


class ExecdProcess:
    """execd as a child of ours, started again whenever it ends.

    Its socket is made here and sent to it by its stdin (what the sandbox needs may close all other
    descriptors), so that nobody on the untrusted side can put another in its place.

    Args:
        command: what runs execd, with the sandbox around it; ``--sent`` is appended.
        path: where the socket is, in a folder that the untrusted side cannot see; at most about
            100 characters (unix(7)), which a path from the current folder keeps to anywhere.
        env: execd's environment.
    """

    def __init__(self, command: Sequence[str], path: Path, env: Mapping[str, str]) -> None:
        self._command = command
        self._path = path
        self._env = env

    async def run(self) -> None:
        """Keep it running until cancelled; then it is dead, and all that it started."""
        self._path.unlink(missing_ok=True)
        failed = 0
        with _listener(self._path) as listener:
            while True:
                began = asyncio.get_running_loop().time()
                try:
                    await self._live(listener)
                except OSError as error:
                    _log.error("execd_not_started", error=str(error))
                steady = asyncio.get_running_loop().time() - began > _STEADY_SECONDS
                failed = 0 if steady else failed + 1
                await asyncio.sleep(backoff(failed, _FIRST_PAUSE, _LONGEST_PAUSE))

    async def _live(self, listener: socket.socket) -> None:
        ours, its = socket.socketpair()
        with ours:
            with its:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    "--sent",
                    stdin=its.fileno(),  # its end tells execd that we are gone
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,  # our own is a file that it could shorten
                    cwd="/",
                    env=dict(self._env),
                    start_new_session=True,
                )
                socket.send_fds(ours, [b"s"], [listener.fileno()])
            try:
                said = await _last_words(process)
                _log.error("execd_ended", code=await process.wait(), said=said)
            finally:
                if process.returncode is None:
                    ours.close()
                    await asyncio.shield(_ended(process))


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    return listener


async def _last_words(process: asyncio.subprocess.Process) -> str:
    """Read stderr to its end and return the last of it."""
    said = b""
    while process.stderr is not None and (data := await process.stderr.read(_MOST_WORDS)):
        said = (said + data)[-_MOST_WORDS:]
    return said.decode("utf-8", "replace").strip()


async def joined(near: tuple[Reader, Writer], far: tuple[Reader, Writer]) -> None:
    """Carry bytes between two connections until the near one, which is ours, ends; close both.

    The far one may say and close nothing for ever. That it has said its last the near one hears.
    """
    try:
        async with asyncio.TaskGroup() as both:
            back = both.create_task(pipe(far[0], near[1]), name="from far to near")
            await pipe(near[0], far[1])
            await _flushed(far[1])
            back.cancel()
    finally:
        near[1].transport.abort()
        far[1].transport.abort()  # before anything is waited for, which may be cancelled again
        await _closed(near[1])
        await _closed(far[1])


async def send_content(
    writer: Writer, content: AsyncIterator[bytes], within: float | None = None
) -> None:
    """Send content to its end, in constant memory.

    Raises:
        OSError: the connection is closed.
        TimeoutError: nothing of a frame was taken ``within`` so many seconds (``None``: for ever).
    """
    async for data in content:
        await send_data(writer, FrameKind.STDIN, data, within)
    await send(writer, frame(FrameKind.STDIN_END))


def reason_of(error: Exception) -> str:
    """Return what an error on the way to execd says, for those that say nothing themselves too."""
    return str(error) or (
        "it took too long" if isinstance(error, TimeoutError) else type(error).__name__
    )


def whole_number(said: Any, below: int, least: int = 0) -> int:
    """Return a whole number that execd says, at least ``least`` and less than ``below``.

    Raises:
        ProtocolError: it is none.
    """
    if type(said) is not int or not least <= said < below:
        raise ProtocolError("a number is none")
    return said


def agreed(came: tuple[FrameKind, bytes] | None) -> Mapping[str, Any]:
    """Return what a frame of execd's says is done.

    Raises:
        ExecutionRefusedError: it is not.
        ProtocolError: it is no answer.
    """
    if came is None or came[0] is not FrameKind.JSON:
        raise ProtocolError("no answer came")
    answer = read_object(came[1])
    if answer.get("ok") is True:
        return answer
    code, message = str(answer.get("code"))[:100], str(answer.get("message"))[:1000]
    raise ExecutionRefusedError(encodable(code), encodable(message))


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait for execd, whose stdin has ended, and end it by force when it does not heed that."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            await process.wait()
            return
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def _closed(writer: Writer) -> None:
    """Close a connection whose other side need not hear what is still unsent."""
    writer.transport.abort()
    with suppress(OSError):
        writer.close()
        await writer.wait_closed()


async def _flushed(writer: Writer) -> None:
    """Close a connection once what is unsent has gone, if that takes no longer than a while."""
    writer.close()
    with suppress(OSError):
        async with asyncio.timeout(_END_SECONDS):
            await writer.wait_closed()
