"""The `greylag` program, as a script runs it (pipes) and as a person does (a terminal).

``run``, ``start`` and ``on_terminal`` start the real program. ``call`` runs the same command line
in this process, for tests that prove what a command does and not how a process begins and ends.
"""

import asyncio
import contextlib
import io
import json
import os
import pty
import re
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from greylag.cli.main import main

PATIENCE = 60
GREYLAG = [sys.executable, "-m", "greylag"]
# Makes the terminal on stdin the one whose Ctrl-C reaches the program.
_ON_TERMINAL = (
    "import fcntl, os, sys, termios;"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Its standard output as the one JSON document that it must be."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Its standard output as one JSON document a line."""
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Coroutine[Any, Any, Done]]
"""What the fixture ``cli`` is: words of the command line, and ``stdin``."""


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return a clean environment with ``given`` in it."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    no_keyring = {"PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring"}
    return {**kept, **no_keyring, "LANG": "C.UTF-8", "TERM": "xterm", "COLUMNS": "120", **given}


async def call(*words: str, env: Mapping[str, str]) -> Done:
    """Run a command line in a thread of this process; not for `chat`, which takes signals.

    While it runs, the standard streams and the environment of the whole process are its own.
    """
    out, err = _stream(), _stream()
    with (
        patch.dict(os.environ, environment(env), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = await asyncio.to_thread(main, words)
    return Done(code, _text(out), _text(err))


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


async def start(*words: str, env: Mapping[str, str]) -> Process:
    """Start the program with pipes."""
    return await asyncio.create_subprocess_exec(
        *GREYLAG, *words, env=environment(env), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )


async def run(
    *words: str, env: Mapping[str, str], stdin: bytes = b"", patience: float = PATIENCE
) -> Done:
    """Run the program with pipes to its end."""
    process = await start(*words, env=env)
    return await finish(process, stdin, patience)


async def finish(process: Process, stdin: bytes = b"", patience: float = PATIENCE) -> Done:
    """Give a started program its input and wait for its end, so many seconds at most."""
    async with asyncio.timeout(patience):
        out, err = await process.communicate(stdin)
    return Done(process.returncode or 0, out.decode(), err.decode())


class Terminal:
    """A program on a terminal, and what it has shown so far."""

    def __init__(self, process: Process, master: int) -> None:
        self._process = process
        self._master = master
        self._news = asyncio.Event()
        self._seen = 0
        self.raw = b""
        asyncio.get_running_loop().add_reader(master, self._read)

    @property
    def text(self) -> str:
        """All that was shown, without colours, with plain line ends."""
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw.decode("utf-8", "replace"))
        return shown.replace("\r", "")

    async def until(self, words: str) -> None:
        """Wait until ``words`` are shown, after what an earlier call has waited for."""
        async with asyncio.timeout(PATIENCE):
            while (at := self.text.find(words, self._seen)) < 0:
                self._news.clear()
                await self._news.wait()
        self._seen = at + len(words)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    async def interrupt_to_its_end(self) -> int:
        """Press Ctrl-C until the program has ended, and return its exit code.

        Once is enough for a person, but readline loses one that comes in the instant between the
        prompt and its wait for keys.
        """
        async with asyncio.timeout(PATIENCE):
            while self._process.returncode is None:
                self.type("\x03")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), 5)
        return await self._process.wait()

    async def end(self) -> int:
        """Wait for the program's end and return its exit code."""
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()

    def _read(self) -> None:
        try:
            self.raw += os.read(self._master, 65536)
        except OSError:
            # The other side is closed: the program has ended.
            asyncio.get_running_loop().remove_reader(self._master)
        self._news.set()

    def close(self) -> None:
        """Stop reading."""
        asyncio.get_running_loop().remove_reader(self._master)


@asynccontextmanager
async def on_terminal(*words: str, env: Mapping[str, str]) -> AsyncIterator[Terminal]:
    """Start the program on a terminal of its own; it is killed when the block ends."""
    master, slave = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _ON_TERMINAL,
        *GREYLAG,
        *words,
        env=environment(env),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    terminal = Terminal(process, master)
    try:
        yield terminal
    finally:
        terminal.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)
