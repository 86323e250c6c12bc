"""Search in the workspace: names, and lines of files, by ripgrep where it is there."""

import base64
import json
import os
import re
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import IO, Any

from greylag.execd.files import MOST_PATH, Place, Workspace, refusing, shown, too_deep

_SECONDS = 15.0
_MOST_TEXT = 300
_MOST_ANSWER = 400 * 1024  # bytes of names, and of lines; both fit a frame
_MOST_SEARCHED = 4 * 1024 * 1024  # bytes of one file
_MOST_LINES = 20  # of one file
_BINARY = 8192
_MOST_EVENT = 64 * 1024
_SKIPPED = {b".git", b"node_modules"}
_PARTS = f".greylag-{'[0-9a-f]' * 16}.part"  # as ``PART``

Match = dict[str, Any]
"""``path``, ``line`` (0 for a match of the name) and ``text``."""
Matches = Generator[Match | None, None, None]
"""Matches as they are found; ``None`` now and then, so that the time can be looked at.

``_UNTOLD`` stands for some that are not told.
"""
_UNTOLD: Match = {}


def search(files: Workspace, path: str, text: str, most: int) -> tuple[list[Match], bool]:
    """Look for a text, in any case, below a folder; blocks for about 30 seconds at most.

    Names come first; they and lines have half of the matches each, or what the others leave.
    Neither are told of what is in ``.git`` and ``node_modules``; with ripgrep nor of what
    ``.gitignore`` names, and no names of links and of folders without files. Lines of binary and
    of very large files, and of what cannot be read, are not looked at.

    Args:
        files: the workspace.
        path: of the folder.
        text: what is looked for, as it stands there.
        most: matches.

    Returns:
        the matches, and whether they are all.
    """
    wanted = text.casefold()
    ripgrep = shutil.which("rg")
    if ripgrep is None:
        ways = _names(files, path, wanted), _lines(files, path, wanted)
    else:
        ways = _listed(ripgrep, files, path, wanted), _by_ripgrep(ripgrep, files, path, text)
    (names, all_names), (lines, all_lines) = (_taken(way, most) for way in ways)
    found = [*names[: most - min(len(lines), most // 2)], *lines][:most]
    return found, all_names and all_lines and len(found) == len(names) + len(lines)


def _taken(way: Matches, most: int) -> tuple[list[Match], bool]:
    """Return the matches of one way, as many as there is room and time for, and if they are all."""
    found: list[Match] = []
    size, whole = 0, True
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
    with closing(files.walk(path, _SKIPPED)) as walk:
        for name, _, about in walk:
            yield _named(path, name, wanted)
            if stat.S_ISDIR(about.st_mode) and too_deep(name):
                yield _UNTOLD


def _listed(program: str, files: Workspace, path: str, wanted: str) -> Matches:
    """Yield the names of the files that ripgrep looks at, and of the folders that hold them."""
    above: list[bytes] = []  # those of the file before: each comes with all that it holds
    with _ripgrep(program, files, path, "--files", "--null", "--sort=path") as (running, out):
        for name in _ended(out):
            folders = [name[: end.start()] for end in re.finditer(b"/", name)]
            for one in (*(folder for folder in folders if folder not in above), name):
                yield _named(path, one, wanted)
            above = folders
        if running.wait() not in {0, 1}:  # it was killed, or could not read some
            yield _UNTOLD


def _ended(names: IO[bytes]) -> Iterator[bytes]:
    """Yield names that end with a zero byte each."""
    rest = b""
    while data := names.read(_MOST_EVENT):
        *whole, rest = (rest + data).split(b"\0")
        for name in whole:
            yield name.removeprefix(b"./")


def _named(path: str, name: bytes, wanted: str) -> Match | None:
    if wanted in shown(name.rpartition(b"/")[2]).casefold():
        return {"path": _below(path, name), "line": 0, "text": ""}
    return None


def _below(path: str, name: bytes) -> str:
    return f"{path.strip('/')}/{shown(name)}".lstrip("/")


def _match(path: str, name: bytes, number: int, line: str) -> Match:
    return {"path": _below(path, name), "line": number, "text": line.strip()[:_MOST_TEXT]}


def _lines(files: Workspace, path: str, wanted: str) -> Matches:
    with closing(files.walk(path, _SKIPPED)) as walk:
        for name, place, about in walk:
            if stat.S_ISREG(about.st_mode):
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
    options = ["--json", "--ignore-case", "--fixed-strings", "--max-filesize=4M"]
    options += [f"--max-count={_MOST_LINES + 1}", "--", text, "."]
    with _ripgrep(program, files, path, *options) as (_, out):
        yield from _of_ripgrep(path, out)


@contextmanager
def _ripgrep(
    program: str, files: Workspace, path: str, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Let ripgrep run in a folder, for so long as a search may last; give it and what it says."""
    skipped = (f"--glob=!{name}" for name in (*sorted(map(os.fsdecode, _SKIPPED)), _PARTS))
    with refusing(path), files.at(path) as place:
        folder = place.open(os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            running = subprocess.Popen(  # noqa: S603 - the text stands behind `--`, and no shell reads it
                [program, "--hidden", *skipped, *options],
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
        yield running, running.stdout
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
