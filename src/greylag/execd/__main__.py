"""``python -m greylag.execd``: serve on a socket that was inherited, or on a path.

``--sent`` takes a listening unix socket that comes by stdin, a socket too: agentd made it where
nobody else can reach it. On SIGTERM, and when stdin ends (agentd is gone), all that runs is killed
and the program ends.

``--socket PATH --client UID`` makes a socket for an agentd in another container, of this user: what
execd runs is of execd's own, and gets no answer. Both are told to end at the same time, so after a
SIGTERM it serves on until agentd has let go, some seconds have passed, or a second one has come.
When something else lies at the path, where tools may write, it ends, to be started again. What lies
in the folders of ``--own`` is made this user's first (``ownership``).

With ``--memory N`` each process has at most N bytes of its own (``RLIMIT_DATA``), and when the
machine has none left the system ends one of these before it ends others of its user.

With ``--processes N`` there are never more than N processes; the system counts them for each user
in each user namespace, so that is for a sandbox which has one of its own.
"""

import argparse
import asyncio
import os
import resource
import secrets
import signal
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from greylag.execd.ownership import take_over
from greylag.execd.processes import guard_memory
from greylag.execd.server import ExecServer

_SHARED = 0o660
_THREADS = 12  # five more than long work takes
_LOOK_SECONDS = 2.0
_ENDED_FIRST = "500"  # of 1000: proc(5), oom_score_adj
_PATIENCE_SECONDS = 6.0  # longer than agentd takes to end


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="greylag-execd", description="Run an agent's processes.")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--sent", action="store_true", help="take a listening socket from stdin")
    # Of an agentd of the version before, which starts this one when its own has ended.
    way.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    way.add_argument("--socket", type=Path, help="where to listen")
    parser.add_argument("--client", type=int, help="the only user who may connect to it")
    parser.add_argument("--own", type=Path, nargs="*", default=[], help="folders to take over")
    parser.add_argument("--processes", type=int, help="most processes of this user here")
    parser.add_argument("--memory", type=int, help="most bytes of one process")
    given = parser.parse_args()
    if given.memory is not None:
        Path("/proc/self/oom_score_adj").write_text(_ENDED_FIRST)  # closed to us once guarded
        _limit(resource.RLIMIT_DATA, given.memory)
    guard_memory()
    if given.processes is not None:
        _limit(resource.RLIMIT_NPROC, given.processes)
    os.environ.pop("PWD", None)  # of a shell that the sandbox was started by
    server = ExecServer(given.client, os.environ)
    if given.sent or given.fd is not None:
        listener = _received() if given.sent else socket.socket(fileno=given.fd)
        asyncio.run(_serve(server, listener, _stdin_end(), patience=0))
        return
    for folder in given.own:
        take_over(folder)
    listener = _bound(given.socket)
    asyncio.run(_serve(server, listener, _replaced(given.socket), patience=_PATIENCE_SECONDS))


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (value, value))


async def _serve(
    server: ExecServer,
    listener: socket.socket,
    lost: Coroutine[Any, Any, None],
    *,
    patience: float,
) -> None:
    """Serve until a signal, and for ``patience`` seconds to who is connected, or until ``lost``."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(_standing_threads())
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    serving = asyncio.create_task(server.serve(listener), name="serve")
    ended = asyncio.create_task(over.wait(), name="signal")
    losing = asyncio.create_task(lost, name="lost")
    await asyncio.wait({serving, ended, losing}, return_when=asyncio.FIRST_COMPLETED)
    waits = {serving, ended, losing}
    if over.is_set():
        over.clear()
        left = asyncio.create_task(server.alone(), name="alone")
        again = asyncio.create_task(over.wait(), name="second signal")
        await asyncio.wait({left, again}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        waits |= {left, again}
    for task in waits:
        task.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


def _standing_threads() -> ThreadPoolExecutor:
    """Return threads that run already: to end a tool that took all processes, none can begin."""
    threads = ThreadPoolExecutor(_THREADS)
    all_run = threading.Barrier(_THREADS + 1)
    for _ in range(_THREADS):
        threads.submit(all_run.wait)
    all_run.wait()
    return threads


def _received() -> socket.socket:
    """Return the listening socket that comes by stdin."""
    with socket.socket(fileno=os.dup(0)) as stdin:
        _, (descriptor,), _, _ = socket.recv_fds(stdin, 1, 1)
    listener = socket.socket(fileno=descriptor)
    listener.set_inheritable(False)
    return listener


async def _stdin_end() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb", buffering=0)
    )
    await reader.read()


async def _replaced(path: Path) -> None:
    """Return once something else lies at ``path``, or nothing."""
    ours = _identity(path)
    while ours is not None and _identity(path) == ours:  # noqa: ASYNC110 - files have no event
        await asyncio.sleep(_LOOK_SECONDS)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _bound(path: Path) -> socket.socket:
    with suppress(FileNotFoundError):
        # Whatever a tool has left there, a folder too.
        path.rename(path.with_name(f"{path.name}.{secrets.token_hex(4)}"))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(_SHARED)  # agentd is of another user, and of this group
    listener.listen()
    return listener


if __name__ == "__main__":
    main()
