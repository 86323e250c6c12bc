"""``python -m greylag.execd``: serve on a socket that was inherited, or on a path.

``--fd N`` takes a listening unix socket as descriptor N: agentd made it where nobody else can
reach it. ``--socket PATH`` makes one, for a container beside agentd's. On SIGTERM, and when stdin
ends in ``--fd`` mode (agentd is gone), all that runs is killed and the program ends. With
``--processes N`` there are never more than N processes; the system counts them for each user in
each user namespace, so that is for a sandbox which has one of its own.
"""

import argparse
import asyncio
import os
import resource
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from greylag.execd.processes import guard_memory
from greylag.execd.server import ExecServer

_SHARED = 0o660
_THREADS = 8


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="greylag-execd", description="Run an agent's processes.")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--fd", type=int, help="a listening unix socket that was inherited")
    way.add_argument("--socket", type=Path, help="where to listen")
    parser.add_argument("--processes", type=int, help="most processes of this user here")
    given = parser.parse_args()
    guard_memory()
    if given.processes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        most = given.processes if hard == resource.RLIM_INFINITY else min(given.processes, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    listener = _inherited(given.fd) if given.fd is not None else _bound(given.socket)
    asyncio.run(_serve(listener, tied=given.fd is not None))


async def _serve(listener: socket.socket, *, tied: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(_standing_threads())
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    serving = asyncio.create_task(ExecServer().serve(listener), name="serve")
    ended = asyncio.create_task(over.wait(), name="signal")
    waits = {serving, ended}
    if tied:
        waits.add(asyncio.create_task(_stdin_end(), name="stdin"))
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
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


async def _stdin_end() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb", buffering=0)
    )
    await reader.read()


def _inherited(descriptor: int) -> socket.socket:
    return socket.socket(fileno=descriptor)


def _bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(_SHARED)  # agentd is of another user, and of this group
    listener.listen()
    return listener


if __name__ == "__main__":
    main()
