"""Questions to the person at the terminal."""

import asyncio
import os
import sys
import termios

import click

from greylag.cli.errors import DeclinedError
from greylag.cli.text import one_line

YES = {"y", "yes"}


def somebody_is_there() -> bool:
    """Tell whether a question can be shown and answered."""
    return sys.stdin.isatty() and sys.stderr.isatty()


async def confirm(question: str, *, yes: bool) -> None:
    """Return when the person agrees, or has agreed with --yes.

    Raises ``DeclinedError`` when they do not, ``click.UsageError`` where nobody can be asked.
    """
    if yes:
        return
    if not somebody_is_there():
        raise click.UsageError("Nobody can be asked here: add --yes to delete without asking.")
    drop_typed()
    sys.stderr.write(f"{one_line(question)} [y/N] ")
    sys.stderr.flush()
    answer = await read_line()
    if not answer:
        sys.stderr.write("\n")
    if answer.strip().lower() not in YES:
        raise DeclinedError("Nothing was deleted.")


def drop_typed() -> None:
    """Forget what was typed before a question: it cannot be meant as its answer."""
    termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


async def read_line() -> str:
    """Return the next line typed, empty at the end of input.

    The loop goes on meanwhile, so that Ctrl-C, or an answer given elsewhere, can end the wait.
    """
    terminal = sys.stdin.fileno()
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str] = loop.create_future()
    loop.add_reader(terminal, _take_line, terminal, line)
    try:
        return await line
    finally:
        loop.remove_reader(terminal)


def _take_line(terminal: int, line: asyncio.Future[str]) -> None:
    # The terminal hands over whole lines, and is ready only when it has one.
    typed = os.read(terminal, 4096).decode("utf-8", "replace")
    if not line.done():
        line.set_result(typed)
