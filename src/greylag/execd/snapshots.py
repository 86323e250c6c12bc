"""The operation ``snapshots``: what agentd asks so that it can keep and bring back the workspace.

A request names a ``verb`` and the folder ``root``. What is kept, and where, is agentd's.

========  ===============================  ========================================================
verb      takes                            gives
========  ===============================  ========================================================
list      then in ``STDIN`` frames and     a record for each folder, those above first, then
          their end paths that are kept,   ``began`` (nanoseconds)
          NUL after each
contents  ``wanted``: path, size, times    each file: how it went and its size, its bytes, and
          of change and of status, inode   whether it is still the one that was asked for
restore   then one JSON frame for each     a JSON frame for each step, with ``code`` and
          step, a file's followed by       ``message`` of a refusal
          ``STDIN`` frames and their end
========  ===============================  ========================================================

A record is two lengths, a path and JSON: the folder's entries by name, or why it is left out. An
entry is ``[name, "f", mode, size, mtime, ctime, inode]``, ``[name, "l", target]``,
``[name, "d", mode]`` or ``[name, "x", why it is left out]``.

Left out is what tools make again: folders that are named in ``_BUILT`` or that are marked as caches
(``CACHEDIR.TAG``) or virtual environments, and what ``.gitignore`` files name, read as git reads
them. A repository begins anew: neither the rules above it count in it, nor any in its ``.git``. Of
what is left out the paths that follow are told all the same, if their folders are among them; all
else that such a folder holds is told as one entry, the name of which is "".
"""

import asyncio
import json
import os
import re
import stat
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO

from greylag.execd.file_server import content_in, in_thread, write_out
from greylag.execd.files import (
    FOLDER,
    HERE,
    MOST_DEPTH,
    MOST_PATH,
    PART,
    READ_AT_ONCE,
    Place,
    Workspace,
    entry_path,
    plain,
    refusing,
    shown,
    tag_of,
    write_all,
)
from greylag.execd.protocol import (
    FrameKind,
    ProtocolError,
    Reader,
    RefusedError,
    Writer,
    agree,
    read_frame,
    read_object,
    text_in,
)

RECORD = struct.Struct("!II")
FILE_HEAD = struct.Struct("!BQ")
SENT, CHANGED, UNREADABLE = 1, 0, 2
MOST_KEPT = 32 * 1024 * 1024

_BUILT = frozenset(
    {
        "node_modules",
        "__pycache__",
        ".venv",
        ".tox",
        ".nox",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".gradle",
        ".next",
        ".nuxt",
        ".parcel-cache",
        ".turbo",
    }
)
_MARKS = frozenset({"CACHEDIR.TAG", "pyvenv.cfg"})
_GIT = ".git"
_RULES = ".gitignore"
_MOST_RULES = 64 * 1024
_MOST_RULE = 500
_MOST_ANY_DEPTH = 2
_OWN = 0o700
# Apart from what people do with files: a turn waits for these.
_SNAPSHOTS = asyncio.Semaphore(2)


async def answer(request: dict[str, Any], reader: Reader, writer: Writer) -> None:
    """Do what a request asks.

    Raises:
        RefusedError: it cannot be done.
    """
    files = Workspace(text_in(request, "root"))
    match request.get("verb"):
        case "list":
            await agree(writer)
            await _list(files, await _paths(reader), writer)
        case "contents":
            await _contents(files, request, writer)
        case "restore":
            await agree(writer)
            await _restore(files, reader, writer)
        case _:
            raise RefusedError("unknown_operation", "There is no such verb.")


async def _paths(reader: Reader) -> frozenset[str]:
    data = bytearray()
    async for piece in content_in(reader):
        data += piece
        if len(data) > MOST_KEPT:
            raise ProtocolError("there are more paths than may be")
    return frozenset(data.decode().split("\0"))


async def _list(files: Workspace, kept: frozenset[str], writer: Writer) -> None:
    began = time.time_ns()
    async with _SNAPSHOTS:
        await write_out(writer, _write_records, files, kept)
    await agree(writer, began=began)


def _write_records(files: Workspace, kept: frozenset[str], out: BinaryIO) -> None:
    out.writelines(records(files, kept))


# Rules of .gitignore files.


@dataclass(frozen=True, slots=True)
class _Rule:
    ignores: bool
    folders_only: bool
    whole_path: bool
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class _Rules:
    """A file's rules, for paths that begin at its folder; the last one that fits decides."""

    start: int
    rules: tuple[_Rule, ...]
    any_name: re.Pattern[str] | None
    any_path: re.Pattern[str] | None

    def decide(self, path: str, name: str, *, folder: bool) -> bool | None:
        """Tell whether an entry is ignored, ``None`` when nothing is said of it."""
        below = path[self.start :]
        by_name = self.any_name is not None and self.any_name.fullmatch(name)
        by_path = self.any_path is not None and self.any_path.fullmatch(below)
        if not by_name and not by_path:
            return None
        for rule in reversed(self.rules):
            fits = rule.pattern.fullmatch(below if rule.whole_path else name)
            if fits and (folder or not rule.folders_only):
                return rule.ignores
        return None


@lru_cache(maxsize=64)
def _rules(text: str, start: int) -> _Rules:
    found = tuple(rule for line in text.split("\n") if (rule := _rule(line)) is not None)
    names = [rule.pattern.pattern for rule in found if not rule.whole_path]
    paths = [rule.pattern.pattern for rule in found if rule.whole_path]
    return _Rules(start, found, _any_of(names), _any_of(paths))


def _any_of(patterns: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(patterns)) if patterns else None


def _rule(line: str) -> _Rule | None:
    """Return the rule of a line (gitignore(5)), ``None`` for one that has none."""
    whole = line.rstrip("\r")
    text = whole.rstrip(" ")
    if text.endswith("\\"):
        text = whole[: len(text) + 1]  # a space that is escaped
    if not text or text.startswith("#") or len(text) > _MOST_RULE:
        return None
    ignores = not text.startswith("!")
    text = text if ignores else text[1:]
    folders_only = text.endswith("/")
    text = text.rstrip("/")
    whole_path = "/" in text
    parts = text.lstrip("/").split("/")
    if parts == [""] or parts.count("**") > _MOST_ANY_DEPTH:
        return None
    pattern = "".join(_part(part, last=place == len(parts)) for place, part in enumerate(parts, 1))
    try:
        return _Rule(ignores, folders_only, whole_path, re.compile(pattern))
    except re.error:  # a range that runs backwards, say: git matches nothing by it
        return None


def _part(part: str, *, last: bool) -> str:
    if part == "**":
        return ".+" if last else "(?:[^/]+/)*"
    first, *others = _between_stars(part)
    # What stands between two stars is taken where it comes first, once and for all: a rule that
    # is made for it would else take for ever.
    middle = "".join(f"(?>[^/]*?{one})" for one in others[:-1])
    end = f"[^/]*{others[-1]}" if others else ""
    return f"{first}{middle}{end}" + ("" if last else "/")


def _between_stars(part: str) -> list[str]:
    found, place = [""], 0
    while place < len(part):
        character = part[place]
        place += 1
        if character == "*":
            found.append("")
            continue
        end = part.find("]", place + 1 + (part[place : place + 1] in {"!", "^"}))
        if character == "[" and end > 0:
            inside, place = part[place:end], end + 1
            negated = inside[:1] in {"!", "^"}
            escaped = re.sub(r"([\\\[&~|^])", r"\\\1", inside[1:] if negated else inside)
            found[-1] += f"(?!/)[{'^' if negated else ''}{escaped}]"
        elif character == "?":
            found[-1] += "[^/]"
        else:
            if character == "\\" and place < len(part):
                character = part[place]
                place += 1
            found[-1] += re.escape(character)
    return found


# What the workspace holds.


@dataclass(slots=True)
class _Level:
    """A folder that is being listed, with those below it that are still to come.

    Attributes:
        rules: ``None`` below ``.git``.
        left_out: why nothing in it is told but what is kept all the same; "": it is told.
        below: the names of those to come, and the same of each.
    """

    path: str
    folder: int
    rules: tuple[_Rules, ...] | None
    kept: frozenset[str]
    left_out: str = ""
    below: Iterator[tuple[str, str]] = field(default_factory=lambda: iter(()))

    def at(self, name: str) -> str:
        """Return the path of an entry."""
        return entry_path(self.path, name)


def records(files: Workspace, kept: frozenset[str] = frozenset()) -> Iterator[bytes]:
    """Yield the record of each folder; folders that vanish meanwhile have none.

    Args:
        files: the workspace.
        kept: paths that are told though a rule leaves them out.
    """
    with refusing(""), files.at("") as place:
        levels: list[_Level] = []
        try:
            levels.append(_Level("", place.open(FOLDER), (), kept))
            yield _listed(levels[0])
            while levels:
                name, left_out = next(levels[-1].below, ("", ""))
                if not name:
                    os.close(levels.pop().folder)
                    continue
                record, inner = _entered(levels[-1], name, left_out)
                if inner is not None:
                    levels.append(inner)
                if record:
                    yield record
        finally:
            for level in levels:
                os.close(level.folder)


def _entered(above: _Level, name: str, left_out: str) -> tuple[bytes, _Level | None]:
    path = above.at(_text(name))
    try:
        folder = os.open(name, FOLDER, dir_fd=above.folder)
    except PermissionError:
        return _record(path, "unreadable"), None
    except OSError:
        return b"", None
    level = _Level(path, folder, None if name == _GIT else above.rules, above.kept, left_out)
    try:
        return _listed(level), level
    except OSError:
        os.close(folder)
        return _record(path, "unreadable"), None


def _listed(level: _Level) -> bytes:
    """Return a folder's record, and let its level know what goes on below it."""
    with os.scandir(level.folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    names = {entry.name for entry in entries}
    if level.path and level.rules is not None and names & _MARKS:
        if level.path not in level.kept:
            return _record(level.path, "build")
        level.left_out = level.left_out or "build"
    if level.rules is not None:
        level.rules = () if _GIT in names else level.rules
        if _RULES in names:
            level.rules = (*level.rules, *_rules_of(level.folder, level.path))
    told: list[list[Any]] = []
    below: list[tuple[str, str]] = []
    has_others = False
    for entry in entries:
        with suppress(FileNotFoundError):
            if PART.fullmatch(os.fsencode(entry.name)):
                continue
            if level.left_out and level.at(_text(entry.name)) not in level.kept:
                has_others = True
                continue
            left_out = _left_out(entry, level)
            told.append(_entry(entry, level, left_out))
            if told[-1][1] == "d":
                below.append((entry.name, left_out))
    if has_others:
        told.append(["", "x", level.left_out])
    level.below = iter(below)
    return _record(level.path, told)


def _record(path: str, content: list[list[Any]] | str) -> bytes:
    where = path.encode()
    body = json.dumps(content, separators=(",", ":")).encode()
    return RECORD.pack(len(where), len(body)) + where + body


def _rules_of(folder: int, path: str) -> Iterator[_Rules]:
    with suppress(OSError), Place(folder, _RULES.encode()).file() as file:
        text = file.read(_MOST_RULES).decode("utf-8", "surrogateescape")
        yield _rules(text, len(path) + 1 if path else 0)


def _left_out(entry: os.DirEntry[str], level: _Level) -> str:
    """Return why an entry is left out; "": it is not."""
    is_folder = entry.is_dir(follow_symlinks=False)
    if level.left_out or level.rules is None or entry.name == _GIT:
        return level.left_out
    if is_folder and entry.name in _BUILT:
        return "build"
    whole = level.at(entry.name)
    for one in reversed(level.rules):
        decided = one.decide(whole, entry.name, folder=is_folder)
        if decided is not None:
            return "ignored" if decided else ""
    return ""


def _entry(entry: os.DirEntry[str], level: _Level, left_out: str) -> list[Any]:
    name = _text(entry.name)
    path = level.at(name)
    if left_out and path not in level.kept:
        return [name, "x", left_out]
    facts = _facts(entry, level.folder)
    # Whatever is kept, and whatever took a kept file's place: agentd refuses such a list.
    if facts[0] == "d" and (len(path) > MOST_PATH or path.count("/") + 1 >= MOST_DEPTH):
        return [name, "x", "too_deep"]
    return [name, *facts]


def _facts(entry: os.DirEntry[str], folder: int) -> list[Any]:
    about, target = entry.stat(follow_symlinks=False), None
    if stat.S_ISLNK(about.st_mode):
        try:
            target = os.readlink(entry.name, dir_fd=folder)
        except FileNotFoundError:
            raise
        except OSError:  # something else has taken its place since
            about = Place(folder, os.fsencode(entry.name)).look()
    mode = stat.S_IMODE(about.st_mode)
    if stat.S_ISDIR(about.st_mode):
        return ["d", mode]
    if stat.S_ISREG(about.st_mode):
        times = (about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
        return ["f", mode, about.st_size, *times]
    if target is not None:
        return ["l", shown(os.fsencode(target))]
    return ["x", "special"]


def _text(name: str) -> str:
    """Return a name as ``shown`` does, quickly where it stays as it is."""
    return name if name.isascii() and "\\" not in name else shown(os.fsencode(name))


# Contents.


async def _contents(files: Workspace, request: dict[str, Any], writer: Writer) -> None:
    wanted = request.get("wanted")
    if not isinstance(wanted, list):
        raise RefusedError("invalid_request", "wanted is no list.")
    await agree(writer)
    async with _SNAPSHOTS:
        await write_out(writer, _write_contents, files, wanted)
    await agree(writer)


def _write_contents(files: Workspace, wanted: Sequence[Any], out: BinaryIO) -> None:
    for path, size, modified, changed, inode in wanted:
        try:
            with files.reading(path, f"{inode:x}-{size:x}-{modified:x}") as file:
                out.write(FILE_HEAD.pack(SENT, size))
                left, whole = size, True
                while left > 0:
                    data = _read(file, min(left, READ_AT_ONCE))
                    whole = whole and bool(data)
                    data = data or bytes(min(left, READ_AT_ONCE))
                    out.write(data)
                    left -= len(data)
                about = os.fstat(file.fileno())
                times = (about.st_size, about.st_mtime_ns, about.st_ctime_ns)
                whole = whole and times == (size, modified, changed)
                out.write(bytes([SENT if whole else CHANGED]))
        except RefusedError as error:
            how = UNREADABLE if error.code == "file_denied" else CHANGED
            out.write(FILE_HEAD.pack(how, 0))


def _read(file: BinaryIO, size: int) -> bytes:
    """Return some of a file, none at its end, and none of what the disk cannot give."""
    try:
        return file.read(size)
    except OSError:  # what is begun must be ended: nobody could tell the next file's head from it
        return b""


# Steps of an undo. Each may be done again.


async def _restore(files: Workspace, reader: Reader, writer: Writer) -> None:
    while (came := await read_frame(reader)) is not None:
        if came[0] is not FrameKind.JSON:
            raise ProtocolError("a step is no JSON")
        step = read_object(came[1])
        try:
            await _take_step(files, step, reader)
        except RefusedError as error:
            await agree(writer, code=error.code, message=str(error))
        else:
            await agree(writer, code=None, message="")


async def _take_step(files: Workspace, step: dict[str, Any], reader: Reader) -> None:
    path, tag, mode = text_in(step, "path"), step.get("tag"), step.get("mode")
    if not isinstance(tag, str | None) or not isinstance(mode, int | None):
        raise RefusedError("invalid_request", "A step has no such tag or mode.")
    match step.get("do"):
        case "remove":
            await asyncio.to_thread(_remove, files, path, tag, step.get("target"))
        case "folder":
            await asyncio.to_thread(_make_folder, files, path)
        case "mode":
            await asyncio.to_thread(_set_mode, files, path, mode or 0)
        case "link":
            target = text_in(step, "target")
            await asyncio.to_thread(_link, files, path, target)
        case "file":
            await _write(files, path, tag, mode or 0, reader)
        case "sync":
            await asyncio.to_thread(files.sync)
        case _:
            raise RefusedError("unknown_operation", "There is no such step.")


def _remove(files: Workspace, path: str, tag: str | None, target: str | None) -> None:
    """Delete a file that has still this tag, a link that still leads there, or an empty folder."""
    with refusing(path), files.at(path, follow=False) as place:
        if place.name == HERE:
            raise RefusedError("invalid_path", "The workspace itself stays.")
        try:
            about = place.look()
        except FileNotFoundError:
            return
        if stat.S_ISDIR(about.st_mode):
            _remove_folder(place)
            return
        is_link = stat.S_ISLNK(about.st_mode)
        found = shown(os.readlink(place.name, dir_fd=place.folder)) if is_link else tag_of(about)
        if found != (target if is_link else tag):
            raise RefusedError("file_changed", f"It is another by now: {path}")
        os.unlink(place.name, dir_fd=place.folder)


def _remove_folder(place: Place) -> None:
    """Delete a folder that holds nothing but what a killed writer has left in it."""
    folder = place.open(FOLDER)
    try:
        with os.scandir(folder) as found:
            names = [os.fsencode(entry.name) for entry in found]
        for name in names if all(PART.fullmatch(name) for name in names) else ():
            os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)
    os.rmdir(place.name, dir_fd=place.folder)


def _make_folder(files: Workspace, path: str) -> None:
    with refusing(path), files.at(path, follow=False) as place:
        try:
            os.mkdir(place.name, _OWN, dir_fd=place.folder)
        except FileExistsError:
            if not stat.S_ISDIR(place.look().st_mode):
                raise


def _set_mode(files: Workspace, path: str, mode: int) -> None:
    """Set a file's or folder's rights, also where it may not be opened; never a link's target."""
    with refusing(path), files.at(path, follow=False) as place:
        entry = place.open(os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if stat.S_ISLNK(os.fstat(entry).st_mode):
                raise RefusedError("file_changed", f"It is a link by now: {path}")
            os.chmod(f"/proc/self/fd/{entry}", mode)  # noqa: PTH101 - of the descriptor
        finally:
            os.close(entry)


def _link(files: Workspace, path: str, target: str) -> None:
    """Make a link, unless it is there already."""
    try:
        leads = plain(target)
    except ValueError as error:
        raise RefusedError("invalid_path", "The link's target is not written as one.") from error
    with refusing(path), files.at(path, follow=False) as place:
        try:
            os.symlink(leads, place.name, dir_fd=place.folder)
        except FileExistsError:
            if os.readlink(place.name, dir_fd=place.folder) != leads:
                raise


async def _write(files: Workspace, path: str, tag: str | None, mode: int, reader: Reader) -> None:
    content = content_in(reader)
    try:
        async with in_thread(files.writing(path, tag, durable=False)) as (file, _):
            async for data in content:
                with refusing(path):
                    await asyncio.to_thread(write_all, file, data)
            with refusing(path):
                os.fchmod(file.fileno(), mode)
    finally:
        async for _ in content:  # what a refusal left unread is not the next step
            pass
