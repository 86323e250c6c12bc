"""What only a person at a terminal gets: colours, lines broken between words, tables, a spinner.

Imported when there is a terminal, since it costs more than most commands themselves.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# A column for prose can be made so narrow and no narrower before ids are broken instead.
LEAST_PROSE = 10
GAP = 2


class Terminal:
    """One stream that is a terminal. All text must have been made harmless before."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)

    def say(self, text: str, style: str = "") -> None:
        """Print text of its own, broken between words."""
        self._console.print(Text(text, style=style))

    def piece(self, text: str, style: str = "") -> None:
        """Print the next piece of a text as it stands."""
        self._console.print(Text(text, style=style), end="", soft_wrap=True)

    def busy(self, words: str) -> AbstractContextManager[object]:
        """Show a spinner with ``words`` until the block ends."""
        return self._console.status(words)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], prose: Sequence[str]
    ) -> None:
        """Print rows under a line of column names.

        Columns named in ``prose`` are broken between words when the terminal is narrow; the others
        hold what people copy, and are broken only when there is no other way.
        """
        widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
        least = sum(
            min(width, LEAST_PROSE) if name in prose else width
            for name, width in zip(columns, widths, strict=True)
        )
        whole = least + GAP * (len(columns) - 1) <= self._console.width
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
        for name in columns:
            table.add_column(name, overflow="fold", no_wrap=whole and name not in prose)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)

    def findings(self, rows: Sequence[tuple[str, str, str, str]]) -> None:
        """Print rows of a verdict, its style, a name and what was found, each broken in place."""
        table = Table.grid(padding=(0, GAP, 0, 0))
        for _ in range(3):
            table.add_column(overflow="fold")
        for verdict, style, name, found in rows:
            table.add_row(Text(verdict, style=style), name, Text(found))
        self._console.print(table)
