"""How far a long command is, on a terminal; elsewhere nothing is shown."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Show(Protocol):
    """Shows how far it is."""

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """Show ``done`` of ``total`` (``None``: not known) records of a step, one plain word."""


@contextmanager
def shown_progress() -> Iterator[Show]:
    """Give what shows progress on stderr until the block ends, and leaves nothing there."""
    if not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("opening", total=None)

        def show(step: str, done: int, total: int | None) -> None:
            bar.update(task, description=step, completed=done, total=total)

        yield show


def _silent(step: str, done: int, total: int | None) -> None:
    """Show nothing: nobody sits there."""
