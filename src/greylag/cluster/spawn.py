"""Starting an environment's process, so that none can run that no record tells of."""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from greylag.cluster import launch
from greylag.cluster.folders import Folder
from greylag.cluster.logfile import rotate
from greylag.cluster.processes import MARK, identify
from greylag.cluster.record import Phase, Record
from greylag.cluster.sandbox import Limits, Sandbox
from greylag.domain.errors import ClusterError

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
_RESET = (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawner:
    """Starts ``command`` for an environment; ``extra`` are further environment variables."""

    command: Sequence[str]
    extra: Mapping[str, str]
    sandbox: Sandbox
    limits: Limits

    def spawn(self, folder: Folder, record: Record) -> Record:
        """Start the process, write and return the record that tells of it. The caller holds the
        environment's lock and has made sure that nothing of it is alive.

        Raises:
            ClusterError: the process ended at once.
            OSError: the system starts no more processes, or the disk is full.
        """
        rotate(folder.log)
        with (
            open(folder.log, "ab", opener=_private) as log,
            _Leave() as leave,
        ):
            pid = self._spawn(folder, record, leave.for_child, log.fileno())
            process = identify(pid)
            if process is None:
                os.waitpid(pid, 0)
                raise ClusterError("The environment's process ended as soon as it was started.")
            started = replace(
                record,
                phase=Phase.RUNNING,
                process=process,
                boxed=self.sandbox.bwrap is not None,
                started_at=time.time(),
                exit_code=None,
                log_start=os.fstat(log.fileno()).st_size,
            )
            try:
                folder.write(started)
            except OSError:
                leave.refuse()
                os.waitpid(pid, 0)
                raise
            leave.give()
        return started

    def _spawn(self, folder: Folder, record: Record, stdin: int, log: int) -> int:
        limits = json.dumps(self.limits.as_rlimits())
        launcher = [sys.executable, "-I", "-S", str(Path(launch.__file__)), str(folder.volume)]
        argv = [*launcher, limits, *self.sandbox.command(self.command, folder.volume)]
        # posix_spawn and no Popen: the process is to outlive us, and is reaped by whoever watches.
        return os.posix_spawn(
            argv[0],
            argv,
            self._environ(folder, record),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsigmask=(),
            setsigdef=_RESET,
        )

    def _environ(self, folder: Folder, record: Record) -> dict[str, str]:
        """Return the process's environment variables, from scratch: ours may hold secrets."""
        return {
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            "HOME": str(folder.volume / "home"),
            "GOOSE_API_HOST": "127.0.0.1",
            "GOOSE_API_PORT": "0",
            "GREYLAG_AGENT_TOKEN": record.token,
            "GREYLAG_AGENT_FOLDER": str(folder.volume),
            "GREYLAG_LOG_FORMAT": "json",
            MARK: record.mark,
            **self.extra,
        }


class _Leave:
    """The leave that the launcher waits for: a byte in a pipe, or its end when we are killed."""

    def __enter__(self) -> Self:
        self.for_child, self._ours = os.pipe()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.for_child)
        self.refuse()

    def give(self) -> None:
        """Let it go on. One that is gone already is seen by the next look."""
        with suppress(BrokenPipeError):
            os.write(self._ours, b"g")

    def refuse(self) -> None:
        """Let it end, if it has no leave yet. Again: nothing."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
