"""Find and kill every process that an agent started, also those that left its tree.

A tool may detach what it starts (`nohup x &`, setsid, a double fork). Three things find it again:
the process tree, a mark in the environment that every descendant inherits, and, on Linux, that
agentd is a child subreaper, so that what loses its parent becomes a child of agentd itself.
"""

import ctypes
import os
import sys
import time

import psutil
import structlog

MARK = "GREYLAG_AGENT_RUN"

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_KILL_SECONDS = 3.0
_PAUSE_SECONDS = 0.02

log = structlog.get_logger(__name__)


def harden_this_process() -> None:
    """Guard agentd's own memory from its tools, and adopt what loses its parent.

    Linux only; elsewhere it does nothing. To be called once, first thing in agentd's process,
    and never in a process that starts children other than the agent.
    """
    if sys.platform != "linux":
        return
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def adopts_orphans() -> bool:
    """Whether this process is a child subreaper, as `harden_this_process` makes it."""
    if sys.platform != "linux":
        return False
    answer = ctypes.c_int(0)
    _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.addressof(answer))
    return bool(answer.value)


def kill_all(root: psutil.Process, mark: str) -> None:
    """Kill the agent and all that it started; blocks, for at most a few seconds.

    Args:
        root: the agent, looked up while it ran (so that a reused process id is noticed); it may
            be dead already.
        mark: the value of MARK in the agent's environment.
    """
    deadline = time.monotonic() + _KILL_SECONDS
    tree = _tree(root)
    while True:
        # Looked up again each time: a process may fork between being seen and being killed.
        alive = [p for p in {*tree, *_marked(mark), *_adopted()} if _is_running(p)]
        if not alive:
            return
        if time.monotonic() > deadline:
            log.error("agent_processes_left", pids=sorted(p.pid for p in alive))
            return
        for process in alive:
            _kill(process)
        time.sleep(_PAUSE_SECONDS)


def reap(agent_pid: int | None) -> None:
    """Take the exit status of adopted processes that have ended, so that no zombie stays.

    The agent itself is left to whoever started it.
    """
    if not adopts_orphans():
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


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _adopted() -> list[psutil.Process]:
    """Return what has lost its parent: agentd starts no child but the agent."""
    return psutil.Process().children(recursive=True) if adopts_orphans() else []


def _marked(mark: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _has_mark(process, mark)]


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):  # gone meanwhile, or another user's
        return False


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
        log.warning("agent_process_not_killed", pid=process.pid, reason=str(error))
