"""Asking an environment's agent whether it is ready."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from greylag.cluster.local import launch
from greylag.cluster.local.attendant import Attendant
from greylag.cluster.local.environment import LocalEnvironment
from greylag.cluster.local.folders import Phase, Record
from greylag.cluster.local.processes import Threads
from greylag.cluster.logfile import last_words, plain
from greylag.domain.errors import ClusterError, ErrorInfo
from greylag.domain.lifecycle import (
    AGENT_READY,
    API_ANSWERS,
    PROCESS_STARTED,
    Observation,
    Observed,
)

_MOST_BYTES = 8192
_MOST_WORDS = 300
_OK = 200


@dataclass(frozen=True, slots=True)
class Health:
    """What came of the question. ``late`` means that something listens but did not answer in time;
    ``words`` is what the agent says of itself when it is not ready.
    """

    answered: bool = False
    ready: bool = False
    late: bool = False
    words: str = ""


async def ask_health(session: aiohttp.ClientSession, url: str, seconds: float) -> Health:
    """Ask the agent at ``url`` and wait at most ``seconds``. It never raises for a bad answer."""
    try:
        async with session.get(
            f"{url}/api/v1/health",
            timeout=aiohttp.ClientTimeout(total=seconds),
            allow_redirects=False,
        ) as response:
            if response.status == _OK:
                return Health(answered=True, ready=True)
            body = await response.content.read(_MOST_BYTES)
            return Health(answered=True, words=_words(response.status, body))
    except TimeoutError:
        return Health(late=True)
    except aiohttp.ClientError:
        return Health()


def _words(status: int, body: bytes) -> str:
    """Return the agent's own sentence from its answer, or one that tells the status."""
    try:
        answer: Any = json.loads(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        for key in ("message", "detail", "error"):
            if isinstance(said := answer.get(key), str) and said:
                return plain(said)[:_MOST_WORDS]
    return f"The agent's health check answered {status}."


# What is observed of a local environment, as the domain takes it.

_FAILED_HINT = "`greylag logs` shows what it says; activate the project to start it again."
_BAD_SETTINGS = 2
_TERMINAL_EXITS = frozenset({launch.NOT_FOUND, _BAD_SETTINGS})
_SILENT = ErrorInfo(
    "agent_unreachable",
    "The agent's API does not answer in time.",
    "It may be busy; `greylag logs` shows what it says.",
)


def starting() -> Observation:
    """The process runs and does not listen yet."""
    return Observation(Observed.STARTING, steps=(PROCESS_STARTED,))


def ready(url: str) -> Observation:
    """The agent at ``url`` says that it is ready."""
    steps = (PROCESS_STARTED, API_ANSWERS, AGENT_READY)
    return Observation(Observed.READY, endpoint=url, steps=steps)


def not_ready(answer: Health, *, was_ready: bool) -> Observation:
    """The process listens and its agent is not ready.

    One that was ready and now is late may only be busy: nothing is known of it.
    """
    if answer.answered:
        error = ErrorInfo("agent_not_ready", answer.words, _FAILED_HINT)
        return Observation(Observed.STARTING, error=error, steps=(PROCESS_STARTED, API_ANSWERS))
    if answer.late and was_ready:
        return Observation(Observed.UNKNOWN, error=_SILENT)
    error_if_late = _SILENT if answer.late else None
    return Observation(Observed.STARTING, error=error_if_late, steps=(PROCESS_STARTED,))


def failed(record: Record, last_words: str) -> Observation:
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


# Observing a local environment: its record, its process, and what its agent says.

if TYPE_CHECKING:
    from pathlib import Path

    from greylag.cluster.local.processes import ProcessId

_HEALTH_SECONDS = 1.0
_NOTE_END_SECONDS = 1.0


class Observer:
    """Says what state an environment is in. What it finds unattended it hands to ``attendant``."""

    def __init__(self, threads: Threads, attendant: Attendant) -> None:
        self._threads = threads
        self._attendant = attendant
        self._was_ready: dict[Path, ProcessId] = {}
        self._http: aiohttp.ClientSession | None = None

    async def observe(self, local: LocalEnvironment) -> Observation:
        """Return the environment's state; what cannot be read is ``UNKNOWN``."""
        try:
            return await self._observe(local)
        except ClusterError as error:
            return Observation(Observed.UNKNOWN, error=error.info)

    def forget(self, local: LocalEnvironment) -> None:
        """Drop what is kept of an environment that was deleted."""
        self._was_ready.pop(local.folder.path, None)

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.close()

    async def _observe(self, local: LocalEnvironment) -> Observation:
        sight = await self._threads.run(local.look)
        record = sight.record
        if record is None:
            return Observation(Observed.ABSENT)
        if record.phase is Phase.STOPPED:
            return Observation(Observed.STOPPED)
        if record.process is not None:
            self._attendant.watch(local, record.ref, record.process)
        if record.phase is Phase.STOPPING:
            self._attendant.take_up_stop(local)
            return Observation(Observed.STOPPING)
        if not sight.alive:
            return await self._observe_end(local, record)
        return await self._ask(local, record, sight.port)

    async def _ask(self, local: LocalEnvironment, record: Record, port: int | None) -> Observation:
        if port is None:
            return starting()
        path, url = local.folder.path, local_url(port)
        answer = await ask_health(self._session(), url, _HEALTH_SECONDS)
        if not answer.ready:
            was_ready = self._was_ready.get(path) == record.process
            return not_ready(answer, was_ready=was_ready)
        if record.process is not None:
            self._was_ready[path] = record.process
        return ready(url)

    async def _observe_end(self, local: LocalEnvironment, record: Record) -> Observation:
        """Say how the process ended; its exit code is on record once the end has been noted."""
        if record.process is not None:
            await self._attendant.end_noted(local, record.process, _NOTE_END_SECONDS)
        noted = await self._threads.run(local.folder.read)
        if noted is None or noted.process != record.process:
            return await self._observe(local)
        log, start = local.folder.log, noted.log_start
        return failed(noted, await self._threads.run(lambda: last_words(log, start)))

    def _session(self) -> aiohttp.ClientSession:
        """Return the HTTP client, made at its first use, as it belongs to the running loop."""
        if self._http is None:
            self._http = aiohttp.ClientSession()
        return self._http


def local_url(port: int) -> str:
    """Return the address of what listens on ``port`` of loopback."""
    return f"http://127.0.0.1:{port}"
