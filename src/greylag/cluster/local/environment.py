"""One environment on this machine: its record and its processes. Everything here blocks.

Whoever changes an environment holds its folder's lock, so two workers never do; a worker that is
killed in between leaves a state that the same verb, again, brings to its end. A ``Spawner`` starts
an environment's process so that none can run that no record tells of.
"""

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import structlog

from greylag import __version__
from greylag.cluster.local import launch
from greylag.cluster.local.folders import SETTINGS, EnvironmentRecord, Folder, Phase
from greylag.cluster.local.logfile import rotate, rotate_written
from greylag.cluster.local.processes import (
    MARK,
    ProcessId,
    children,
    identify,
    is_alive,
    marked,
    runs_file,
    send,
)
from greylag.cluster.local.sandbox import Sandbox
from greylag.common.typed import parse_json
from greylag.domain.errors import ClusterError
from greylag.domain.project import Fence, ProjectRef

_KILL_SECONDS = 3.0
_KILL_POLL_SECONDS = 0.02
_LAUNCH_SECONDS = 3.0
_LAUNCH_POLL_SECONDS = 0.005
_NO_GRACE = 0.0  # a stop that began at the epoch
_LAST_PORT = 65535
_DIGEST_LENGTH = 16
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
_RESET = (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EnvironmentState:
    """What can be seen of an environment without asking its agent."""

    record: EnvironmentRecord | None
    alive: bool = False
    port: int | None = None


class LocalEnvironment:
    """One environment, which may or may not exist.

    ``prepare``, ``start``, ``begin_stop`` and ``delete`` raise ``LeaseLostError`` when it has been
    worked on under a newer claim than ``fence``.

    Args:
        folder: where it lies.
        ref: whose it is.
        fence: the claim that it is worked on under; ``None`` for what needs no claim.
        name: the project's.
    """

    def __init__(
        self, folder: Folder, ref: ProjectRef, fence: Fence | None = None, name: str = ""
    ) -> None:
        self.folder = folder
        self.path = folder.path
        self.ref = ref
        self._fence = fence
        self._name = name

    def look(self) -> EnvironmentState:
        """Return what can be seen of it now."""
        record = self.folder.read()
        if record is None or not _runs(record):
            return EnvironmentState(record)
        return EnvironmentState(record, alive=True, port=self._port())

    def tend(self) -> str:
        """Put the log of one that runs aside where it is too large; return which settings it was
        started with.
        """
        try:
            rotate_written(self.folder.log)
        except OSError as error:
            _log.warning("log_not_put_aside", log=str(self.folder.log), error=error.strerror)
        return self.folder.noted(SETTINGS)

    def prepare(self) -> None:
        """Make it, stopped; one that exists is left alone."""
        with self.folder.lock(self._fence):
            self._prepare()

    def start(self, spawner: "Spawner") -> ProcessId | None:
        """Make it run and return its process; ``None`` when it ran already.

        Raises:
            ClusterError: it is still being stopped, or leftovers of it cannot be killed.
        """
        with self.folder.lock(self._fence):
            record = self._prepare()
            if record.phase is Phase.STOPPING:
                raise ClusterError(
                    "The environment is still being stopped.", code="environment_stopping"
                )
            if record.phase is Phase.RUNNING and record.process and _became_agentd(record.process):
                return None
            self._kill_leftovers(record)
            # Whatever port is written there from now on is the new process's.
            self.folder.forget_listening()
            return spawner.spawn(self.folder, record).process

    def begin_stop(self) -> frozenset[ProcessId] | None:
        """Write that it is to stop and tell its agent. Return the processes that it has now, for
        ``go_on_stopping``; ``None`` when it does not run.
        """
        with self.folder.lock(self._fence):
            record = self.folder.read()
            if record is None or record.phase is Phase.STOPPED:
                return None
            if record.phase is Phase.RUNNING:
                # One that does not listen yet has nothing to end, and may not hear SIGTERM either:
                # as the first process of a sandbox it has to be ready for it.
                since = time.time() if self._port() is not None else _NO_GRACE
                record = replace(record, phase=Phase.STOPPING, stopping_since=since)
                self.folder.write(record)
            main = record.process
            if main is None:
                return frozenset()
            known = frozenset({main, *children(main, recursive=True)})
            # An older Greylag started agentd in bubblewrap, which does not pass signals on.
            agentd = children(main, recursive=False) if record.boxed else {main}
            # Only this once: a second SIGTERM could cut off agentd's own clearing up.
            send(agentd, signal.SIGTERM)
            return known

    def go_on_stopping(
        self, grace: float, known: frozenset[ProcessId]
    ) -> frozenset[ProcessId] | None:
        """Bring a stop further. Return the processes to be ``known`` at the next call, as those
        that outlive their parents are hard to find; ``None`` when it is over.

        For ``grace`` seconds after the wish the agent may end by itself, then everything is killed.
        """
        with self.folder.lock():
            record = self.folder.read()
            if record is None or record.phase is not Phase.STOPPING:
                return None
            main = record.process
            if main is not None and is_alive(main):
                known |= {main, *children(main, recursive=True)}
                since = time.time() - (record.stopping_since or 0)
                # A clock that was set back must not let it live for ever.
                if 0 <= since < grace:
                    return known
            if left := marked(record.mark) | {process for process in known if is_alive(process)}:
                send(left, signal.SIGKILL)
                return known
            self.folder.write(
                replace(record, phase=Phase.STOPPED, process=None, stopping_since=None)
            )
            return None

    def note_end(self, process: ProcessId, exit_code: int | None) -> bool:
        """Write down how ``process`` has ended, if that was unasked; return whether it was."""
        with self.folder.lock():
            record = self._ran(process)
            if record is not None and exit_code is not None:
                self.folder.write(replace(record, exit_code=exit_code))
            return record is not None

    def clear_after(self, process: ProcessId) -> None:
        """Kill what ``process``, which has ended unasked, has left behind.

        Raises:
            ClusterError: something cannot be killed.
        """
        with self.folder.lock():
            if record := self._ran(process):
                self._kill_leftovers(record)

    def delete(self) -> None:
        """Take it away with its volume, to be emptied; nothing when it is absent.

        Raises:
            ClusterError: it has not been stopped.
        """
        with self.folder.lock(self._fence):
            record = self.folder.read()
            if record is not None and record.phase is not Phase.STOPPED:
                if record.phase is Phase.STOPPING or _runs(record):
                    raise ClusterError(
                        "The environment must be stopped before it can be deleted.",
                        code="environment_running",
                    )
                self._kill_leftovers(record)
            self.folder.remove()

    def _prepare(self) -> EnvironmentRecord:
        record = self.folder.read()
        if record is None:
            self.folder.make()
            record = EnvironmentRecord(
                ref=self.ref, mark=secrets.token_hex(16), token=secrets.token_urlsafe(32)
            )
            self.folder.write(record)
        self.folder.note_name(self._name)
        return record

    def _ran(self, process: ProcessId) -> EnvironmentRecord | None:
        """Return the record if ``process`` is still the one that should run."""
        record = self.folder.read()
        if record is None or record.process != process or record.phase is not Phase.RUNNING:
            return None
        return record

    def _port(self) -> int | None:
        """Return the port that agentd says it listens on. Without a sandbox tools can write that
        file too, so it is believed no further than a port goes.
        """
        try:
            port = parse_json(self.folder.read_listening())["port"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return port if type(port) is int and 0 < port <= _LAST_PORT else None

    def _kill_leftovers(self, record: EnvironmentRecord) -> None:
        """Kill what an agentd that is gone has left behind."""
        give_up = time.monotonic() + _KILL_SECONDS
        while left := marked(record.mark):
            if time.monotonic() > give_up:
                pids = ", ".join(str(process.pid) for process in left)
                raise ClusterError(f"Processes of the environment cannot be killed: {pids}.")
            send(left, signal.SIGKILL)
            time.sleep(_KILL_POLL_SECONDS)


def _runs(record: EnvironmentRecord) -> bool:
    return record.process is not None and is_alive(record.process)


def _became_agentd(process: ProcessId) -> bool:
    """Tell whether ``process`` runs and is no launcher any more. The caller holds the lock.

    Whoever started a launcher gave it leave before they let go of the lock, or were killed: then it
    is alive for a moment still, and ends. Which of both is seen when it has gone on.
    """
    give_up = time.monotonic() + _LAUNCH_SECONDS
    while launching := runs_file(process, launch.__file__):
        if time.monotonic() > give_up:
            break
        time.sleep(_LAUNCH_POLL_SECONDS)
    return not launching and is_alive(process)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawner:
    """Starts ``command`` for an environment.

    Attributes:
        command: what runs in it.
        extra: further environment variables.
        sandbox: what the untrusted side runs in.
        authorities: what the file holds that ``SSL_CERT_FILE`` names in ``extra``.
    """

    command: Sequence[str]
    extra: Mapping[str, str]
    sandbox: Sandbox
    authorities: str = ""

    @property
    def settings(self) -> str:
        """A digest of what only a new start gives an environment: variables, authorities, how it is
        held, and this version.

        What is hidden is no part of it: it depends on the folder that Greylag was started in.
        """
        box = self.sandbox
        held = [box.bwrap is not None, box.network == "strict", box.pasta is not None, box.memory]
        parts = [__version__, dict(self.extra), held, self.authorities]
        whole = json.dumps(parts, sort_keys=True)
        return sha256(whole.encode()).hexdigest()[:_DIGEST_LENGTH]

    def spawn(self, folder: Folder, record: EnvironmentRecord) -> EnvironmentRecord:
        """Start the process, write and return the record that tells of it. The caller holds the
        environment's lock and has made sure that nothing of it is alive.

        Raises:
            ClusterError: the process ended at once.
            OSError: the system starts no more processes, or the disk is full.
        """
        rotate(folder.log)
        folder.note(SETTINGS, self.settings)
        self.sandbox.write(folder.seccomp)
        for_child, ours = os.pipe()
        # The launcher waits for leave: a byte in the pipe, or its end when we refuse or are killed.
        with (
            os.fdopen(for_child, "rb") as stdin,
            os.fdopen(ours, "wb", buffering=0) as leave,
            open(folder.log, "ab", opener=_private) as log,
        ):
            pid = self._spawn(folder, record, stdin.fileno(), log.fileno())
            process = identify(pid)
            if process is None:
                os.waitpid(pid, 0)
                raise ClusterError("The environment's process ended as soon as it was started.")
            started = replace(
                record,
                phase=Phase.RUNNING,
                process=process,
                boxed=False,
                started_at=time.time(),
                exit_code=None,
                log_start=os.fstat(log.fileno()).st_size,
            )
            try:
                folder.write(started)
            except OSError:
                leave.close()
                os.waitpid(pid, 0)
                raise
            with suppress(BrokenPipeError):  # one that is gone already is seen by the next look
                leave.write(b"g")
        return started

    def _spawn(self, folder: Folder, record: EnvironmentRecord, stdin: int, log: int) -> int:
        launcher = [sys.executable, "-I", "-S", str(Path(launch.__file__)), str(folder.path)]
        argv = [*launcher, *self.command]
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

    def _environ(self, folder: Folder, record: EnvironmentRecord) -> dict[str, str]:
        """Return the process's environment variables, from scratch: ours may hold secrets."""
        return {
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            "GREYLAG_EXECD": json.dumps(self.sandbox.execd(folder.volume, folder.seccomp)),
            "HOME": str(folder.path),  # agentd's; the agent's is in the volume
            "GOOSE_API_HOST": "127.0.0.1",
            "GOOSE_API_PORT": "0",
            "GREYLAG_AGENT_TOKEN": record.token,
            "GREYLAG_AGENT_FOLDER": str(folder.volume),
            "GREYLAG_LOG_FORMAT": "json",
            MARK: record.mark,
            **self.extra,
        }


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
