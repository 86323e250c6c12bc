"""When a process began, by a clock that nobody can set.

Pids are used again, so a process is known by its pid and its start. psutil's ``create_time`` moves
when the system's clock is set; on Linux the start is told in clock ticks since the boot (proc(5)).
"""

import sys
import time
from functools import cache
from pathlib import Path

_LINUX = sys.platform == "linux"
_STATE, _START_TIME = 0, 19  # counted from the field after the program's name


def birth(pid: int) -> str | None:
    """Return what tells the process ``pid`` from others that had its number.

    ``None`` when there is none, or only a zombie. Two births are the same process's when equal.
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
    if fields[_STATE] in {b"Z", b"X"}:
        return None
    return f"{_boot()}:{fields[_START_TIME].decode()}"


def process_clock() -> float:
    """Return now, in seconds, on the clock by which execd tells when a process began."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _LINUX else time.time()


def _stat(pid: int) -> list[bytes]:
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    # The second field is the program's name in brackets, which may hold anything.
    return stat[stat.rindex(b")") + 2 :].split()


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
