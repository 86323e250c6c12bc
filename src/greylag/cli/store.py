"""`greylag store`: copy a whole store, or check it."""

import asyncio
import sys
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

import click

from greylag.cli.errors import Exit, error_of_settings
from greylag.cli.output import Output
from greylag.domain.errors import GreylagError

T = TypeVar("T")

FIELDS = ("code", "record", "sentence", "hint")
COLUMNS = ("CODE", "RECORD", "FOUND", "HINT")

_json = click.option("--json", "as_json", is_flag=True, help="Output for programs.")


@click.group()
def store() -> None:
    """Copy all records into another store, or check them.

    \b
    A store is one of
      sqlite:///folder/greylag.db    or the path of such a file or data folder
      mongodb://host/database        (also mongodb+srv://); without a database, that of MONGODB_DB
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph


@store.command(short_help="Copy all records into an empty store.")
@click.option("--from", "source", metavar="URL", required=True, help="The store to read.")
@click.option("--to", "target", metavar="URL", required=True, help="The empty store to fill.")
@_json
def copy(source: str, target: str, *, as_json: bool) -> None:
    """Copy all projects, with their logs and keys, from one store into an empty one.

    Stop `greylag up`, `serve` and `worker` first. Cut off at any moment, the same command goes on.
    At the end both are read again and compared.

    Example: greylag store copy --from data --to mongodb://db.example/goose
    """
    from greylag.archives import copy_store

    output = Output(as_json=as_json)
    with shown_progress() as progress:
        done = _run(copy_store(source, target, lambda at: progress(at.step, at.done, at.total)))
    summary = asdict(done)
    if as_json:
        output.document(summary)
    else:
        output.fields(_fields(summary))


@store.command(short_help="Find and explain records that break a rule.")
@click.argument("url", required=False)
@_json
def check(url: str | None, *, as_json: bool) -> int:
    """Find and explain records that break a rule. Nothing is changed.

    Without URL it is the store of the settings (MONGODB_URI, else GREYLAG_DATA). Exit code 1 says
    that something was found.

    Example: greylag store check ~/greylag
    """
    from greylag.archives import examine_store

    output = Output(as_json=as_json)
    with shown_progress() as progress:
        report = _run(examine_store(url, lambda done: progress("checking", done, None)))
    _print(output, asdict(report))
    return Exit.REFUSED if report.flaws else Exit.OK


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except GreylagError as error:
        raise error_of_settings(error) from error


def _fields(summary: Mapping[str, Any]) -> dict[str, str]:
    fields = {name: str(value) for name, value in summary.items() if name != "left_out"}
    if summary["left_out"]:
        fields["left out"] = (
            f"{summary['left_out']} documents hold fields that Greylag does not know; SQLite "
            "cannot keep them"
        )
    return fields


def _print(output: Output, report: Mapping[str, Any]) -> None:
    place, count, flaws = report["place"], report["projects"], report["flaws"]
    if output.json:
        output.document({"store": place, "ok": not flaws, "projects": count, "findings": flaws})
    elif flaws:
        rows = [tuple(flaw[name] for name in FIELDS) for flaw in flaws]
        output.table(COLUMNS, rows, prose=("FOUND", "HINT"))
    else:
        output.line(f"{place}: {count} projects, and nothing is wrong.")


# How far a long command is, on a terminal; elsewhere nothing is shown.


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
