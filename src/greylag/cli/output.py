"""What a command prints: results on stdout, all else on stderr.

With ``--json`` stdout holds one JSON document, or one per line for a stream, and nothing else.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

from greylag.cli.errors import OutputLostError
from greylag.cli.text import one_line, visible

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
