"""What only a person at a terminal gets: colours, lines broken between words, tables, a spinner.

Imported when there is a terminal, since it costs more than most commands themselves.
"""

import asyncio
import json
import os
import re
import sys
import termios
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

import click
from click.exceptions import NoArgsIsHelpError, NoSuchOption

from greylag.cli.errors import DeclinedError, OutputLostError

# Text from elsewhere, made harmless before it meets a terminal.
#
# An agent's answer, a log or a project's name may hold escape sequences that move the cursor,
# change the title, or write to the clipboard, and direction marks that show a command other than
# the one that runs. Each such character is replaced by a visible one; nothing else changes.

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTROL_PICTURES = 0x2400


def _table() -> dict[int, str | None]:
    table: dict[int, str | None] = {code: chr(_CONTROL_PICTURES + code) for code in range(0x20)}
    table |= dict.fromkeys(range(0x80, 0xA0), _REPLACEMENT)
    table |= dict.fromkeys(range(0xD800, 0xE000), _REPLACEMENT)
    directions = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x061C, 0x200E, 0x200F]
    table |= dict.fromkeys([*directions, 0x2028, 0x2029], _REPLACEMENT)
    table[0x7F] = "\N{SYMBOL FOR DELETE}"
    # A lone carriage return would let later text overwrite what was shown.
    table[ord("\r")] = None
    del table[ord("\n")], table[ord("\t")]
    return table


_VISIBLE = _table()
_ONE_LINE = {**_VISIBLE, ord("\n"): " ", ord("\t"): " "}


def visible(text: str) -> str:
    """Return ``text`` with nothing in it that a terminal would obey, but newline and tab."""
    return text.translate(_VISIBLE)


def one_line(text: str) -> str:
    """Return ``text`` as ``visible`` does, with spaces for newlines and tabs."""
    return text.translate(_ONE_LINE)


def shortened(text: str, length: int) -> str:
    """Return the first line of ``text`` made harmless, cut to ``length``, saying what is left."""
    lines = text.strip().splitlines() or [""]
    first = one_line(lines[0])
    if len(first) > length:
        first = first[: length - 3] + "..."
    more = len(lines) - 1
    return f"{first} (+{more} more line{'s' if more > 1 else ''})" if more else first


def moment(value: str | None) -> str:
    """Return an RFC 3339 time in UTC for people, to the second; `-` for none."""
    return "-" if value is None else one_line(value)[:19].replace("T", " ") + "Z"


# What a command prints: results on stdout, all else on stderr.
#
# With ``--json`` stdout holds one JSON document, or one per line for a stream, and nothing else.

if TYPE_CHECKING:
    from greylag.cli.terminal import Terminal


class Output:
    """The two streams of one command. ``json`` says that stdout is for a program.

    ``out`` and ``err`` are the streams as terminals, ``None`` where nobody sits at one.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.json = as_json
        self.out = _terminal(sys.stdout)
        self.err = _terminal(sys.stderr)

    def write(self, text: str) -> None:
        """Write to stdout as it stands, at once; a reader that does not read makes this wait.

        Raises ``OutputLostError`` when it cannot be written, ``BrokenPipeError`` without a reader.
        """
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputLostError(f"The output cannot be written: {error.strerror}.") from error

    def document(self, data: object) -> None:
        """Print one JSON document; only ASCII, so that it is safe on any terminal."""
        self.write(json.dumps(data) + "\n")

    def line(self, text: str) -> None:
        """Print one line of a result; ``text`` may come from anywhere."""
        self.write(one_line(text) + "\n")

    def heading(self, text: str) -> None:
        """Print one line of a result, bold on a terminal."""
        if self.out:
            self.out.piece(one_line(text) + "\n", "bold")
        else:
            self.line(text)

    def note(self, text: str, style: str = "dim") -> None:
        """Tell the person something, on stderr."""
        if self.err:
            self.err.say(visible(text), style)
        else:
            sys.stderr.write(visible(text) + "\n")

    def piece(self, text: str, style: str = "") -> None:
        """Print a piece of a longer text on stderr, as it stands."""
        if self.err:
            self.err.piece(visible(text), style)
        else:
            sys.stderr.write(visible(text))
            sys.stderr.flush()

    def busy(self, words: str) -> AbstractContextManager[object]:
        """Show on a terminal that something goes on, until the block ends."""
        return self.err.busy(words) if self.err else nullcontext()

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        prose: Sequence[str] = (),
        empty: str = "There is nothing to list.",
    ) -> None:
        """Print rows for people; into a pipe, as values with tabs between them.

        On a terminal a column of nothing but `-` is left out, the columns named in ``prose`` give
        way first when it is narrow, and ``empty`` is said when there is no row.
        """
        safe = [[one_line(cell) for cell in row] for row in rows]
        if not self.out:
            for row in [[name.lower() for name in columns], *safe]:
                self.write("\t".join(row) + "\n")
        elif safe:
            kept = [at for at in range(len(columns)) if any(row[at] != "-" for row in safe)]
            rows = [[row[at] for at in kept] for row in safe]
            self.out.table([columns[at] for at in kept], rows, prose)
        else:
            self.note(empty)

    def fields(self, fields: Mapping[str, Any]) -> None:
        """Print names with their values, one a line; those without a value are left out."""
        shown = {name: value for name, value in fields.items() if value not in (None, "", {})}
        width = max((len(name) for name in shown), default=0)
        for name, value in shown.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            self.line(f"{name:<{width}}  {text}")


def _terminal(stream: TextIO) -> "Terminal | None":
    if not stream.isatty():
        return None
    from greylag.cli.terminal import Terminal

    return Terminal(stream)


# The standard streams and arguments of the process, made fit for use.

# What Python makes of bytes that the locale's encoding does not know.
_UNREAD = re.compile("[\udc80-\udcff]")


def prepare_streams() -> None:
    """Make sure that the three standard streams are there and take every character.

    A stream that the caller has closed (`greylag users >&-`) becomes the null device: left closed,
    its number would go to the next file or socket, and printing would write there. An answer in any
    script is printed even where the terminal's encoding cannot hold it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest free number is taken, which is the stream's own.
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def drop_output() -> None:
    """Forget what stdout could not take: Python writes it once more at exit, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def as_text(arguments: Sequence[str]) -> list[str]:
    """Return arguments as they were typed, where the locale could not read all of them as UTF-8."""
    return [
        os.fsencode(given).decode("utf-8", "replace") if _UNREAD.search(given) else given
        for given in arguments
    ]


# Questions to the person at the terminal.

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


# Tasks that belong to one command.


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Open a task group whose first failure comes out as it is, not wrapped in a group.

    A command ends with one sentence and one exit code, so the first failure is the one to tell.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures


# Wrong usage, told as every other error is: a sentence, then what to do.


def print_usage_error(error: click.ClickException) -> None:
    """Print what is wrong with a command line, how it is used, and where to read more."""
    if isinstance(error, NoArgsIsHelpError):
        error.show()
        return
    click.echo(visible(f"error: {error.format_message()}"), err=True)
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return
    if isinstance(error, NoSuchOption) and context.parent is None:
        hint = f"Options stand after the verb: {context.command_path} VERB {error.option_name} ..."
    else:
        hint = f"`{context.command_path} --help` tells more."
    click.echo(context.get_usage().replace("Usage:", "usage:", 1), err=True)
    click.echo(visible(f"hint: {hint}"), err=True)
