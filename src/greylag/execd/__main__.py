"""``python -m greylag.execd``: serve on a socket that was inherited, or on a path.

``--sent`` takes a listening unix socket that comes by stdin, a socket too: agentd made it where
nobody else can reach it. On SIGTERM, and when stdin ends (agentd is gone), all that runs is killed
and the program ends.

``--socket PATH --client UID`` makes a socket for an agentd in another container, of this user: what
execd runs is of execd's own, and gets no answer. Both are told to end at the same time, so after a
SIGTERM it serves on until agentd has let go, some seconds have passed, or a second one has come.
When something else lies at the path, where tools may write, it ends, to be started again. What lies
in the folders of ``--own`` is made this user's first (``take_over``), and what lies in the one that
the variable ``GREYLAG_EXECD_EMPTY`` names is removed.

With ``--memory N`` each process has at most N bytes of its own (``RLIMIT_DATA``), and when the
machine has none left the system ends one of these before it ends others of its user.

With ``--processes N`` there are never more than N processes; the system counts them for each user
in each user namespace, so that is for a sandbox which has one of its own.
"""

import argparse
import asyncio
import gc
import os
import resource
import secrets
import shutil
import signal
import socket
import stat
import sys
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from greylag.execd.processes import guard_memory
from greylag.execd.server import ExecServer

_SHARED = 0o660
_THREADS = 12  # five more than long work takes
_LOOK_SECONDS = 2.0
_ENDED_FIRST = "500"  # of 1000: proc(5), oom_score_adj
_PATIENCE_SECONDS = 6.0  # longer than agentd takes to end


# Taking over what another user has left on our volume, without any right to do so.
#
# An environment may have run as another user: in an earlier version, or before a setting was
# changed. Kubernetes then gives all files to our group before we start, and lets it read and
# write them. But only their owner may change their modes, as goose does at its start. So what is
# not ours is copied, and the copy takes its place: files one by one, folders by moving what is in
# them.
#
# It goes from the inside out, and may be cut off anywhere: as long as something right in the
# folder is not ours, the next start goes on. Nothing else runs yet, and what is found here can
# harm its own environment alone.

_DRAFT = ".greylag-draft"
_GROUP_BITS = 0o070


def take_over(root: Path) -> None:
    """Make all files and folders below ``root`` ours, if there is one right in it that is not."""
    if not any(True for _ in _of_others(root)):
        return
    copies: dict[int, Path] = {}
    for folder, _, _ in os.walk(root, topdown=False, onerror=_report):
        _put_back(Path(folder))
        for path, found in list(_of_others(Path(folder))):
            try:
                if stat.S_ISDIR(found.st_mode):
                    _take_folder(path, found)
                else:
                    _take_file(path, found, copies)
            except OSError as error:
                _report(error)


def _of_others(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                kind = stat.S_IFMT(found.st_mode)
                if found.st_uid != os.geteuid() and kind in {stat.S_IFREG, stat.S_IFDIR}:
                    yield Path(entry), found
    except OSError as error:
        _report(error)


def _take_file(path: Path, found: os.stat_result, copies: dict[int, Path]) -> None:
    draft = path.with_name(_DRAFT)
    draft.unlink(missing_ok=True)
    if (known := copies.get(found.st_ino)) is not None:  # another name of the same file
        os.link(known, draft)
    else:
        shutil.copyfile(path, draft)
        _finish(draft, found)
        if found.st_nlink > 1:
            copies[found.st_ino] = path
    draft.replace(path)


def _take_folder(path: Path, found: os.stat_result) -> None:
    draft = path.with_name(f"{path.name}{_DRAFT}")
    draft.mkdir(mode=stat.S_IRWXU, exist_ok=True)
    for name in os.listdir(path):  # noqa: PTH208 - names are all that is needed
        (path / name).rename(draft / name)
    _finish(draft, found)
    path.rmdir()
    draft.rename(path)


def _put_back(folder: Path) -> None:
    """Finish what was cut off just before a folder had its name again."""
    for draft in folder.glob(f"?*{_DRAFT}"):
        path = draft.with_name(draft.name.removesuffix(_DRAFT))
        try:
            if not path.exists():
                draft.rename(path)
        except OSError as error:
            _report(error)


def _finish(draft: Path, found: os.stat_result) -> None:
    """Give a copy its mode and times. What the group may is what others may: we had no group."""
    mode = stat.S_IMODE(found.st_mode) & ~_GROUP_BITS
    inherited = stat.S_IMODE(draft.stat().st_mode) & stat.S_ISGID
    draft.chmod(mode | inherited | (mode & stat.S_IRWXO) << 3)
    os.utime(draft, ns=(found.st_atime_ns, found.st_mtime_ns))


def empty(folder: Path) -> None:
    """Remove what an earlier start has left in ``folder``, as far as we may."""
    for path in folder.iterdir():
        with suppress(OSError, RecursionError):  # folders may lie in each other without end
            if path.is_dir() and not path.is_symlink():
                _open_up(path)
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _open_up(folder: Path) -> None:
    """Let us write in all folders there that are ours: some programs close theirs."""
    with suppress(OSError):
        folder.chmod(0o700)
    for at, names, _ in os.walk(folder):
        for path in (Path(at, name) for name in names):
            with suppress(OSError):
                if not path.is_symlink():
                    path.chmod(0o700)


def _report(error: OSError) -> None:
    sys.stderr.write(f"execd: not taken over: {error}\n")


# The program.


def main() -> None:
    """Serve until told to end."""
    gc.freeze()  # what is loaded stays: nobody goes through it for garbage, nor at the end
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
    emptied = os.environ.pop("GREYLAG_EXECD_EMPTY", None)
    server = ExecServer(given.client, os.environ)
    if given.sent or given.fd is not None:
        listener = _received() if given.sent else socket.socket(fileno=given.fd)
        asyncio.run(_serve(server, listener, _stdin_end(), patience=0))
        return
    for folder in given.own:
        take_over(folder)
    if emptied is not None:
        empty(Path(emptied))
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
    try:
        for _ in range(_THREADS):
            threads.submit(all_run.wait)
    except RuntimeError:  # the system has none left: those that run would hold up our end for good
        all_run.abort()
        raise
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
