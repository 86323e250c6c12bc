"""Local environments while this program runs: how each stands by its record, its process and what
its agent says of itself; its processes' end, their stopping, and what is to be done after them.
"""

import asyncio
import errno
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
import structlog

from greylag.cluster.local import launch
from greylag.cluster.local.environment import LocalEnvironment
from greylag.cluster.local.folders import EnvironmentRecord, Phase
from greylag.cluster.local.logfile import last_words, start_of
from greylag.cluster.local.processes import ProcessId, reap, wait_end
from greylag.cluster.shared import ChangeFeed, plain
from greylag.common.backoff import Pauses
from greylag.common.concurrent import cancel_all
from greylag.common.net import beginning
from greylag.common.typed import parse_json
from greylag.domain.errors import ClusterError, ErrorInfo
from greylag.domain.lifecycle import (
    AGENT_READY,
    API_ANSWERS,
    PROCESS_STARTED,
    Observation,
    Observed,
)

if TYPE_CHECKING:
    from pathlib import Path

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")
_STOP_POLL_SECONDS = 0.05
_THREADS = 8
_HEALTH_SECONDS = 1.0
_NOTE_END_SECONDS = 1.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_MOST_BYTES = 8192
_MOST_WORDS = 300
_OK = 200
_BAD_SETTINGS = 2
_TERMINAL_EXITS = frozenset({launch.NOT_FOUND, _BAD_SETTINGS})
_FAILED_HINT = (
    "`greylag logs` shows what it says; activate the project if it does not start again by itself."
)
_FULL_HINT = "It is tried again, and goes on once the disk of Greylag's data folder has room again."
_STARTING = Observation(Observed.STARTING, steps=(PROCESS_STARTED,))
_SILENT = ErrorInfo(
    "agent_unreachable",
    "The agent's API does not answer in time.",
    "It may be busy; `greylag logs` shows what it says.",
)


class Threads:
    """Where what blocks is done. What has begun there is never cut short by cancellation."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="local-cluster")

    async def run(self, work: Callable[[], _T]) -> _T:
        """Return what ``work`` returns; an ``OSError`` becomes a ``ClusterError``."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except OSError as error:
            what = f"{error.strerror}: {error.filename}" if error.filename else error
            hint = _FULL_HINT if error.errno in {errno.ENOSPC, errno.EDQUOT} else None
            raise ClusterError(f"This machine refused a step: {what}", hint=hint) from error

    async def close(self) -> None:
        """Return when all that has begun is done."""
        await asyncio.to_thread(self._pool.shutdown)


class Supervisor:
    """Watches processes and brings stops to their end, in tasks that ``close`` cancels.

    Nothing is lost with them: the next supervisor, of this program or another, takes up what it
    finds, as all that matters is in the environments' records.

    Args:
        threads: where environments are worked on.
        unasked: is told of each environment that ended unasked.
        grace: seconds between a stop's SIGTERM and its SIGKILL.
    """

    def __init__(self, threads: Threads, unasked: ChangeFeed, grace: float) -> None:
        self._threads = threads
        self._unasked = unasked
        self._grace = grace
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._watched: dict[Path, ProcessId] = {}
        self._stopping: dict[Path, frozenset[ProcessId]] = {}

    def watch(self, environment: LocalEnvironment, process: ProcessId) -> None:
        """See to the end of ``process``, once: reap it, kill what it leaves, tell of it."""
        if self._watched.get(environment.path) == process:
            return
        self._watched[environment.path] = process

        async def see_to_end() -> None:
            await wait_end(process)
            if await self._noted(environment, process):
                self._unasked.tell(environment.ref)
                await self._threads.run(lambda: environment.clear_after(process))

        self._start(_watch_name(environment, process), see_to_end)

    async def _noted(self, environment: LocalEnvironment, process: ProcessId) -> bool:
        """Write the end of ``process`` down, as soon as that can be; return if it was unasked."""
        exit_code = await self._threads.run(lambda: reap(process.pid))
        pauses = Pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        while True:
            try:
                return await self._threads.run(lambda: environment.note_end(process, exit_code))
            except ClusterError as error:
                _log.warning("end_not_noted", path=str(environment.path), error=str(error))
            if not pauses.failed:  # it has ended all the same, and may be started again
                self._unasked.tell(environment.ref)
            await pauses.pause()

    async def end_noted(self, environment: LocalEnvironment, process: ProcessId) -> None:
        """Return when the end of a watched ``process`` has been noted, or after a second."""
        if task := self._tasks.get(_watch_name(environment, process)):
            await asyncio.wait({task}, timeout=_NOTE_END_SECONDS)

    def see_to_stop(
        self, environment: LocalEnvironment, known: frozenset[ProcessId] = frozenset()
    ) -> None:
        """Bring a stop to its end that has begun, here or elsewhere. Again: nothing.

        Args:
            environment: what is being stopped.
            known: processes that it had as its stop began.
        """
        path = environment.path
        self._stopping[path] = self._stopping.get(path, frozenset()) | known

        async def stop() -> None:
            seen: frozenset[ProcessId] | None = frozenset()
            pauses = Pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
            while seen is not None:
                await asyncio.sleep(_STOP_POLL_SECONDS)
                known = self._stopping[path] = self._stopping[path] | seen
                step = partial(environment.go_on_stopping, self._grace, known)
                try:
                    seen = await self._threads.run(step)
                except ClusterError as error:
                    _log.warning("stop_not_done", path=str(path), error=str(error))
                    await pauses.pause()
                else:
                    pauses.worked()
            del self._stopping[path]

        self._start(f"stop {path}", stop)

    def repeat(self, name: str, work: Callable[[], Coroutine[None, None, bool]]) -> None:
        """Do a piece of work again and again while it tells that there is more; once by a name."""

        async def go_on() -> None:
            while await work():
                _log.debug("work_goes_on", task=name)

        self._start(name, go_on)

    def forget(self, environment: LocalEnvironment) -> None:
        """Drop what is kept of an environment that is gone."""
        self._watched.pop(environment.path, None)

    async def close(self) -> None:
        """Cancel the tasks and return when they have ended; the processes go on."""
        await cancel_all(self._tasks.values())

    def _start(self, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run ``work`` as a task unless the one of this name runs still."""
        if name not in self._tasks:
            task = asyncio.create_task(work(), name=name)
            self._tasks[name] = task
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task.get_name()]
        if not task.cancelled() and (error := task.exception()):
            _log.error("environment_task_failed", task=task.get_name(), exc_info=error)


def _watch_name(environment: LocalEnvironment, process: ProcessId) -> str:
    return f"watch {environment.path} {process.pid} {process.birth}"


class Observer:
    """Says what state an environment is in. What it finds unattended it hands to ``supervisor``."""

    def __init__(self, threads: Threads, supervisor: Supervisor) -> None:
        self._threads = threads
        self._supervisor = supervisor
        self._was_ready: dict[Path, ProcessId] = {}
        self._http: aiohttp.ClientSession | None = None

    async def observe(self, environment: LocalEnvironment) -> Observation:
        """Return the environment's state; what cannot be read is ``UNKNOWN``."""
        try:
            return await self._observe(environment)
        except ClusterError as error:
            return Observation(Observed.UNKNOWN, error=error.info)

    def forget(self, environment: LocalEnvironment) -> None:
        """Drop what is kept of an environment that is gone."""
        self._was_ready.pop(environment.path, None)

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.close()

    async def _observe(self, environment: LocalEnvironment) -> Observation:
        state = await self._threads.run(environment.look)
        record = state.record
        if record is None:
            return Observation(Observed.ABSENT)
        if record.phase is Phase.STOPPED:
            return Observation(Observed.STOPPED)
        if record.process is not None:
            self._supervisor.watch(environment, record.process)
        if record.phase is Phase.STOPPING:
            self._supervisor.see_to_stop(environment)
            return Observation(Observed.STOPPING)
        if not state.alive:
            return await self._observe_end(environment, record)
        return await self._ask(environment, record, state.port)

    async def _ask(
        self, environment: LocalEnvironment, record: EnvironmentRecord, port: int | None
    ) -> Observation:
        """Say what the agent says of itself, once it listens."""
        if port is None:
            return _STARTING
        url = local_url(port)
        timeout = aiohttp.ClientTimeout(total=_HEALTH_SECONDS)
        asked = self._session().get(f"{url}/api/v1/health", timeout=timeout, allow_redirects=False)
        try:
            async with asked as answer:
                if answer.status != _OK:
                    return _not_ready(answer.status, await beginning(answer.content, _MOST_BYTES))
        except TimeoutError:
            # One that was ready and now is late may only be busy: nothing is known of it.
            if self._was_ready.get(environment.path) == record.process:
                return Observation(Observed.UNKNOWN, error=_SILENT)
            return replace(_STARTING, error=_SILENT, unheard=True)
        except aiohttp.ClientError:
            return _STARTING
        if record.process is not None:
            self._was_ready[environment.path] = record.process
        steps = (PROCESS_STARTED, API_ANSWERS, AGENT_READY)
        return Observation(Observed.READY, endpoint=url, steps=steps)

    async def _observe_end(
        self, environment: LocalEnvironment, record: EnvironmentRecord
    ) -> Observation:
        """Say how the process ended; its exit code is on record once the end has been noted."""
        if record.process is not None:
            await self._supervisor.end_noted(environment, record.process)
        noted = await self._threads.run(environment.folder.read)
        if noted is None or noted.process != record.process:
            return await self._observe(environment)
        log, start = environment.folder.log, noted.log_start
        words = await self._threads.run(lambda: last_words(log, start_of(log, start)))
        return _failed(noted, words)

    def _session(self) -> aiohttp.ClientSession:
        """Return the HTTP client, made at its first use, as it belongs to the running loop."""
        if self._http is None:
            self._http = aiohttp.ClientSession()
        return self._http


def local_url(port: int) -> str:
    """Return the address of what listens on ``port`` of loopback."""
    return f"http://127.0.0.1:{port}"


def _not_ready(status: int, body: bytes) -> Observation:
    """The agent answers and is not ready, as it says in its own words."""
    error = ErrorInfo("agent_not_ready", _words(status, body), _FAILED_HINT)
    return Observation(Observed.STARTING, error=error, steps=(PROCESS_STARTED, API_ANSWERS))


def _words(status: int, body: bytes) -> str:
    """Return the agent's own sentence from its answer, or one that tells the status."""
    try:
        answer: Any = parse_json(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        for key in ("message", "detail", "error"):
            if isinstance(said := answer.get(key), str) and said:
                return plain(said)[:_MOST_WORDS]
    return f"The agent's health check answered {status}."


def _failed(record: EnvironmentRecord, last_words: str) -> Observation:
    """The process that should run has ended; ``last_words`` are the end of its log."""
    code = record.exit_code
    how = "" if code is None else f" ({_exit(code)})"
    words = f" Its last words: {last_words}" if last_words else ""
    error = ErrorInfo(
        "environment_failed", f"The environment's process has ended{how}.{words}", _FAILED_HINT
    )
    return Observation(Observed.FAILED, error=error, terminal=code in _TERMINAL_EXITS)


def _exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
