"""What a person sees at a terminal, and what a pipe gets instead."""

import asyncio
import contextlib
import io
import json
import os
import re
import select
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from unittest.mock import patch

import click
import pytest

from greylag.cli import terminal
from greylag.cli.errors import DeclinedError, OutputLostError
from greylag.cli.logs import log_line
from greylag.cli.output import Output, confirm
from greylag.cli.projects import COLUMNS

SESSION = "c4801035-700c-439e-9b97-ad23f43a9d30"


class Screen(io.StringIO):
    """A terminal, as far as a program can tell."""

    def isatty(self) -> bool:
        return True


def shown(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    prose: Sequence[str] = (),
    width: int = 80,
) -> list[str]:
    """Return the lines of a table on a terminal so wide."""
    screen = Screen()
    with (
        patch.dict(os.environ, {"COLUMNS": str(width), "TERM": "xterm"}),
        contextlib.redirect_stdout(screen),
    ):
        Output(as_json=False).table(columns, rows, prose=prose)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    return [line.rstrip() for line in plain.splitlines()]


def test_a_column_that_says_nothing_is_left_out() -> None:
    row = ("first", "My first project", "inactive", "-", "-", "-")
    assert shown(COLUMNS, [row], prose=("NAME",)) == [
        "PROJECT  NAME              STATUS",
        "first    My first project  inactive",
    ]


@pytest.mark.parametrize("width", [48, 60, 80])
def test_what_people_copy_stays_whole_on_a_narrow_terminal(width: int) -> None:
    row = (SESSION, "a name of several words")
    lines = shown(("ID", "NAME"), [row], prose=("NAME",), width=width)
    assert SESSION in lines[1]
    assert all(len(line) <= width for line in lines)


def test_nothing_is_lost_where_there_is_no_room_at_all() -> None:
    lines = shown(("ID", "NAME"), [(SESSION, "one")], prose=("NAME",), width=20)
    assert "".join(line.split(" ")[0] for line in lines[1:]) == SESSION


def test_wide_characters_stand_in_their_columns() -> None:
    rows = [("日本語", "active"), ("ab", "inactive")]
    assert shown(("NAME", "STATUS"), rows) == [
        "NAME    STATUS",
        "日本語  active",
        "ab      inactive",
    ]


def test_a_cell_cannot_begin_a_line_of_its_own_nor_steer_the_terminal() -> None:
    assert shown(("NAME",), [("a\nb\x1b[2J",)]) == ["NAME", "a b␛[2J"]


def test_an_empty_list_says_so_to_a_person_and_nothing_on_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert shown(("NAME",), []) == []
    assert capsys.readouterr().err == "There is nothing to list.\n"


def test_a_spinner_shows_words_as_they_stand_and_harmless() -> None:
    screen = Screen()
    with (
        patch.dict(os.environ, {"TERM": "xterm"}),
        contextlib.redirect_stderr(screen),
        Output(as_json=False).busy("Deleting [bold]x[/] \x1b[2J ..."),
    ):
        pass
    assert "Deleting [bold]x[/] ␛[2J ..." in screen.getvalue()


OWN = {"event": "request", "level": "info", "timestamp": "2026-11-24T04:37:14.495Z", "ms": 10.8}


@pytest.mark.parametrize(
    ("line", "readable"),
    [
        (json.dumps(OWN), "2026-11-24 04:37:14Z info    request ms=10.8"),
        (
            json.dumps({**OWN, "error": "two words", "ms": None}),
            '2026-11-24 04:37:14Z info    request ms=null error="two words"',
        ),
        (json.dumps({**OWN, "event": "\x1b[2J\nx"}), "2026-11-24 04:37:14Z info    ␛[2J x ms=10.8"),
        ("plain \x1b[31mwords", "plain ␛[31mwords"),
        ('{"some": "json"}', '{"some": "json"}'),
        ("[1, 2]", "[1, 2]"),
        ("", ""),
    ],
)
def test_a_log_line_is_readable_and_harmless(line: str, readable: str) -> None:
    assert log_line(line) == readable


def test_bytes_for_a_full_disk_are_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    raw = io.FileIO(full, "w", closefd=False)
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=raw, isatty=lambda: False))
    with pytest.raises(OutputLostError, match="No space left on device"):
        Output(as_json=False).write_bytes(b"x")
    with pytest.raises(OutputLostError, match="No space left on device"):
        terminal._print(full, b"x")
    os.close(full)


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where to type what a program reads that sits at a terminal."""
    typing, own = os.openpty()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, fileno=lambda: own))
    yield typing
    os.close(typing)
    os.close(own)


async def test_what_was_typed_before_a_question_is_no_answer_to_it(
    keyboard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    os.write(keyboard, b"y\n")
    assert select.select([sys.stdin.fileno()], [], [], 5)[0]
    agreed = asyncio.create_task(confirm("Delete it?", yes=False))
    await asyncio.sleep(0)
    assert screen.getvalue() == "Delete it? [y/N] "
    os.write(keyboard, b"n\n")
    with pytest.raises(DeclinedError):
        await agreed


@pytest.mark.usefixtures("keyboard")
async def test_nobody_is_asked_what_they_would_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with pytest.raises(click.UsageError, match="--yes"):
        async with asyncio.timeout(5):
            await confirm("Delete it?", yes=False)
    await confirm("Delete it?", yes=True)
