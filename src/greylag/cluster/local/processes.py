"""Finding, watching and ending processes, sure that a pid still means the same process."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from greylag.execd.processes import birth, has_variables

MARK = "GREYLAG_ENVIRONMENT"
"""The environment variable that every descendant of an environment's agentd inherits."""

_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process and no other: pids are used again, so ``birth`` tells two of them apart."""

    pid: int
    birth: str


def identify(pid: int) -> ProcessId | None:
    """Return the process that has ``pid`` now, if it is alive."""
    born = birth(pid)
    return None if born is None else ProcessId(pid, born)


def is_alive(process: ProcessId) -> bool:
    """Tell whether ``process`` runs; a zombie does not."""
    return birth(process.pid) == process.birth


def runs_file(process: ProcessId, path: str) -> bool:
    """Tell whether ``process`` is alive and ``path`` a word of its command line, which it lacks for
    a moment while it begins: then it may be.
    """
    with suppress(psutil.Error, OSError):
        words = psutil.Process(process.pid).cmdline()
        return (not words or path in words) and is_alive(process)
    return False


def marked(mark: str) -> set[ProcessId]:
    """Return every process whose environment variables hold our mark with this value.

    This finds shells that left their group and session. It cannot look into processes of other
    users, nor into those that wiped their environment.
    """
    found: set[ProcessId] = set()
    for pid in psutil.pids():
        if has_variables(pid, {MARK: mark}):
            _add(found, pid)
    return found


def children(process: ProcessId, *, recursive: bool) -> set[ProcessId]:
    """Return the children of ``process`` and, with ``recursive``, theirs, and so on."""
    found: set[ProcessId] = set()
    if is_alive(process):
        with suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=recursive):
                _add(found, child.pid)
    return found


def send(processes: Iterable[ProcessId], number: signal.Signals) -> None:
    """Signal each of ``processes`` that still runs. One that is not ours to signal stays."""
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            _send_one(process, number)


def reap(pid: int) -> int | None:
    """Collect our ended child ``pid`` and return its exit code (negative: the ending signal), or
    ``None`` when it still runs or is not our child.
    """
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if ended == pid else None


async def wait_end(process: ProcessId) -> None:
    """Return when ``process`` has ended (at once, if it has)."""
    descriptor = _open_pidfd(process.pid)
    if descriptor is None:
        while is_alive(process):  # noqa: ASYNC110 - these systems have no event for it
            await asyncio.sleep(_POLL_SECONDS)
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        loop.add_reader(descriptor, ended.set)
        # Asked after opening: if it is alive now, then the descriptor is its own.
        if is_alive(process):
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _add(found: set[ProcessId], pid: int) -> None:
    if process := identify(pid):
        found.add(process)


def _open_pidfd(pid: int) -> int | None:
    """Return a descriptor that is readable once ``pid`` has ended, where the system has those."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _send_one(process: ProcessId, number: signal.Signals) -> None:
    descriptor = _open_pidfd(process.pid)
    if descriptor is None or sys.platform != "linux":
        if is_alive(process):
            os.kill(process.pid, number)
        return
    # If it is alive after opening, the descriptor is its own, and the signal can meet no other.
    try:
        if is_alive(process):
            signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)
