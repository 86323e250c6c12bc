"""Search in the workspace: names, and lines of files, by ripgrep where it is there."""

import base64
import json
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import IO, Any

from greylag.execd.files import MOST_PATH, Place, Workspace, refusing, shown, too_deep

_SECONDS = 15.0
_MOST_TEXT = 300
_MOST_ANSWER = 512 * 1024  # bytes of matches, well within a frame
_MOST_SEARCHED = 4 * 1024 * 1024  # bytes of one file
_MOST_LINES = 20  # of one file
_BINARY = 8192
_MOST_EVENT = 64 * 1024
_SKIPPED = {b".git", b"node_modules"}

Match = dict[str, Any]
"""``path``, ``line`` (0 for a match of the name) and ``text``."""
Matches = Generator[Match | None, None, None]
"""Matches as they are found; ``None`` now and then, so that the time can be looked at.

``_UNTOLD`` stands for some that are not told.
"""
_UNTOLD: Match = {}


def search(files: Workspace, path: str, text: str, most: int) -> tuple[list[Match], bool]:
    """Look for a text, in any case, below a folder; blocks for about 30 seconds at most.

    Names come first. Lines of ``.git``, ``node_modules``, of binary and of very large files, and of
    what cannot be read, are not looked at; with ripgrep nor of what ``.gitignore`` names.

    Args:
        files: the workspace.
        path: of the folder.
        text: what is looked for, as it stands there.
        most: matches.

    Returns:
        the matches, and whether they are all.
    """
    wanted = text.casefold()
    found: list[Match] = []
    size, whole = 0, True
    ripgrep = shutil.which("rg")
    ways = (
        _names(files, path, wanted),
        _lines(files, path, wanted) if ripgrep is None else _by_ripgrep(ripgrep, files, path, text),
    )
    for way in ways:
        deadline = time.monotonic() + _SECONDS
        with closing(way) as matches:
            for match in matches:
                if match is _UNTOLD or (match is not None and len(match["path"]) > MOST_PATH):
                    whole = False
                elif match is not None:
                    found.append(match)
                    size += len(json.dumps(match))
                if len(found) >= most or size > _MOST_ANSWER or time.monotonic() > deadline:
                    return found, False
    return found, whole


def _names(files: Workspace, path: str, wanted: str) -> Matches:
    with closing(files.walk(path)) as walk:
        for name, _, about in walk:
            holds = wanted in shown(name.rpartition(b"/")[2]).casefold()
            yield {"path": _below(path, name), "line": 0, "text": ""} if holds else None
            if stat.S_ISDIR(about.st_mode) and too_deep(name):
                yield _UNTOLD


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
            matches += 1
            if matches > _MOST_LINES:
                yield _UNTOLD
                return
            yield _match(path, name, number, line)
    yield None


def _text_of(place: Place) -> str:
    """Return a file's text; none when it is too large, binary, or cannot be read."""
    try:
        with place.file() as file:
            data = file.read(_MOST_SEARCHED + 1)
    except OSError:
        return ""
    if len(data) > _MOST_SEARCHED or b"\0" in data[:_BINARY]:
        return ""
    return data.decode("utf-8", "replace")


def _by_ripgrep(program: str, files: Workspace, path: str, text: str) -> Matches:
    options = ["--json", "--ignore-case", "--fixed-strings", "--hidden", "--glob=!.git"]
    options += ["--glob=!node_modules", f"--max-count={_MOST_LINES + 1}", "--max-filesize=4M"]
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
    try:
        alarm.start()
        assert running.stdout is not None  # noqa: S101 - a pipe was asked for; tells mypy so
        yield from _of_ripgrep(path, running.stdout)
    finally:
        alarm.cancel()
        running.kill()
        running.communicate()


def _of_ripgrep(path: str, events: IO[bytes]) -> Iterator[Match | None]:
    matches, last = 0, ""
    while event := events.readline(_MOST_EVENT):
        last, match = _read_event(path, event)
        matches = matches + 1 if last == "match" else 0 if last == "begin" else matches
        yield _UNTOLD if last == "match" and matches > _MOST_LINES else match
    if last != "summary":  # its last word, even where it could not read all: it was killed
        yield _UNTOLD


def _read_event(path: str, event: bytes) -> tuple[str, Match | None]:
    """Return what an event is, and the match that it tells."""
    try:
        said = json.loads(event)
        kind, about = str(said["type"]), said["data"]
        if kind != "match":
            return kind, None
        name, line = _bytes(about["path"]).removeprefix(b"./"), _bytes(about["lines"])
        return kind, _match(path, name, about["line_number"], line.decode("utf-8", "replace"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # A very long line, which was cut, and the rest of it.
        return "", _UNTOLD


def _bytes(said: dict[str, str]) -> bytes:
    """Return a name or line: ripgrep tells text as such, and what is no UTF-8 in base64."""
    return said["text"].encode() if "text" in said else base64.b64decode(said["bytes"])
