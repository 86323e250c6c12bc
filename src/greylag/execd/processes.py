"""Finding and ending every process of a run, also those that left its tree.

A tool may detach what it starts (``nohup x &``, setsid, a double fork). Three things find it again:
the tree of parents, a variable that every descendant inherits (``protocol.GROUP``), and, on Linux,
that execd is a child subreaper, so that what loses its parent becomes a child of execd itself. In a
sandbox or container of its own nothing can leave at all: its process namespace ends with execd.
"""

import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from greylag.execd.protocol import GROUP

_LINUX = sys.platform == "linux"
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_STATE, _PARENT, _START_TIME = 0, 1, 19  # proc(5), counted from the field after the name
_ENDED = {b"Z", b"X"}
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK") if _LINUX else 100
_KILL_SECONDS = 3.0
_PAUSE_SECONDS = 0.02
_LONGEST_ENVIRON = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Process:
    """One process and no other: pids are used again, starts are not."""

    pid: int
    parent: int
    start: float


def birth(pid: int) -> str | None:
    """Return what tells the process ``pid`` from others that had its number: pids are used again.

    ``None`` when there is none, or only a zombie. On Linux setting the clock changes nothing of it;
    elsewhere it is by the clock that psutil tells a start.
    """
    if not _LINUX:
        import psutil  # noqa: PLC0415 - only where there is no /proc

        try:
            process = psutil.Process(pid)
            ended = process.status() == psutil.STATUS_ZOMBIE
            return None if ended else str(process.create_time())
        except psutil.Error:
            return None
    try:
        fields = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[_STATE] in _ENDED:
        return None
    return f"{_boot()}:{fields[_START_TIME].decode()}"


def process_clock() -> float:
    """Return now, in seconds, on the clock by which it is told here when a process began; on Linux
    nobody can set it.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _LINUX else time.time()


def has_variables(pid: int, wanted: Mapping[str, str | frozenset[str]]) -> bool:
    """Tell whether the process ``pid`` began with all of ``wanted`` as environment variables, of
    which each has one value, or any of some.

    What cannot be seen is not there: in processes of other users, and on Linux after a mebibyte. By
    that bound a tool that hands its children hundreds of thousands of variables slows nobody down.
    """
    if not _LINUX:
        import psutil  # noqa: PLC0415 - only where there is no /proc

        try:
            found = psutil.Process(pid).environ()
        except (psutil.Error, OSError):
            return False
        return all(found.get(name) in _values(value) for name, value in wanted.items())
    try:
        with Path(f"/proc/{pid}/environ").open("rb") as file:
            block = b"\0" + file.read(_LONGEST_ENVIRON)
    except OSError:
        return False
    return all(
        b"\0%b=%b\0" % (os.fsencode(name), os.fsencode(value)) in block
        if isinstance(value, str)
        else _has_any(block, os.fsencode(name), value)
        for name, value in wanted.items()
    )


def _has_any(block: bytes, name: bytes, values: frozenset[str]) -> bool:
    """Tell whether an environment has a variable with one of some values, however many those are.

    Of one that stands there twice the first counts: whoever has written that could also have left
    it out.
    """
    _, found, rest = block.partition(b"\0" + name + b"=")
    value, end, _ = rest.partition(b"\0")
    return bool(found and end) and os.fsdecode(value) in values


def _values(value: str | frozenset[str]) -> frozenset[str]:
    return frozenset({value}) if isinstance(value, str) else value


def adopt_orphans() -> None:
    """Become the parent of what loses its own. Linux only; elsewhere it does nothing."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def guard_memory() -> None:
    """Let no other process of this user look into this one, or trace it. Linux only, as above."""
    _prctl(_PR_SET_DUMPABLE, 0)


def end_all() -> None:
    """Kill all other processes of our process namespace at once, if it is our own."""
    if os.getpid() == 1:
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)


def end_group(group: str, root: int | None, alone: Callable[[], bool]) -> list[int]:
    """Kill all of a run; blocks for some seconds at the most.

    Args:
        group: the value of ``protocol.GROUP`` in its environment.
        root: the process that the run began with; ``None`` once it has ended, as its pid may be
            another's then.
        alone: whether no other run is there now; then it has started all that we adopted, too.

    Returns:
        the pids that could not be killed.
    """
    wanted = {GROUP: group}

    def find() -> list[Process]:
        alive = list(_all())
        # Asked after looking: what a later run has begun is not among them.
        adopter = os.getpid() if alone() else None
        roots = {
            one.pid
            for one in alive
            if one.pid == root or one.parent == adopter or has_variables(one.pid, wanted)
        }
        parents = _parents(alive)
        return [one for one in alive if one.pid in roots or roots & _ancestors(one, parents)]

    return _kill_until_none(find)


def end_matching(wanted: Mapping[str, str | frozenset[str]], since: float) -> list[int]:
    """Kill what has ``wanted`` in its environment and has begun since then.

    What older ones among them go on starting is left alone: a loop in the background of an earlier
    turn may start a process every moment.

    Args:
        wanted: environment variables, all of which must be there (see ``has_variables``).
        since: seconds on the clock of ``process_clock``.

    Returns:
        the pids that could not be killed.
    """
    # Start times are whole ticks: what began in the same one is not known to be older.
    begin = math.floor(since * _TICKS_A_SECOND) / _TICKS_A_SECOND

    def find() -> list[Process]:
        alive = list(_all())
        matching = [one for one in alive if has_variables(one.pid, wanted)]
        older = {one.pid for one in matching if one.start < begin}
        # Of all processes: what lies between two of ours may have another environment.
        parents = _parents(alive)
        return [
            one for one in matching if one.pid not in older and not older & _ancestors(one, parents)
        ]

    return _kill_until_none(find)


def descendants() -> list[int]:
    """Return the pids of all that we have started and that lives: orphans have become ours."""
    alive = list(_all())
    parents = _parents(alive)
    return [one.pid for one in alive if os.getpid() in _ancestors(one, parents)]


def reap(owned: Collection[int]) -> None:
    """Take the exit status of adopted processes that have ended; ``owned`` ones are not touched."""
    if not _LINUX:
        return
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid in owned:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)
        except ChildProcessError:
            return


def _prctl(option: int, value: int) -> None:
    if not _LINUX:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}) failed: {os.strerror(number)}")


def _all() -> Iterator[Process]:
    """Yield every process that lives but execd itself; a zombie does not."""
    if not _LINUX:
        yield from _all_elsewhere()
        return
    for name in os.listdir("/proc"):  # noqa: PTH208 - names are all that is needed
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            fields = _stat(int(name))
        except OSError:
            continue
        if fields[_STATE] not in _ENDED:
            start = int(fields[_START_TIME]) / _TICKS_A_SECOND
            yield Process(int(name), int(fields[_PARENT]), start)


def _stat(pid: int) -> list[bytes]:
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    # The second field is the program's name in brackets, which may hold anything.
    return stat[stat.rindex(b")") + 2 :].split()


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _all_elsewhere() -> Iterator[Process]:
    import psutil  # noqa: PLC0415 - only where there is no /proc

    for process in psutil.process_iter(["pid", "ppid", "create_time", "status"]):
        about = process.info
        if about["pid"] != os.getpid() and about["status"] != psutil.STATUS_ZOMBIE:
            yield Process(about["pid"], about["ppid"] or 0, about["create_time"] or 0.0)


def _parents(alive: Collection[Process]) -> dict[int, int]:
    return {one.pid: one.parent for one in alive}


def _ancestors(process: Process, parents: Mapping[int, int]) -> set[int]:
    found: set[int] = set()
    pid = process.parent
    while pid in parents and pid not in found:
        found.add(pid)
        pid = parents[pid]
    return found | {pid}


def _kill_until_none(find: Callable[[], list[Process]]) -> list[int]:
    give_up = time.monotonic() + _KILL_SECONDS
    # Looked up again each time: a process may fork between being seen and being killed.
    while left := find():
        if time.monotonic() > give_up:
            return [one.pid for one in left]
        for one in left:
            try:
                os.kill(one.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        time.sleep(_PAUSE_SECONDS)
    return []
