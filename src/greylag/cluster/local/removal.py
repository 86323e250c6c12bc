"""Deletes the files of environments that were taken away, whatever an agent's tools left there.

A tree may be deeper than a path can say, hold any name, link anywhere, and shut its owner out. So
nothing is named by a path: each folder is opened below another, without following links, its files
are deleted, and its folders are moved up beside it to be next. That takes the same small memory and
three open files for every tree, and being killed anywhere leaves less of the same to do. Everything
here blocks.
"""

import os
import secrets
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = structlog.get_logger(__name__)
REMOVED = ".removed"
"""The folder, beside the namespaces, of what was taken away."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_OWN = 0o700


def empty_removed(root: Path, seconds: float) -> bool:
    """Delete what was taken away under ``root``, for so many ``seconds``.

    What cannot be deleted is logged and left, and keeps nothing else.

    Returns:
        whether the time ended before the work did.
    """
    try:
        holder = os.open(root / REMOVED, _FOLDER)
    except FileNotFoundError:
        return False
    try:
        return _Emptying(holder, time.monotonic() + seconds).run()
    finally:
        os.close(holder)


class _Emptying:
    """One go at the folder ``holder``. Another worker may be at the same."""

    def __init__(self, holder: int, give_up: float) -> None:
        self._holder = holder
        self._give_up = give_up
        self._gone = 0
        self._failures = 0
        self._first_failure = ""

    def run(self) -> bool:
        """Go on until nothing is left that can be deleted, or the time is over; tell which."""
        before = -1
        while before != self._gone:  # what was moved up may come too late for a round
            before = self._gone
            self._failures = 0
            with os.scandir(self._holder) as entries:
                for entry in entries:
                    self._delete(entry.name)
                    if self._is_late():
                        return True
        if self._failures:
            _log.warning("environment_files_left", count=self._failures, first=self._first_failure)
        return False

    def _delete(self, name: str) -> None:
        with self._noting(name):
            try:
                folder = _open_folder(name, self._holder)
            except NotADirectoryError:
                self._unlink(name, self._holder)
                return
            try:
                whole = self._clear(folder)
            finally:
                os.close(folder)
            if whole:
                os.rmdir(name, dir_fd=self._holder)
                self._gone += 1

    def _clear(self, folder: int) -> bool:
        """Delete a folder's files, and move its folders up to be cleared next.

        Returns:
            whether the time sufficed.
        """
        with os.scandir(folder) as entries:
            for entry in entries:
                with self._noting(entry.name):
                    if entry.is_dir(follow_symlinks=False):
                        self._move_up(entry.name, folder)
                    else:
                        self._unlink(entry.name, folder)
                if self._is_late():
                    return False
        return True

    def _unlink(self, name: str, folder: int) -> None:
        os.unlink(name, dir_fd=folder)
        self._gone += 1

    def _move_up(self, name: str, folder: int) -> None:
        new = secrets.token_hex(8)
        try:
            os.rename(name, new, src_dir_fd=folder, dst_dir_fd=self._holder)
        except PermissionError:  # its own entry ``..`` changes
            _open_up(name, folder)
            os.rename(name, new, src_dir_fd=folder, dst_dir_fd=self._holder)
        self._gone += 1

    def _is_late(self) -> bool:
        return time.monotonic() >= self._give_up

    @contextmanager
    def _noting(self, name: str) -> "Iterator[None]":
        """Keep what one entry refuses from stopping the rest."""
        try:
            with suppress(FileNotFoundError):  # another worker was faster
                yield
        except OSError as error:
            if not self._failures:
                self._first_failure = f"{name!a}: {error.strerror}"
            self._failures += 1


def _open_folder(name: str, parent: int) -> int:
    """Open a folder, and give its owner all rights to it; follows no link.

    Raises:
        NotADirectoryError: it is something else.
    """
    try:
        folder = os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        _open_up(name, parent)
        folder = os.open(name, _FOLDER, dir_fd=parent)
    with suppress(OSError):  # of another owner: then it may be empty, or be refused
        os.fchmod(folder, _OWN)
    return folder


def _open_up(name: str, parent: int) -> None:
    """Give a folder's owner all rights to it, though it cannot be opened; follows no link."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{handle}", _OWN)  # noqa: PTH101 - no path, a way to the open folder
    finally:
        os.close(handle)
