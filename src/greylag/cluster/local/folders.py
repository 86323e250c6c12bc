"""An environment's folder: what lies where, its record and its lock.

``root/<namespace>/<deployment>/`` holds ``volume/`` (agentd's state and what the agent sees),
``agentd.log``, ``seccomp``, ``resolv.conf`` and ``environment.json`` (the record). All of it is for
our account only. Beside the namespaces, in names that no namespace can have, are ``.locks/`` and
``.removed/``. Everything here blocks.
"""

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

import structlog

from greylag.cluster.local.processes import ProcessId
from greylag.common.typed import parse_encodable, shaped
from greylag.domain.errors import ClusterError, ClusterUnavailableError, OvertakenError
from greylag.domain.names import MAX_LABEL_LENGTH, EnvironmentNames
from greylag.domain.project import Fence, ProjectRef

_LABEL = re.compile(rf"[a-z0-9][a-z0-9-]{{0,{MAX_LABEL_LENGTH - 1}}}")
_RECORD = "environment.json"
_STATE = "state"
_LISTENING = "listening.json"
_LISTENING_BYTES = 4096
_LOCKS = ".locks"
NAME, SETTINGS = "name", "settings"
"""Notes beside the record: the project's name, and with which settings it was started."""
_LOCK_SECONDS = 10.0
_FENCE_BYTES = 4096
_LOCK_POLL_SECONDS = 0.01


class Phase(StrEnum):
    """What is meant to be, as the last verb left it."""

    STOPPED = "stopped"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentRecord:
    """What is on record of one environment, in ``environment.json``.

    ``mark`` is in the environment variables of all its processes. ``process`` is the one that we
    started: agentd, or with ``boxed`` the sandbox around it, as an older Greylag had it;
    ``exit_code`` is set when it ended unasked and we could tell. ``log_start`` is where its lines
    begin in the log, in bytes. Times are seconds since the epoch.
    """

    ref: ProjectRef
    mark: str
    token: str = field(repr=False)
    phase: Phase = Phase.STOPPED
    process: ProcessId | None = None
    boxed: bool = False
    started_at: float | None = None
    stopping_since: float | None = None
    exit_code: int | None = None
    log_start: int = 0

    def to_json(self) -> bytes:
        """Return the record as a file's content."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read a file's content.

        Raises:
            ValueError, KeyError, TypeError: it is none of ours.
        """
        told = parse_encodable(content)
        return shaped(cls, {**told, "phase": Phase(told["phase"]), "process": told["process"]})


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of one environment, which may or may not be there."""

    root: Path
    namespace: str
    deployment: str

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.root / self.namespace / self.deployment

    @property
    def volume(self) -> Path:
        """What the agent keeps."""
        return self.path / "volume"

    @property
    def log(self) -> Path:
        """What agentd writes to stdout and stderr."""
        return self.path / "agentd.log"

    @property
    def seccomp(self) -> Path:
        """The filter of system calls for its sandbox."""
        return self.path / "seccomp"

    @classmethod
    def of(cls, root: Path, names: EnvironmentNames) -> Self:
        """Return the folder for ``names``.

        Raises:
            ClusterError: one of them is no label.
        """
        for name in (names.namespace, names.deployment):
            if not _LABEL.fullmatch(name):
                raise ClusterError(f"{name!r} cannot be the name of a folder.", terminal=True)
        return cls(root, names.namespace, names.deployment)

    @classmethod
    def all(cls, root: Path) -> list[Self]:
        """Return every folder under ``root`` that has a record."""
        found = sorted(root.glob(f"[!.]*/[!.]*/{_RECORD}"))
        return [cls(root, path.parts[-3], path.parts[-2]) for path in found]

    def read(self) -> EnvironmentRecord | None:
        """Return the record, or ``None`` when there is no environment here.

        Raises:
            ClusterUnavailableError: there is one that cannot be read.
        """
        try:
            return EnvironmentRecord.from_json((self.path / _RECORD).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClusterUnavailableError(
                f"The record {self.path / _RECORD} cannot be read: {error}"
            ) from error

    def write(self, record: EnvironmentRecord) -> None:
        """Put ``record`` in the place of the present one, in one step, durably."""
        staged = self.path / f"{_RECORD}.new"
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(record.to_json())
            file.flush()
            os.fsync(descriptor)
        staged.replace(self.path / _RECORD)

    def note_name(self, name: str) -> None:
        """Write the project's name, for whoever finds the environment without its record."""
        if name and name != self.noted(NAME):
            self.note(NAME, name)

    def note(self, kind: str, text: str) -> None:
        """Write a note of a kind: ``NAME``, or ``SETTINGS``."""
        (self.path / kind).write_text(text, "utf-8", "backslashreplace")

    def noted(self, kind: str) -> str:
        """Return a note, empty where it was never written."""
        try:
            return (self.path / kind).read_text("utf-8", "replace")
        except OSError:
            return ""

    def newest_fence(self) -> Fence | None:
        """Return the newest claim that the environment has seen."""
        try:
            return _fence(self._lock_path.read_bytes())
        except OSError:
            return None

    def read_listening(self) -> bytes:
        """Return the beginning of the file in which agentd says where it listens.

        Without a sandbox tools can put a link or a pipe in its place, or in the place of the
        folder that it is in: no link is followed, and nothing is waited for.

        Raises:
            OSError: there is no such file.
        """
        with self._state() as state:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
            with os.fdopen(os.open(_LISTENING, flags, dir_fd=state), "rb") as file:
                return file.read(_LISTENING_BYTES) or b""

    def forget_listening(self) -> None:
        """Remove that file, which a former agentd may have left; follows no link either."""
        with suppress(FileNotFoundError, NotADirectoryError), self._state() as state:
            os.unlink(_LISTENING, dir_fd=state)

    @contextmanager
    def _state(self) -> Iterator[int]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        descriptor = os.open(self.volume / _STATE, flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def make(self) -> None:
        """Make the folder and its volume."""
        for path in (self.root, self.path.parent, self.path, self.volume):
            _make_private(path)

    def remove(self) -> None:
        """Take the environment away in one step, durably; ``empty_removed`` deletes its files."""
        if self.path.exists():
            _make_private(self.root / REMOVED)
            self.path.rename(self.root / REMOVED / secrets.token_hex(8))
            # Else it might be back after a loss of power, and a new project of that id find its
            # files.
            _bring_to_disk(self.path.parent)
        # The lock stays: it remembers the newest claim, so that an older one brings nothing back.

    @contextmanager
    def lock(self, fence: Fence | None = None) -> Iterator[None]:
        """Hold the environment against all other workers; a killed holder lets go by itself.

        Args:
            fence: the claim that this is done under; ``None`` for what needs no claim.

        Raises:
            ClusterUnavailableError: another one holds it and does not let go.
            LeaseLostError: it has been held under a newer claim.
        """
        _make_private(self.root)
        _make_private(self.root / _LOCKS)
        give_up = time.monotonic() + _LOCK_SECONDS
        while (descriptor := _try_lock(self._lock_path)) is None:
            if time.monotonic() > give_up:
                raise ClusterUnavailableError("Another worker holds this environment.")
            time.sleep(_LOCK_POLL_SECONDS)
        try:
            if fence is not None:
                _raise_fence(descriptor, fence)
            yield
        finally:
            os.close(descriptor)

    @property
    def _lock_path(self) -> Path:
        return self.root / _LOCKS / f"{self.namespace}.{self.deployment}"


def _make_private(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def _bring_to_disk(folder: Path) -> None:
    descriptor = os.open(folder, _FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or ``None`` when someone else does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def _raise_fence(descriptor: int, fence: Fence) -> None:
    """Write ``fence`` into the lock's file, unless a newer one of the same record is there."""
    newest = _fence(os.pread(descriptor, _FENCE_BYTES, 0))
    if newest is not None and newest.record_id == fence.record_id and newest.number > fence.number:
        raise OvertakenError(newest.number)
    if newest != fence:
        kept = {"record_id": fence.record_id, "number": fence.number}
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(kept).encode(), 0)


def _fence(content: bytes) -> Fence | None:
    """Return what a lock's file tells: nothing when it is new, or its writer was cut short."""
    try:
        return shaped(Fence, parse_encodable(content))
    except (ValueError, TypeError):
        return None


# Deletes the files of environments that were taken away, whatever an agent's tools left there.
#
# A tree may be deeper than a path can say, hold any name, link anywhere, and shut its owner out.
# So nothing is named by a path: each folder is opened below another, without following links, its
# files are deleted, and its folders are moved up beside it to be next. That takes the same small
# memory and three open files for every tree, and being killed anywhere leaves less of the same to
# do. Everything here blocks.

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
    def _noting(self, name: str) -> Iterator[None]:
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
