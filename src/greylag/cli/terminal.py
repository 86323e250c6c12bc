"""`greylag shell` and `greylag exec`: a shell of a project's workspace, and single commands.

What they say goes to this terminal as it is, as with ssh: nothing is made harmless on the way.
"""

import asyncio
import json
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click

from greylag.cli.access import Access, api_command, task_group
from greylag.cli.errors import CliError, OutputLostError, ServerUnreachableError
from greylag.cli.output import writing_output
from greylag.cli.transport import ServerSocket

_IN, _OUT, _ERR = 0, 1, 2
_STDERR = b"\x02"  # what begins a message of a command's stderr
_AT_ONCE = 32 * 1024
_MOST_COMMAND = 63 * 1024  # of a message of 64 KiB
_MOST_AHEAD = 256 * 1024
_OLDER_SECONDS = 2.0  # in which a server tells what was read that tells it at all
_SIGNALLED = 128
_LOST = 255
# Shows the cursor, and ends the alternate screen, the mouse's reports, marked pastes and colours:
# what a program has begun that is no longer there to end it.
_RESET = b"\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[0m"


class _DetachedError(Exception):
    """The person has asked to leave."""


@click.command()
@click.argument("project")
@click.option("--terminal", metavar="ID", help="Attach to this one, which is there already.")
@click.option("--list", "as_list", is_flag=True, help="List the project's terminals instead.")
@api_command
async def shell(access: Access, *, project: str, terminal: str | None, as_list: bool) -> int | None:
    """Open a shell in a project's workspace; the exit code is the shell's.

    The project must be active. After Enter, `~.` leaves the shell running, and --terminal comes
    back to it; `~~` types a `~`.
    """
    terminals = (*(await access.place(project)).path, "terminals")
    if as_list:
        found = (await access.api.get(*terminals))["terminals"]
        rows = ((one["terminal_id"], _state(one), str(one["attached"])) for one in found)
        columns = ("ID", "STATE", "ATTACHED")
        access.output.listing({"terminals": found}, columns, rows, empty="There are no terminals.")
        return None
    if access.output.json or not _on_terminal():
        hint = f"`greylag exec {project} -- COMMAND` runs a command without one."
        raise CliError("A shell needs a terminal on both ends.", hint)
    if terminal is None:
        terminal = str((await access.api.post(*terminals, body=_size()))["terminal_id"])
    again = f"`greylag shell {project} --terminal {terminal}` goes on with it."
    try:
        async with access.api.socket(*terminals, terminal) as socket:
            return await _talk(socket, on_terminal=True, marked=False)
    except _DetachedError:
        access.output.note(f"The shell runs on: {again}")
        return None
    except ServerUnreachableError as error:
        raise ServerUnreachableError(
            error.message, again, connected=error.connected, passes=error.passes
        ) from error


def _state(terminal: dict[str, Any]) -> str:
    if not terminal["ended"]:
        return "running"
    code = terminal["exit_code"]
    return "lost" if code is None else f"ended with {code}"


@click.command(name="exec")
@click.argument("project")
@click.argument("argv", metavar="-- COMMAND ...", nargs=-1, required=True)
@click.option("-t", "wants_terminal", is_flag=True, help="On a terminal, if this is one.")
@click.option("-C", "folder", metavar="FOLDER", default="", help="Below the workspace.")
@api_command
async def exec_(
    access: Access,
    *,
    project: str,
    argv: Sequence[str],
    wants_terminal: bool,
    folder: str,
) -> int:
    """Run a command in a project's workspace; the exit code is the command's.

    The project must be active. Standard input goes to the command; its outputs stay apart. It ends
    with this program.

    Example: greylag exec search -- make test
    """
    if access.output.json:
        raise click.UsageError("--json: what a command prints is its own.")
    if len(json.dumps(argv)) > _MOST_COMMAND:
        raise click.UsageError("COMMAND: it is longer than 63 KiB; put it into a file.")
    on_terminal = wants_terminal and _on_terminal()
    run: dict[str, Any] = {"argv": list(argv), "folder": folder}
    if on_terminal:
        run["terminal"] = _size()
    place = await access.place(project)
    async with access.api.socket(*place.path, "commands") as socket:
        await socket.send({"run": run})
        try:
            return await _talk(socket, on_terminal=on_terminal, marked=True)
        except _DetachedError:
            return _LOST


async def _talk(socket: ServerSocket, *, on_terminal: bool, marked: bool) -> int:
    """Carry both ways until the other side tells an exit code, which is returned.

    Args:
        socket: the connection.
        on_terminal: whether this terminal is the other side's.
        marked: whether what comes begins with the byte that tells stdout from stderr.
    """
    ahead = _Ahead()
    if not on_terminal:
        return await _carry(socket, _sending(socket, ahead), ahead, marked=marked)
    with _raw():
        return await _carry(socket, _typing(socket), ahead, marked=marked)


class _Ahead:
    """How far what is sent may be ahead of what the command has read: what is behind that, a ping's
    answer or our leaving, would not be heard.
    """

    def __init__(self) -> None:
        self._sent = 0
        self._read: int | None = None
        self._is_told = asyncio.Event()
        self._all = False

    def tell(self, read: int) -> None:
        """Take how much it has read."""
        self._read, self._all = read, False
        self._is_told.set()

    async def room(self, size: int) -> None:
        """Return once so much more may be sent: at once where an older server tells nothing."""
        self._sent += size
        while self._sent - (self._read or 0) > _MOST_AHEAD and not self._all:
            within = _OLDER_SECONDS if self._read is None else None
            self._is_told.clear()
            try:
                async with asyncio.timeout(within):
                    await self._is_told.wait()
            except TimeoutError:
                self._all = True


async def _carry(socket: ServerSocket, sending: Any, ahead: _Ahead, *, marked: bool) -> int:
    async with task_group() as tasks:
        inputs = tasks.create_task(sending, name="input")
        code = await _printing(socket, ahead, marked=marked)
        inputs.cancel()
    if code is None:
        raise CliError("How it ended is not known: the environment lost it.")
    return code if code >= 0 else _SIGNALLED - code


async def _printing(socket: ServerSocket, ahead: _Ahead, *, marked: bool) -> int | None:
    while True:
        came = await socket.receive()
        if isinstance(came, bytes):
            to = _ERR if marked and came[:1] == _STDERR else _OUT
            await asyncio.to_thread(_print, to, came[1:] if marked else came)
        elif isinstance(taken := came.get("taken"), int):
            ahead.tell(taken)
        elif "exit" in came:
            code: int | None = came["exit"]
            return code


def _print(descriptor: int, data: bytes) -> None:
    with writing_output():
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:  # whoever has the terminal, too, may have made it so
                select.select([], [descriptor], [])


async def _sending(socket: ServerSocket, ahead: _Ahead) -> None:
    async for data in _input():
        await ahead.room(len(data))
        await socket.send(data)
    await socket.send({"end_input": True})


async def _typing(socket: ServerSocket) -> None:
    escape = Escape()
    async with task_group() as tasks:
        resizing = tasks.create_task(_resizing(socket), name="resize")
        async for data in _input():
            if typed := escape.passed(data):
                await socket.send(typed)
            if escape.left:
                raise _DetachedError
        resizing.cancel()


async def _resizing(socket: ServerSocket) -> None:
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    changed.set()
    loop.add_signal_handler(signal.SIGWINCH, changed.set)
    try:
        while await changed.wait():
            changed.clear()
            await socket.send({"resize": _size()})
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


async def _input() -> AsyncIterator[bytes]:
    """Yield what comes on standard input, whatever it is."""
    while True:
        await _readable(_IN)
        data = await asyncio.to_thread(os.read, _IN, _AT_ONCE)
        if not data:
            return
        yield data


async def _readable(descriptor: int) -> None:
    """Return as soon as a read would not wait, so that no thread is left that waits for ever."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:  # a file, which never lets a reader wait
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


class Escape:
    """What is typed, without the person's words to this program: `~.` and `~~` after a line's end.

    Attributes:
        left: whether they asked to leave.
    """

    def __init__(self) -> None:
        self.left = False
        self._begins = True
        self._marked = False

    def passed(self, data: bytes) -> bytes:
        """Return what of it is for the other side."""
        passed = bytearray()
        for key in data:
            if self._marked:
                self._marked = False
                if key == ord("."):
                    self.left = True
                    break
                passed += b"" if key == ord("~") else b"~"
            elif self._begins and key == ord("~"):
                self._marked = True
                continue
            passed.append(key)
            self._begins = key in b"\r\n"
        return bytes(passed)


@contextmanager
def _raw() -> Iterator[None]:
    """Pass every key on as it is typed, until the block ends."""
    before = termios.tcgetattr(_IN)
    tty.setraw(_IN, termios.TCSADRAIN)  # what was typed ahead is kept
    try:
        yield
    finally:
        with suppress(OSError, OutputLostError):
            _print(_OUT, _RESET)
        termios.tcsetattr(_IN, termios.TCSADRAIN, before)
        with suppress(OSError, OutputLostError):
            _print(_ERR, b"\n")


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _size() -> dict[str, int]:
    columns, rows = os.get_terminal_size(_OUT)
    return {"rows": max(1, min(rows, 1000)), "columns": max(1, min(columns, 1000))}
