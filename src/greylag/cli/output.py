"""What a command prints and asks, in a pipe and on a terminal, whatever the text came from."""

import asyncio
import json
import os
import sys
import termios
import traceback
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

import click

from greylag.cli.errors import DeclinedError, OutputLostError

if TYPE_CHECKING:
    from rich.console import Console

YES = {"y", "yes"}

# A column for prose can be made so narrow and no narrower before ids are broken instead.
LEAST_PROSE = 10
GAP = 2
_NO_ROWS = "There is nothing to list."

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


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its word: `1 file`, `2 files`, or ``many`` for that."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def moment(value: str | None) -> str:
    """Return an RFC 3339 time in UTC for people, to the second; `-` for none."""
    return "-" if value is None else one_line(value)[:19].replace("T", " ") + "Z"


@contextmanager
def writing_output() -> Iterator[None]:
    """Turn what goes wrong with standard output into words; that nobody reads it stays itself.

    Raises:
        OutputLostError: it cannot be written.
        BrokenPipeError: there is no reader.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputLostError(output_lost(error)) from error


def output_lost(error: OSError) -> str:
    """Return in words that standard output cannot be written."""
    return f"The output cannot be written: {error.strerror}."


def is_of_echo(error: OSError) -> bool:
    """Tell whether it is click that could not write, which writes a help past ``Output``."""
    return traceback.extract_tb(error.__traceback__)[-1].name == click.echo.__name__


class Output:
    """What one command prints: results on stdout, all else on stderr.

    ``json`` says that stdout is for a program: it holds one JSON document, or one per line for a
    stream, and nothing else.

    ``out`` and ``err`` are the streams as terminals, ``None`` where nobody sits at one. All that
    they are given must have been made harmless before.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.json = as_json
        self.out = _terminal(sys.stdout)
        self.err = _terminal(sys.stderr)

    def write(self, text: str) -> None:
        """Write to stdout as it stands, at once; a reader that does not read makes this wait.

        Raises:
            OutputLostError: it cannot be written.
            BrokenPipeError: there is no reader.
        """
        with writing_output():
            sys.stdout.write(text)
            sys.stdout.flush()

    def write_bytes(self, data: bytes) -> None:
        """Write to stdout in the same way."""
        with writing_output():
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def document(self, data: object) -> None:
        """Print one JSON document; only ASCII, so that it is safe on any terminal."""
        self.write(json.dumps(data) + "\n")

    def line(self, text: str) -> None:
        """Print one line of a result; ``text`` may come from anywhere."""
        self.write(one_line(text) + "\n")

    def heading(self, text: str) -> None:
        """Print one line of a result, bold on a terminal."""
        if self.out:
            self.out.print(one_line(text), style="bold", soft_wrap=True)
        else:
            self.line(text)

    def note(self, text: str, style: str = "dim") -> None:
        """Tell the person something in one line of stderr; no text can forge another."""
        if self.err:
            self.err.print(one_line(text), style=style)
        else:
            sys.stderr.write(one_line(text) + "\n")

    def piece(self, text: str, style: str = "") -> None:
        """Print a piece of a longer text on stderr, as it stands."""
        if self.err:
            self.err.print(visible(text), style=style, end="", soft_wrap=True)
        else:
            sys.stderr.write(visible(text))
            sys.stderr.flush()

    def passing(self, text: str) -> None:
        """Show ``text`` on a terminal after what stands there, until the next call; "": no more.

        The cursor stays where it is, so that an answer's line goes on as if nothing had been there.
        """
        if self.err:
            dimmed = f"\x1b[2m{one_line(text)}\x1b[0m" if text else ""
            sys.stderr.write(f"\x1b7\x1b[K{dimmed}\x1b8")
            sys.stderr.flush()

    def busy(self, words: str) -> AbstractContextManager[object]:
        """Show on a terminal that something goes on, until the block ends."""
        if not self.err:
            return nullcontext()
        from rich.text import Text

        return self.err.status(Text(one_line(words)))

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        prose: Sequence[str] = (),
        empty: str = _NO_ROWS,
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
            _print_table(self.out, [columns[at] for at in kept], rows, prose)
        else:
            self.note(empty)

    def listing(
        self,
        document: object,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        prose: Sequence[str] = (),
        empty: str = _NO_ROWS,
    ) -> None:
        """Print ``document`` for programs, a ``table`` of ``rows`` for people."""
        if self.json:
            self.document(document)
        else:
            self.table(columns, rows, prose=prose, empty=empty)

    def done(self, document: object, words: str) -> None:
        """Print what was done: ``document`` for programs, a note for people."""
        if self.json:
            self.document(document)
        else:
            self.note(words)

    # Programs are given what there is as it is, whether or not it has all that people are told.

    def made(self, document: object, tell: Callable[[], tuple[str, str]]) -> None:
        """Print ``document`` for programs; for people a note and a line to copy."""
        if self.json:
            self.document(document)
            return
        words, value = tell()
        self.note(words)
        self.line(value)

    def fields(self, document: object, tell: Callable[[], Mapping[str, Any]]) -> None:
        """Print ``document`` for programs; for people names with their values, one a line, without
        those that have no value.
        """
        if self.json:
            self.document(document)
            return
        shown = {name: value for name, value in tell().items() if value not in (None, "", {})}
        width = max((len(name) for name in shown), default=0)
        for name, value in shown.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            self.line(f"{name:<{width}}  {text}")


def _terminal(stream: TextIO) -> "Console | None":
    """Return ``stream`` as a terminal: rich costs more than most commands, and is imported for one
    alone.
    """
    if not stream.isatty():
        return None
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def _print_table(
    terminal: "Console",
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    prose: Sequence[str],
) -> None:
    """Print rows under a line of column names.

    Columns named in ``prose`` are broken between words when the terminal is narrow; the others hold
    what people copy, and are broken only when there is no other way.
    """
    from rich.cells import cell_len
    from rich.table import Table

    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    least = sum(
        min(width, LEAST_PROSE) if name in prose else width
        for name, width in zip(columns, widths, strict=True)
    )
    whole = least + GAP * (len(columns) - 1) <= terminal.width
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=whole and name not in prose)
    for row in rows:
        table.add_row(*row)
    terminal.print(table)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs on stdout."
)


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


def somebody_is_there() -> bool:
    """Tell whether a question can be shown and answered."""
    return sys.stdin.isatty() and sys.stderr.isatty()


async def open_in_browser(url: str) -> bool:
    """Open an address in this machine's browser; tell whether one was found. A server's word leads
    to no file or program here.
    """
    is_site = url.startswith(("http://", "https://"))
    return is_site and await asyncio.to_thread(webbrowser.open, url)


async def confirm(question: str, *, yes: bool) -> None:
    """Return when the person agrees, or has agreed with --yes.

    Raises:
        DeclinedError: they do not.
        click.UsageError: nobody can be asked.
    """
    if yes:
        return
    if not somebody_is_there():
        raise click.UsageError("Nobody can be asked here: add --yes to agree without being asked.")
    drop_typed()
    sys.stderr.write(f"{one_line(question)} [y/N] ")
    sys.stderr.flush()
    answer = await read_line()
    if not answer:
        sys.stderr.write("\n")
    if answer.strip().lower() not in YES:
        raise DeclinedError("Nothing was changed.")


def given_line(question: str, *, hidden: bool = False) -> str:
    """Return a line that is asked for on a terminal, and else read from standard input.

    Not for a running loop: Ctrl-C would wait for the loop, which waits here.
    """
    if sys.stdin.isatty():
        return str(click.prompt(question, hide_input=hidden, err=True)).strip()
    return sys.stdin.readline().strip()


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
