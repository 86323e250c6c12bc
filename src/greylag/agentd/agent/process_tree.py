"""The agent's process tree: all that it started, found and killed, also what left the tree.

A tool may detach what it starts (``nohup x &``, setsid, a double fork). Three things find it again:
the tree itself, a mark in the environment that every descendant inherits, and, on Linux, that
agentd is a child subreaper, so that what loses its parent becomes a child of agentd itself.

All of it blocks, some of it for seconds: it is meant for a thread.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping

import psutil
import structlog

from greylag.common.process_start import started_at

MARK = "GREYLAG_AGENT_RUN"

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_KILL_SECONDS = 3.0
_PAUSE_SECONDS = 0.02
_SESSION = "AGENT_SESSION_ID"
_TICK = 0.02  # seconds; start times are counted in ticks of 10 ms

_log = structlog.get_logger(__name__)


def harden_this_process() -> None:
    """Guard agentd's own memory from its tools, and adopt what loses its parent.

    Linux only; elsewhere it does nothing. To be called once, first thing in agentd's process,
    and never in a process that starts children other than the agent.
    """
    if sys.platform != "linux":
        return
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def is_subreaper() -> bool:
    """Whether this process adopts what loses its parent, as ``harden_this_process`` makes it."""
    if sys.platform != "linux":
        return False
    answer = ctypes.c_int(0)
    _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.addressof(answer))
    return bool(answer.value)


def kill_tree(root: psutil.Process | None, mark: str) -> None:
    """Kill the agent and all that it started.

    Args:
        root: the agent, looked up while it ran (so that a reused process id is noticed); it may
            be dead already, and is None if it was before the look.
        mark: the value of MARK in the agent's environment.
    """
    tree = _tree(root)
    # Looked up again each time: a process may fork between being seen and being killed.
    _kill_until_none(lambda: [*tree, *_with_environ({MARK: mark}), *_adopted()])


def kill_session(mark: str, session: str, since: float) -> None:
    """Kill what one session's tools have started since then.

    goose ends only the shell itself when a turn is cancelled, not what the shell had started.

    Args:
        mark: the value of MARK in the agent's environment.
        session: the agent's session id, which goose gives to its tools.
        since: a value of ``process_clock``.
    """
    wanted = {MARK: mark, _SESSION: session}
    _kill_until_none(lambda: _begun_since(_with_environ(wanted), since - _TICK))


def reap_adopted(agent_pid: int) -> None:
    """Take the exit status of adopted processes that have ended, so that no zombie stays.

    The agent itself is left to whoever started it.
    """
    if not is_subreaper():
        return
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid == agent_pid:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)
        except ChildProcessError:
            return


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}) failed: {os.strerror(number)}")


def _tree(root: psutil.Process | None) -> list[psutil.Process]:
    if root is None:
        return []
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _adopted() -> list[psutil.Process]:
    """Return what has lost its parent: agentd starts no child but the agent."""
    return psutil.Process().children(recursive=True) if is_subreaper() else []


def _with_environ(wanted: Mapping[str, str]) -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if wanted.items() <= _environ(p).items()]


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):  # gone meanwhile, or another user's
        return {}


def _begun_since(processes: Collection[psutil.Process], since: float) -> list[psutil.Process]:
    """Return those that began since then, without what older ones among them have started.

    A loop in the background of an earlier turn may start a process every moment.
    """
    began = {process.pid: started_at(process.pid) for process in processes}
    older = {pid for pid, start in began.items() if start < since}
    return [
        process
        for process in processes
        if process.pid not in older and older.isdisjoint(_parents(process))
    ]


def _parents(process: psutil.Process) -> set[int]:
    try:
        return {parent.pid for parent in process.parents()}
    except psutil.Error:
        return set()


def _kill_until_none(find: Callable[[], Iterable[psutil.Process]]) -> None:
    deadline = time.monotonic() + _KILL_SECONDS
    while alive := {process for process in find() if _is_running(process)}:
        if time.monotonic() > deadline:
            _log.error("agent_processes_left", pids=sorted(p.pid for p in alive))
            return
        for process in alive:
            _kill(process)
        time.sleep(_PAUSE_SECONDS)


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
    except psutil.Error as error:
        _log.warning("agent_process_not_killed", pid=process.pid, reason=str(error))
