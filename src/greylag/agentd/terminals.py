"""Terminals: shells of the workspace that outlive the connections of those who look at them.

agentd keeps the last of what each says, so that whoever attaches sees it first. What a reader does
not take is held back, never piled up: a program waits for the quickest of its readers, as it does
for a real terminal, and of several the slower ones miss what has left the scrollback.
"""

import asyncio
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import structlog

from greylag.agentd.agent.types import AgentSetup, base_environment
from greylag.agentd.execution import Execution, ExecutionError, ExecutionRefusedError, RemoteProcess
from greylag.agentd.problems import RequestError, invalid, not_found
from greylag.common import agent_api
from greylag.common.clock import rfc3339
from greylag.common.concurrent import cancel_all
from greylag.execd.protocol import MOST_DATA

MOST_TERMINALS = 8
MOST_COMMANDS = 16
SCROLLBACK = 256 * 1024
"""How many bytes of what a terminal said are kept."""
_AHEAD = MOST_DATA
_SHELLS = (("/bin/bash", "-l"), ("/bin/sh", "-l"))

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TerminalOutput:
    """A piece of what a terminal said; ``skipped`` bytes before it are lost to this reader."""

    data: bytes
    skipped: int = 0


class Scrollback:
    """The last of a stream of bytes; each byte has its number, counted from the first."""

    def __init__(self, most: int = SCROLLBACK) -> None:
        self._most = most
        self._kept = bytearray()
        self.start = 0

    @property
    def end(self) -> int:
        """The number of the byte that comes next."""
        return self.start + len(self._kept)

    def add(self, data: bytes) -> None:
        """Keep what came; what is past the limit goes."""
        self._kept += data
        if len(self._kept) > self._most:
            self.start += len(self._kept) - self._most
            del self._kept[: -self._most]

    def read(self, position: int, most: int) -> bytes:
        """Return up to ``most`` bytes from a number on that is kept."""
        first = position - self.start
        return bytes(self._kept[first : first + most])

    def first_line(self) -> int:
        """Return where what is kept begins to make sense: after a line's end, if it was cut."""
        return self.start + (self._kept.find(b"\n") + 1 if self.start else 0)


class TerminalReader:
    """One who looks at a terminal, from the first line that is kept.

    Attributes:
        position: the number of the byte that it reads next.
        replay: how many bytes of before come first.
    """

    def __init__(self, terminal: "RunningTerminal") -> None:
        self._terminal = terminal
        self.position = terminal.scrollback.first_line()
        self.replay = terminal.scrollback.end - self.position

    async def read(self) -> TerminalOutput | None:
        """Return what comes next, as soon as there is some; None once all is read and it ended."""
        kept = self._terminal.scrollback
        await self._terminal.until(lambda: self.position < kept.end or self._terminal.ended)
        skipped = max(0, kept.start - self.position)
        data = kept.read(self.position + skipped, MOST_DATA)
        self.position += skipped + len(data)
        self._terminal.wake()
        return TerminalOutput(data, skipped) if data else None


class RunningTerminal:
    """A shell on a terminal, and what it said last.

    Attributes:
        id: its id.
        rows, columns: its size.
        scrollback: what it said last.
        typed: how many bytes it was told.
        ended: whether its shell has ended.
        exit_code: the shell's; None before that, or when execd was lost.
    """

    def __init__(self, process: RemoteProcess, rows: int, columns: int) -> None:
        self.id = secrets.token_hex(6)
        self.rows, self.columns = rows, columns
        self.scrollback = Scrollback()
        self.typed = 0
        self._changed = asyncio.Event()
        self.ended = False
        self.exit_code: int | None = None
        self._process = process
        self._started_at = datetime.now(UTC)
        self._readers: set[TerminalReader] = set()

    def shown(self) -> agent_api.Terminal:
        """Return it as the API shows it."""
        return agent_api.Terminal(
            terminal_id=self.id,
            rows=self.rows,
            columns=self.columns,
            started_at=rfc3339(self._started_at),
            attached=len(self._readers),
            ended=self.ended,
            exit_code=self.exit_code,
        )

    @property
    def is_watched(self) -> bool:
        """Whether anybody is attached while it runs."""
        return bool(self._readers) and not self.ended

    @contextmanager
    def attached(self) -> Iterator[TerminalReader]:
        """Look at it until the block ends."""
        reader = TerminalReader(self)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            self.wake()

    def wake(self) -> None:
        """Let all look again who wait ``until`` something is so."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, true: Callable[[], bool]) -> None:
        """Return as soon as something is so that is only changed before a ``wake``."""
        while not true():
            await self._changed.wait()

    async def write(self, data: bytes) -> None:
        """Type; returns when there is room for more. After its end nothing happens.

        Raises:
            OSError: execd is gone.
        """
        if not self.ended:
            self.typed += len(data)
            self._process.write(data)
            await self._process.drain()

    async def resize(self, rows: int, columns: int) -> None:
        """Give it another size; returns when there is room for more."""
        self.rows, self.columns = rows, columns
        if not self.ended:
            self._process.resize(rows, columns)
            with suppress(OSError):  # it has ended, which is told
                await self._process.drain()

    async def run(self) -> None:
        """Take what it says until it ends; then nothing that it started lives on."""
        try:
            while data := await self._process.stdout.read(MOST_DATA):
                self.scrollback.add(data)
                self.wake()
                await self.until(self._is_read)
            self.exit_code = await self._process.wait()
        except ExecutionError as error:
            _log.warning("terminal_lost", terminal=self.id, error=str(error))
        finally:
            await self._process.end()
            self.ended = True
            self.wake()

    def _is_read(self) -> bool:
        """Tell whether it may say more: nobody is attached, or somebody has read nearly all."""
        positions = [one.position for one in self._readers]
        return not positions or max(positions) + _AHEAD > self.scrollback.end


class Terminals:
    """The terminals of an environment, and its single commands. ``close`` ends them all.

    Args:
        execution: the way to execd.
        setup: the folders of the other side.
    """

    def __init__(self, execution: Execution, setup: AgentSetup) -> None:
        self._execution = execution
        self._setup = setup
        self._terminals: dict[str, RunningTerminal] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._starting = asyncio.Lock()
        self._commands = 0

    def all(self) -> list[RunningTerminal]:
        """Return all, oldest first."""
        return list(self._terminals.values())

    def get(self, terminal_id: str) -> RunningTerminal:
        """Return one.

        Raises:
            RequestError: terminal_not_found.
        """
        if terminal_id not in self._terminals:
            raise not_found("terminal", terminal_id)
        return self._terminals[terminal_id]

    async def start(self, rows: int, columns: int) -> RunningTerminal:
        """Start a shell; the oldest that has ended makes room for it.

        Raises:
            RequestError: limit_exceeded, or not_started.
        """
        async with self._starting:
            ended = [one for one in self._terminals.values() if one.ended]
            if len(self._terminals) - len(ended) >= MOST_TERMINALS:
                reason = f"{MOST_TERMINALS} terminals run already: end one of them."
                raise RequestError("limit_exceeded", reason)
            process = await self._start(self._setup.workspace, (rows, columns), *_SHELLS)
            if len(self._terminals) >= MOST_TERMINALS:
                await self.end(ended[0].id)
            terminal = RunningTerminal(process, rows, columns)
            self._terminals[terminal.id] = terminal
            name = f"terminal {terminal.id}"
            self._running[terminal.id] = asyncio.create_task(terminal.run(), name=name)
            return terminal

    async def end(self, terminal_id: str) -> None:
        """End one, and forget it.

        Raises:
            RequestError: terminal_not_found.
        """
        self.get(terminal_id)
        del self._terminals[terminal_id]
        await cancel_all([self._running.pop(terminal_id)])

    async def close(self) -> None:
        """End all of them."""
        async with self._starting:
            ends = (self.end(one) for one in list(self._terminals))
            for result in await asyncio.gather(*ends, return_exceptions=True):
                # One that somebody else has ended meanwhile is not there any more.
                if isinstance(result, Exception) and not isinstance(result, RequestError):
                    _log.error("terminal_not_ended", exc_info=result)

    @contextmanager
    def place_for_command(self) -> Iterator[None]:
        """Count a command until the block ends.

        Raises:
            RequestError: limit_exceeded.
        """
        if self._commands >= MOST_COMMANDS:
            raise RequestError("limit_exceeded", f"{MOST_COMMANDS} commands run already.")
        self._commands += 1
        try:
            yield
        finally:
            self._commands -= 1

    async def run(
        self, argv: Sequence[str], *, folder: str = "", size: tuple[int, int] | None = None
    ) -> RemoteProcess:
        """Start a program in a folder of the workspace; whoever asked for it ends it.

        Args:
            argv: the program and its arguments.
            folder: below the workspace, which is where paths without it begin.
            size: rows and columns, for a terminal.

        Raises:
            RequestError: not_started, or invalid_request for a folder that is none.
        """
        inside = PurePosixPath(folder)
        if inside.is_absolute() or ".." in inside.parts or "\0" in folder:
            raise invalid("folder must be a path below the workspace.")
        return await self._start(self._setup.workspace / inside, size, argv)

    async def _start(
        self, folder: Path, size: tuple[int, int] | None, *programs: Sequence[str]
    ) -> RemoteProcess:
        """Start the first of some programs that can be."""
        try:
            await self._execution.make_folders(self._setup.folders)
            for argv in programs[:-1]:
                try:
                    return await self._run(argv, folder, size)
                except ExecutionRefusedError as error:
                    _log.info("shell_not_started", shell=argv[0], error=str(error))
            return await self._run(programs[-1], folder, size)
        except ExecutionError as error:
            raise RequestError("not_started", str(error)) from error

    async def _run(
        self, argv: Sequence[str], folder: Path, size: tuple[int, int] | None
    ) -> RemoteProcess:
        env = _environment(self._setup, argv[0])
        group = secrets.token_hex(8)
        return await self._execution.run(
            argv, env=env, cwd=folder, group=group, terminal=size, paced=True
        )


def _environment(setup: AgentSetup, program: str) -> Mapping[str, str]:
    """Return what a person's programs get over execd's own variables; of ours no secret."""
    shell = {"SHELL": program} if any(program == known for known, _ in _SHELLS) else {}
    return {
        **base_environment(setup, os.environ),
        **shell,
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
    }
