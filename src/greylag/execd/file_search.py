"""Search in the workspace: names, and lines of files, by ripgrep where it is there."""

import json
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

from greylag.execd.files import FILE, Place, Workspace, refusing, shown

_SECONDS = 15.0
_MOST_TEXT = 300
_MOST_SEARCHED = 4 * 1024 * 1024  # bytes of one file
_MOST_LINES = 20  # of one file
_BINARY = 8192
_MOST_EVENT = 64 * 1024
_SKIPPED = {b".git", b"node_modules"}

Match = dict[str, Any]
"""``path``, ``line`` (0 for a match of the name) and ``text``."""
Matches = Generator[Match | None, None, None]
"""Matches as they are found; ``None`` now and then, so that the time can be looked at."""


def search(files: Workspace, path: str, text: str, most: int) -> tuple[list[Match], bool]:
    """Look for a text, in any case, below a folder; blocks for about 30 seconds at most.

    Names come first. Lines of ``.git``, ``node_modules``, of binary and of very large files are not
    looked at, with ripgrep nor of what ``.gitignore`` names.

    Args:
        files: the workspace.
        path: of the folder.
        text: what is looked for, as it stands there.
        most: matches.

    Returns:
        the matches, and whether they are all.
    """
    deadline = time.monotonic() + _SECONDS
    wanted = text.casefold()
    found: list[Match] = []
    ripgrep = shutil.which("rg")
    ways = (
        _names(files, path, wanted),
        _lines(files, path, wanted) if ripgrep is None else _by_ripgrep(ripgrep, files, path, text),
    )
    for way in ways:
        deadline = time.monotonic() + _SECONDS
        with closing(way) as matches:
            for match in matches:
                if match is not None:
                    found.append(match)
                if len(found) >= most or time.monotonic() > deadline:
                    return found, False
    return found, True


def _names(files: Workspace, path: str, wanted: str) -> Matches:
    with closing(files.walk(path)) as walk:
        for name, _, _ in walk:
            holds = wanted in shown(name.rpartition(b"/")[2]).casefold()
            yield {"path": _below(path, name), "line": 0, "text": ""} if holds else None


def _below(path: str, name: bytes) -> str:
    return f"{path.strip('/')}/{shown(name)}".lstrip("/")


def _match(path: str, name: bytes, number: int, line: str) -> Match:
    return {"path": _below(path, name), "line": number, "text": line.strip()[:_MOST_TEXT]}


def _lines(files: Workspace, path: str, wanted: str) -> Matches:
    with closing(files.walk(path)) as walk:
        for name, place, about in walk:
            if stat.S_ISREG(about.st_mode) and _SKIPPED.isdisjoint(name.split(b"/")):
                yield from _lines_of(path, name, _text_of(place), wanted)


def _lines_of(path: str, name: bytes, text: str, wanted: str) -> Iterator[Match | None]:
    matches = 0
    for number, line in enumerate(text.splitlines(), 1):
        if wanted in line.casefold():
            yield _match(path, name, number, line)
            matches += 1
            if matches == _MOST_LINES:
                return
    yield None


def _text_of(place: Place) -> str:
    """Return a file's text; none when it is too large, binary, or cannot be read."""
    try:
        with os.fdopen(place.open(FILE), "rb") as file:
            data = file.read(_MOST_SEARCHED + 1)
    except OSError:
        return ""
    if len(data) > _MOST_SEARCHED or b"\0" in data[:_BINARY]:
        return ""
    return data.decode("utf-8", "replace")


def _by_ripgrep(program: str, files: Workspace, path: str, text: str) -> Matches:
    options = ["--json", "--ignore-case", "--fixed-strings", "--hidden", "--glob=!.git"]
    options += ["--glob=!node_modules", f"--max-count={_MOST_LINES}", "--max-filesize=4M"]
    with refusing(path), files.at(path) as place:
        folder = place.open(os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            running = subprocess.Popen(  # noqa: S603 - the text stands behind `--`, and no shell reads it
                [program, *options, "--", text, "."],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=f"/proc/self/fd/{folder}",
                pass_fds=(folder,),
            )
        finally:
            os.close(folder)
    alarm = threading.Timer(_SECONDS, running.kill)
    alarm.start()
    try:
        assert running.stdout is not None  # noqa: S101 - a pipe was asked for; tells mypy so
        while event := running.stdout.readline(_MOST_EVENT):
            yield _of_ripgrep(path, event)
    finally:
        alarm.cancel()
        running.kill()
        running.communicate()


def _of_ripgrep(path: str, event: bytes) -> Match | None:
    try:
        said = json.loads(event)
        if said["type"] != "match":
            return None
        about = said["data"]
        name = about["path"]["text"].removeprefix("./").encode("utf-8", "surrogateescape")
        return _match(path, name, about["line_number"], about["lines"]["text"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # a name or line that is no UTF-8, or one that was cut
