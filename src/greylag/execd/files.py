r"""The workspace's files, worked on as the workspace's user.

A path is text relative to the workspace: UTF-8, but a byte that is none is written ``\xHH`` and a
backslash ``\\``, so that every name that the system takes can be said. Each part of a path is
opened below the one before it, never by its whole path, so that none is too deep, and nothing that
changes meanwhile leads elsewhere. Links are followed as far as they stay in the workspace.

Everything here blocks, and is called in a thread. Trees are walked in memory that does not grow
with them; what lies deeper than ``MOST_DEPTH`` folders is not walked into.
"""

import ctypes
import errno
import heapq
import os
import re
import secrets
import stat
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from greylag.execd.protocol import RefusedError

MOST_ARCHIVES = 3
"""How many may be read at once: each takes a thread, for as long as its reader likes."""
READ_AT_ONCE = 1024 * 1024
MOST_DEPTH = 128
MOST_PATH = 16 * 1024
_MOST_REACHED = 64 * 1024
_MOST_LINKS = 40
_MOST_NAME = 255
_MOST_PAGE = 512 * 1024  # bytes of names, well within a frame
_MOST_TARGET = 1024
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# No link, and no waiting for the other end of a pipe.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
PART = re.compile(rb"\.greylag-[0-9a-f]{16}\.part")
_PART_SECONDS = 3600.0
_ESCAPE = re.compile(r"\\(\\|x[0-9a-fA-F]{2})?")
# What a system says that makes no link there: the last two are one on Linux, not on macOS.
_NO_LINKS = {errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
HERE = b"."
ANY = "*"
"""Stands for the tag of any file, but of one that is there."""

CODES = {
    errno.ENOENT: ("file_not_found", "It is not there"),
    errno.ENOTDIR: ("not_a_folder", "It is no folder"),
    errno.EISDIR: ("not_a_file", "It is no plain file"),
    errno.EEXIST: ("file_exists", "There is something of this name already"),
    errno.ENOTEMPTY: ("folder_not_empty", "The folder is not empty"),
    errno.EACCES: ("file_denied", "The agent's user may not do this"),
    errno.EPERM: ("file_denied", "The agent's user may not do this"),
    errno.EROFS: ("file_denied", "It cannot be written"),
    errno.ENOSPC: ("no_space", "The environment's disk is full"),
    errno.EDQUOT: ("no_space", "The environment's disk is full"),
    errno.ENAMETOOLONG: ("invalid_path", "A name is too long"),
    errno.EINVAL: ("invalid_path", "This cannot be done there"),
    errno.ELOOP: ("file_changed", "It changed meanwhile"),
}
"""What the system refuses, as a code and in words."""


@contextmanager
def refusing(path: str) -> Iterator[None]:
    """Turn what the system refuses into words for the one who asked."""
    try:
        yield
    except OSError as error:
        code, words = CODES.get(error.errno or 0, ("file_failed", error.strerror or str(error)))
        raise RefusedError(code, f"{words}: {path[:200]}") from error


def shown(name: bytes) -> str:
    """Return a name or path as text that ``parts_of`` reads back."""
    text = name.replace(b"\\", b"\\\\").decode("utf-8", "surrogateescape")
    return "".join(f"\\x{ord(c) & 0xFF:02x}" if "\udc80" <= c <= "\udcff" else c for c in text)


def parts_of(path: str) -> list[bytes]:
    """Return the names of a path, none for the workspace itself.

    Raises:
        RefusedError: ``invalid_path``.
    """
    if len(path) > MOST_PATH:
        raise RefusedError("invalid_path", "The path is too long.")
    try:
        names = plain(path).split(b"/")
    except (ValueError, UnicodeEncodeError) as error:
        raise RefusedError("invalid_path", "The path is not written as paths are here.") from error
    parts = [name for name in names if name not in {b"", b"."}]
    if b".." in parts or any(b"\0" in name or len(name) > _MOST_NAME for name in parts):
        raise RefusedError("invalid_path", "The path holds what no name in the workspace may be.")
    return parts


def entry_path(folder: str, name: str) -> str:
    """Return the path of an entry of a folder, of the workspace for ""."""
    return f"{folder}/{name}" if folder else name


def too_deep(name: bytes) -> bool:
    """Tell whether ``Workspace.walk`` goes into no folder of this path, for it is too deep."""
    return name.count(b"/") >= MOST_DEPTH - 1


def plain(path: str) -> bytes:
    """Return a name or path, or where a link leads, as the system has it.

    Raises:
        ValueError: it is not as ``shown`` writes it.
    """

    def byte(match: re.Match[str]) -> str:
        said = match.group(1)
        if said is None:
            raise ValueError("half an escape")
        return "\\" if said == "\\" else chr(0xDC00 + int(said[1:], 16))

    escaped = _ESCAPE.sub(byte, path)
    # A byte below 0x80 is never escaped that way: it would be a second way to say the same.
    if re.search("[\udc00-\udc7f]", escaped) or re.search("[\ud800-\udfff]", path):
        raise ValueError("no such escape")
    return escaped.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Place:
    """An entry of an open folder."""

    folder: int
    name: bytes

    def look(self) -> os.stat_result:
        """Return what is there, a link as itself."""
        return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)

    def open(self, flags: int) -> int:
        """Open what is there."""
        return os.open(self.name, flags, dir_fd=self.folder)

    def file(self) -> BinaryIO:
        """Open a plain file to be read; raises ``OSError`` for all else."""
        descriptor = self.open(_FILE)
        # Not left to fdopen, which would refuse a folder, and leave it open.
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise IsADirectoryError(errno.EISDIR, "no plain file")
        return os.fdopen(descriptor, "rb")


Walk = Generator[tuple[bytes, Place, os.stat_result], None, None]
"""Entries with their paths below where the walk began; to be closed."""


class Workspace:
    """The files below one folder.

    Attributes:
        reached: the paths that were found past links, as they are without them; "", which is all,
            when they are very many or one is longer than what may be asked for.
    """

    def __init__(self, root: str) -> None:
        self._root = os.fsencode(root)
        self.reached: set[str] = set()

    @contextmanager
    def at(self, path: str, *, follow: bool = True, make: bool = False) -> Iterator[Place]:
        """Find a path.

        Args:
            path: as clients write it.
            follow: whether a link at its end is followed; those before it always are.
            make: whether folders on the way are made; a block that fails leaves none of them.

        Raises:
            RefusedError: it cannot be found, or leads out of the workspace.
            OSError: the system refused.
        """
        todo, links, name, names = deque(parts_of(path)), 0, HERE, list[bytes]()
        with _held(self._root) as (held, made):
            while todo:
                part = todo.popleft()
                if part == b"..":
                    if len(held) == 1:
                        raise _leads_out(path)
                    os.close(held.pop())
                    names.pop()
                    continue
                target = _target(part, held[-1]) if todo or follow else None
                if target is not None:
                    links += 1
                    if links > _MOST_LINKS:
                        raise RefusedError("outside_workspace", f"Its links go in circles: {path}")
                    todo.extendleft(reversed(self._inside(target, held, path)))
                    del names[len(held) - 1 :]
                elif todo:
                    _enter(part, held, made if make else None)
                    names.append(part)
                else:
                    name = part
            if links:
                self._reach(names if name == HERE else [*names, name])
            yield Place(held[-1], name)

    def _reach(self, names: Sequence[bytes]) -> None:
        above = [shown(b"/".join(names[:count])) for count in range(len(names) + 1)]
        if not self.reached.isdisjoint({"", *above}):
            return
        self.reached.add(above[-1])
        if len(above[-1]) > MOST_PATH or sum(map(len, self.reached)) > _MOST_REACHED:
            self.reached = {""}

    def _inside(self, target: bytes, held: list[int], path: str) -> list[bytes]:
        if target.startswith(b"/"):
            if target != self._root and not target.startswith(self._root + b"/"):
                raise _leads_out(path)
            target = target[len(self._root) :]
            while len(held) > 1:
                os.close(held.pop())
        return [part for part in target.split(b"/") if part not in {b"", b"."}]

    # What may be asked.

    def find(self, path: str, *, follow: bool = True) -> None:
        """Find a path, as ``at`` does, for what it reaches."""
        with refusing(path), self.at(path, follow=follow):
            return

    def entry(self, path: str) -> dict[str, Any]:
        """Return what is at a path."""
        with refusing(path), self.at(path) as place:
            return _entry(place)

    def page(self, path: str, after: str, most: int) -> dict[str, Any]:
        """Return a folder's entries by name, from after one name on, and the next page's start."""
        start = b"/".join(parts_of(after))
        with refusing(path), self.at(path) as place:
            about = _entry(place)
            if about["kind"] != "folder":
                return {"entry": about, "entries": [], "next": None}
            folder = place.open(FOLDER)
            try:
                entries, more = _page(folder, start, most)
            finally:
                os.close(folder)
        following = entries[-1]["name"] if entries and more else None
        return {"entry": about, "entries": entries, "next": following}

    @contextmanager
    def reading(self, path: str, tag: str) -> Iterator[BinaryIO]:
        """Open a file whose tag is still ``tag``.

        Raises:
            RefusedError: ``file_changed``, ``not_a_file``, or as ``at`` raises.
        """
        with refusing(path), self.at(path) as place, place.file() as file:
            if tag_of(os.fstat(file.fileno())) != tag:
                raise RefusedError("file_changed", f"It changed meanwhile: {path}")
            yield file

    @contextmanager
    def writing(
        self, path: str, tag: str | None = None, *, follow: bool = True, durable: bool = True
    ) -> Iterator[tuple[BinaryIO, list[Any]]]:
        """Give a file to write what a path is to hold; it is there, whole, when the block ends.

        Args:
            path: where; folders on the way are made.
            tag: what the file's tag must be still; "" when there must be none, ``ANY`` when there
                must be one, ``None`` when that does not matter.
            follow: whether a link is followed; else the file takes its place.
            durable: whether it is on the disk when the block ends. One of very many files need
                not be, nor does its folder get searched for what killed writers have left.

        Yields:
            the file, with the rights of the one before, and a list that holds its entry afterwards.
        """
        made: list[Any] = []
        with refusing(path), self.at(path, follow=follow, make=True) as place:
            if place.name == HERE:
                raise RefusedError("not_a_file", "The workspace itself is no file.")
            kept = _matching(place, tag, path)
            if durable:
                _sweep(place.folder)
            part = _part()
            with _temporary(Place(place.folder, part), kept) as file:
                yield file, made
                if durable:
                    os.fsync(file.fileno())
                _matching(place, tag, path)
                os.rename(part, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
            if durable:
                os.fsync(place.folder)
            made.append(_entry(place))

    def folder(self, path: str, mode: int = 0, *, durable: bool = True) -> dict[str, Any]:
        """Make a folder, and those on the way; with rights ``mode`` beside its owner's, if any."""
        with refusing(path), self.at(path, make=True) as place:
            if place.name != HERE:
                with _MAKING:
                    folder, _ = _made(place.name, place.folder)
                    _USERS.pop(_itself(folder), None)
                try:
                    if mode:  # what was passed on by the folder above, such as its group, stays
                        others = os.fstat(folder).st_mode & 0o7000
                        os.fchmod(folder, others | mode & 0o777 | 0o700)
                finally:
                    os.close(folder)
            if durable:
                os.fsync(place.folder)
            return _entry(place)

    def move(self, source: str, target: str, *, replace: bool) -> dict[str, Any]:
        """Give something another name, the link where it is one."""
        with (
            refusing(f"{source} -> {target}"),
            self.at(source, follow=False) as old,
            self.at(target, follow=False, make=True) as new,
        ):
            if HERE in {old.name, new.name}:
                raise RefusedError("invalid_path", "The workspace itself stays where it is.")
            if replace or not _linked(old, new):
                if not replace and _is_there(new):
                    raise FileExistsError(errno.EEXIST, "exists")
                os.rename(old.name, new.name, src_dir_fd=old.folder, dst_dir_fd=new.folder)
            # The new name first: a loss of power in between leaves both, not neither.
            os.fsync(new.folder)
            os.fsync(old.folder)
            return _entry(new)

    def remove(self, path: str, *, recursive: bool) -> None:
        """Delete something, the link where it is one."""
        with refusing(path), self.at(path, follow=False) as place:
            if place.name == HERE:
                raise RefusedError("invalid_path", "The workspace itself stays.")
            if not stat.S_ISDIR(place.look().st_mode):
                os.unlink(place.name, dir_fd=place.folder)
            else:
                if recursive:
                    folder = place.open(FOLDER)
                    try:
                        _empty(folder)
                    finally:
                        os.close(folder)
                os.rmdir(place.name, dir_fd=place.folder)
            os.fsync(place.folder)

    def sync(self) -> None:
        """Return when all that was written is on the disk.

        Once for very many files, by syncfs(2), which Python's os lacks: two waits for each would
        make an undo, or an archive, of thousands last minutes.
        """
        with refusing("."), self.at(".") as place:
            if ctypes.CDLL(None, use_errno=True).syncfs(place.folder) != 0:
                raise OSError(ctypes.get_errno(), "syncfs")

    def link(self, path: str, target: bytes) -> None:
        """Make a link in place of what is there, if that is no folder.

        What it leads to is looked at when it is followed.
        """
        if b"\0" in target:
            raise RefusedError("invalid_path", f"A link cannot lead there: {path}")
        with self._replacing(path) as (place, part):
            os.symlink(target, part, dir_fd=place.folder)

    def hard_link(self, path: str, source: str) -> None:
        """Give a file, or a link as itself, a second name, in place of what is there, no folder."""
        with (
            refusing(source),
            self.at(source, follow=False) as old,
            self._replacing(path) as (new, part),
        ):
            about = {"src_dir_fd": old.folder, "dst_dir_fd": new.folder}
            os.link(old.name, part, **about, follow_symlinks=False)

    @contextmanager
    def _replacing(self, path: str) -> Iterator[tuple[Place, bytes]]:
        """Give a name beside a path, for what takes the path's own when the block ends."""
        with refusing(path), self.at(path, follow=False, make=True) as place:
            part = _part()
            try:
                yield place, part
                os.rename(part, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
            finally:  # it is there still, too, where both are names of one file
                with suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=place.folder)

    def walk(self, path: str, skipped: Collection[bytes] = ()) -> Walk:
        """Yield everything below a folder (or the one file), folders before what they hold.

        What has a name that is ``skipped`` is neither told nor gone into.
        """
        with refusing(path), self.at(path) as place:
            if stat.S_ISDIR(place.look().st_mode):
                yield from _below(place, skipped)
            else:
                yield place.name, place, place.look()


class _Made(NamedTuple):
    """A folder that was made on the way to something."""

    above: int
    name: bytes
    itself: tuple[int, int]


# How many are on their way through a folder that one of them made: while another is, or once one
# has come to its end, one that fails does not take it away.
_USERS: Counter[tuple[int, int]] = Counter()
_MAKING = threading.Lock()


@contextmanager
def _held(root: bytes) -> Iterator[tuple[list[int], list[_Made]]]:
    """Give a list of open folders, which are closed at the end, and one of those that were made.

    These are deleted, if they are empty, when the block fails.
    """
    held, made = [os.open(root, FOLDER)], list[_Made]()
    try:
        yield held, made
    except BaseException:
        _leave(made, failed=True)
        raise
    finally:
        _leave(made, failed=False)
        for folder in held:
            os.close(folder)


def _enter(part: bytes, held: list[int], made: list[_Made] | None) -> None:
    """Open a folder of the last one that is held; make it, if what was made is to be known."""
    if made is None:
        held.append(os.open(part, FOLDER, dir_fd=held[-1]))
        return
    with _MAKING:
        folder, is_new = _made(part, held[-1])
        held.append(folder)
        itself = _itself(folder)
        if is_new or itself in _USERS:
            made.append(_Made(os.dup(held[-2]), part, itself))
            _USERS[itself] += 1


def _itself(folder: int) -> tuple[int, int]:
    about = os.fstat(folder)
    return about.st_dev, about.st_ino


def _leave(made: list[_Made], *, failed: bool) -> None:
    while made:
        above, name, itself = made.pop()
        with _MAKING:
            others = _USERS.pop(itself, 0) - 1
            if failed and others > 0:
                _USERS[itself] = others
            elif failed and others == 0:
                with suppress(OSError):  # another has put something there meanwhile
                    os.rmdir(name, dir_fd=above)
        os.close(above)


def _leads_out(path: str) -> RefusedError:
    return RefusedError("outside_workspace", f"A link leads out of the workspace: {path}")


def _target(part: bytes, folder: int) -> bytes | None:
    """Return where a link leads, ``None`` for what is no link."""
    try:
        return os.readlink(part, dir_fd=folder)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENOENT}:
            return None
        raise


def _made(part: bytes, folder: int) -> tuple[int, bool]:
    """Open a folder, and tell whether it was made for that."""
    is_new = False
    try:
        return os.open(part, FOLDER, dir_fd=folder), is_new
    except NotADirectoryError:
        raise FileExistsError(errno.EEXIST, "exists") from None
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(part, dir_fd=folder)
            is_new = True
    return os.open(part, FOLDER, dir_fd=folder), is_new


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of ``data``, in as many steps as it takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def tag_of(about: os.stat_result) -> str:
    """Return what changes whenever a file does."""
    return f"{about.st_ino:x}-{about.st_size:x}-{about.st_mtime_ns:x}"


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "other"


def _entry(place: Place) -> dict[str, Any]:
    about = place.look()
    kind = _kind(about.st_mode)
    target = None
    if kind == "link":
        with suppress(OSError):
            target = shown(os.readlink(place.name, dir_fd=place.folder))[:_MOST_TARGET]
    return {
        "name": "" if place.name == HERE else shown(place.name),
        "kind": kind,
        "size": about.st_size if kind == "file" else 0,
        "modified": about.st_mtime,
        "mode": stat.S_IMODE(about.st_mode),
        "target": target,
        "tag": tag_of(about),
    }


def _page(folder: int, start: bytes, most: int) -> tuple[list[dict[str, Any]], bool]:
    with os.scandir(folder) as found:
        names = (os.fsencode(one.name) for one in found)
        wanted = (name for name in names if name > start and not PART.fullmatch(name))
        first = heapq.nsmallest(most + 1, wanted)
    entries, size = [], 0
    for name in first[:most]:
        try:
            entries.append(_entry(Place(folder, name)))
        except FileNotFoundError:  # it has gone since
            continue
        size += 6 * (len(entries[-1]["name"]) + len(entries[-1]["target"] or "")) + 200
        if size > _MOST_PAGE:
            return entries, True
    return entries, len(first) > most


def _matching(place: Place, tag: str | None, path: str) -> int:
    """Return the mode that a file keeps, or 0o666 as the system shortens it for a new one."""
    try:
        about = place.look()
    except FileNotFoundError:
        if tag:
            raise RefusedError("file_changed", f"It is gone: {path}") from None
        return 0o666
    if tag is None and stat.S_ISLNK(about.st_mode):
        return 0o666
    if not stat.S_ISREG(about.st_mode):
        raise RefusedError("not_a_file", f"It is no plain file: {path}")
    if tag not in {None, ANY, tag_of(about)}:
        raise RefusedError("file_changed", f"It is another by now: {path}")
    return stat.S_IMODE(about.st_mode) & 0o777


def _part() -> bytes:
    return f".greylag-{secrets.token_hex(8)}.part".encode()


@contextmanager
def _temporary(part: Place, mode: int) -> Iterator[BinaryIO]:
    """Give a new file, which is deleted unless it has got another name by the end."""
    descriptor = os.open(part.name, _NEW, mode, dir_fd=part.folder)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            if mode != 0o666:  # noqa: PLR2004 - a new file's
                os.fchmod(descriptor, mode)
            yield file
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part.name, dir_fd=part.folder)


def _sweep(folder: int) -> None:
    """Delete what writers left in a folder who were killed long ago."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not PART.fullmatch(os.fsencode(entry.name)):
                continue
            with suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime < time.time() - _PART_SECONDS:
                    os.unlink(entry.name, dir_fd=folder)


def _linked(old: Place, new: Place) -> bool:
    """Move a file so that it replaces nothing, however quick another is; tell whether that works.

    Folders are not linked, though some systems can, nor can files of some file systems be; a folder
    replaces none but an empty one.
    """
    if stat.S_ISDIR(old.look().st_mode):
        return False
    try:
        os.link(
            old.name,
            new.name,
            src_dir_fd=old.folder,
            dst_dir_fd=new.folder,
            follow_symlinks=False,
        )
    except FileExistsError:
        if not _is_half_moved(old, new):
            raise
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    os.unlink(old.name, dir_fd=old.folder)
    return True


def _is_half_moved(old: Place, new: Place) -> bool:
    """Tell whether two names are of one file, as a kill between its link and unlink leaves it.

    A file of one name has no other, though a system that takes letters' cases for the same finds
    it by two.
    """
    about, other = old.look(), new.look()
    if about.st_nlink == 1 or (about.st_dev, about.st_ino) != (other.st_dev, other.st_ino):
        return False
    return (_itself(old.folder), old.name) != (_itself(new.folder), new.name)


def _is_there(place: Place) -> bool:
    try:
        place.look()
    except FileNotFoundError:
        return False
    return True


def _empty(folder: int) -> None:
    """Delete all that a folder holds; folders are moved up until none is deep."""
    while names := _some(folder):
        for name in names:
            try:
                inner = os.open(name, FOLDER, dir_fd=folder)
            except NotADirectoryError:
                os.unlink(name, dir_fd=folder)
                continue
            try:
                while children := _some(inner):
                    for child in children:
                        _take_up(child, inner, folder)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=folder)


def _take_up(name: bytes, inner: int, folder: int) -> None:
    about = os.stat(name, dir_fd=inner, follow_symlinks=False)
    if stat.S_ISDIR(about.st_mode):
        new = secrets.token_hex(8).encode()
        os.rename(name, new, src_dir_fd=inner, dst_dir_fd=folder)
    else:
        os.unlink(name, dir_fd=inner)


def _some(folder: int) -> list[bytes]:
    with os.scandir(folder) as entries:
        return [os.fsencode(entry.name) for entry, _ in zip(entries, range(1000), strict=False)]


def _below(place: Place, skipped: Collection[bytes]) -> Walk:
    stack = [(b"", place.open(FOLDER))]
    walks = [os.scandir(stack[0][1])]
    try:
        while walks:
            prefix, folder = stack[-1]
            entry = next(walks[-1], None)
            if entry is None:
                walks.pop()
                os.close(stack.pop()[1])
                continue
            one = Place(folder, os.fsencode(entry.name))
            if one.name in skipped or PART.fullmatch(one.name):
                continue
            with suppress(OSError):  # it has gone since, or shuts its owner out
                about = one.look()
                yield prefix + one.name, one, about
                if stat.S_ISDIR(about.st_mode) and len(stack) < MOST_DEPTH:
                    inner = one.open(FOLDER)
                    try:
                        walks.append(os.scandir(inner))
                    except OSError:
                        os.close(inner)
                        raise
                    stack.append((prefix + one.name + b"/", inner))
    finally:
        for walked in walks:
            walked.close()
        for _, folder in stack:
            os.close(folder)
