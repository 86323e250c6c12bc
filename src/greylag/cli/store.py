"""`greylag export` and `greylag import`: all records in one file, as a backup or to move them."""

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from greylag.cli.errors import (
    CliError,
    Exit,
    OutputLostError,
    StartError,
    error_of_settings,
    starting,
)
from greylag.cli.output import Output, counted, json_option, output_lost
from greylag.common.loading import loading
from greylag.domain.errors import GreylagError

if TYPE_CHECKING:
    from greylag.config import Settings
    from greylag.ports import Finding

T = TypeVar("T")

STREAM = "-"
_OPEN_FILES = "/proc/self/fd"

_data = click.option(
    "--data",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="The data folder whose greylag.db is meant, whatever MONGODB_URI says.",
)


@click.command("export", short_help="Write all records into a file: a backup.")
@click.argument("file")
@_data
@json_option
def export_(file: str, data: Path | None, *, as_json: bool) -> int:
    """Write all projects, with their logs and keys, users, and the audit trail into FILE (`-`:
    standard output).

    It is the store of the settings (MONGODB_URI, else GREYLAG_DATA), which may be at work
    meanwhile. An earlier FILE is replaced when the new one is whole. Exit code 1 says that records
    could not be read; they are named, and all others are in the file.

    \b
    Examples:
      greylag export backup.jsonl
      greylag export - | gzip > backup.jsonl.gz
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph
    with loading():
        from greylag.archives import export_records, place_of

    if as_json and file == STREAM:
        raise click.UsageError("With --json, standard output is for the summary: name a FILE.")
    output = Output(as_json=as_json)

    def unreadable(finding: "Finding") -> None:
        output.note(f"left out: {finding.sentence}", "red")
        output.note(f"hint: {finding.hint}", "")

    settings = _settings(data)
    with shown_progress() as progress, _written(file) as write:
        found = _run(export_records(settings, write, progress, unreadable))
    summary = {"store": place_of(settings), "file": file, **asdict(found)}
    if file == STREAM:
        output.note(", ".join(f"{name} {value}" for name, value in summary.items()))
    else:
        _print(output, summary)
    return Exit.REFUSED if found.unreadable else Exit.OK


@click.command("import", short_help="Put the records of an export into an empty store.")
@click.argument("file")
@click.option("--replace", is_flag=True, help="Remove all that the store holds before.")
@_data
@json_option
def import_(file: str, data: Path | None, *, replace: bool, as_json: bool) -> None:
    """Put the records of an export (`-`: standard input) into the store of the settings.

    Stop `greylag up`, `serve` and `worker` on that store first. The file is read to its end before
    anything is written: one that is cut or altered changes nothing. Cut off as it writes, nothing
    starts on the store until the same command was run again.

    \b
    Examples:
      greylag import backup.jsonl
      MONGODB_URI=mongodb://db.example greylag import backup.jsonl
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph
    with loading():
        from greylag.archives import import_records, place_of

    output = Output(as_json=as_json)
    settings = _settings(data)
    with shown_progress() as progress, _opened(file) as source:
        done = _run(import_records(settings, source, progress, replacing=replace))
    if done.contents.unreadable:
        output.note(
            "warning: could not be read when the export was made, and not in it: "
            f"{counted(done.contents.unreadable, 'record')}.",
            "yellow",
        )
    if done.left_out:
        output.note(
            "warning: this kind of store cannot keep the fields of other programs in "
            f"{counted(done.left_out, 'record')}.",
            "yellow",
        )
    if done.entries_left_out:
        output.note(
            "warning: the store keeps its own audit trail, without "
            f"{counted(done.entries_left_out, 'entry', 'entries')} of the export's.",
            "yellow",
        )
    _print(
        output,
        {
            "store": place_of(settings),
            "file": file,
            **asdict(done.contents),
            "left_out": done.left_out,
            "entries_left_out": done.entries_left_out,
        },
    )


def _print(output: Output, summary: dict[str, Any]) -> None:
    output.fields(
        summary, lambda: {name: str(value) for name, value in summary.items() if value != 0}
    )


def _settings(data: Path | None) -> "Settings":
    from greylag.config import load_settings

    with starting():
        settings = load_settings(data=data)
    return settings if data is None else settings.model_copy(update={"mongodb_uri": None})


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except GreylagError as error:
        raise error_of_settings(error) from error


@contextmanager
def _written(file: str) -> Iterator[Callable[[bytes], object]]:
    """Give what writes into ``file``; a file of that name is replaced at the end, if all went well.

    Raises:
        CliError: it cannot be written (``OutputLostError``: it is stdout).
        BrokenPipeError: nobody reads it.
    """
    path = Path(file).resolve()
    try:
        if file == STREAM:
            yield sys.stdout.buffer.write
            sys.stdout.buffer.flush()
        elif path.exists() and not path.is_file():
            with path.open("wb") as device:
                yield device.write
        else:
            with _replacing(path) as write:
                yield write
    except BrokenPipeError:
        raise
    except OSError as error:
        if file == STREAM:
            raise OutputLostError(output_lost(error)) from error
        raise CliError(f"{file} cannot be written: {error.strerror}.") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Callable[[bytes], object]]:
    # What is made so is for its owner alone: it holds all users' data.
    number, name = _new_file(path)
    try:
        with os.fdopen(number, "wb") as new:
            yield new.write
            new.flush()
            os.fsync(new.fileno())
            name = name or _linked(new.fileno(), path)
        Path(name).replace(path)
    except BaseException:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        raise


def _new_file(path: Path) -> tuple[int, str | None]:
    """Open a new file beside ``path``; return its number, and its name if it must have one: of one
    without nothing is left, whatever ends this process.
    """
    if hasattr(os, "O_TMPFILE") and Path(_OPEN_FILES).is_dir():
        # Else the file system knows no such files, or tells by the other way what is wrong.
        with suppress(OSError):
            return os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o600), None
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")


def _linked(number: int, path: Path) -> str:
    """Return the name beside ``path`` that an open file without one has got."""
    name = str(path.with_name(f".{path.name}.{secrets.token_hex(8)}"))
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # Python follows the link to the file only where a folder is given.
        os.link(f"{_OPEN_FILES}/{number}", name, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)
    return name


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """Give an export to be read twice; what comes through a pipe is put into a temporary file."""
    try:
        with (
            tempfile.TemporaryFile() as spool,
            open(
                sys.stdin.fileno() if file == STREAM else file, "rb", closefd=file != STREAM
            ) as given,
        ):
            if given.seekable():
                yield given
                return
            shutil.copyfileobj(given, spool)
            spool.seek(0)
            yield spool
    except OSError as error:
        raise StartError(f"{file} cannot be read: {error.strerror}.") from error


# How far a long command is, on a terminal; elsewhere nothing is shown.


@contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Give what shows on stderr how far it is, until the block ends, and leaves nothing there."""
    if not sys.stderr.isatty():
        yield lambda _step, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("opening", total=None)

        def show(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total)

        yield show
