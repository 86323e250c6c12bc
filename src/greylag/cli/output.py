"""What a command prints: results on stdout, all else on stderr.

With ``--json`` stdout holds one JSON document, or one per line for a stream, and nothing else.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from greylag.cli.text import one_line, visible


class Output:
    """The two streams of one command. ``json`` says that stdout is for a program."""

    def __init__(self, *, as_json: bool) -> None:
        self.json = as_json
        self.out = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self.err = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)

    def document(self, data: object) -> None:
        """Print one JSON document; only ASCII, so that it is safe on any terminal."""
        sys.stdout.write(json.dumps(data) + "\n")
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """Print one line of a result; ``text`` may come from anywhere."""
        self.out.print(Text(one_line(text)), soft_wrap=True)

    def note(self, text: str, style: str = "dim") -> None:
        """Tell the person something, on stderr."""
        self.err.print(Text(visible(text), style=style), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print rows for people; into a pipe, as values with tabs between them."""
        safe = [[one_line(cell) for cell in row] for row in rows]
        if not self.out.is_terminal:
            for row in [[name.lower() for name in columns], *safe]:
                sys.stdout.write("\t".join(row) + "\n")
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in safe:
            table.add_row(*(Text(cell) for cell in row))
        self.out.print(table)

    def fields(self, fields: Mapping[str, Any]) -> None:
        """Print names with their values, one a line; those without a value are left out."""
        shown = {name: value for name, value in fields.items() if value not in (None, "", {})}
        width = max((len(name) for name in shown), default=0)
        for name, value in shown.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            self.line(f"{name:<{width}}  {text}")
