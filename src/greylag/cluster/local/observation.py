"""Observing a local environment: its record, its process, and what its agent says of itself."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiohttp

from greylag.cluster.local import launch
from greylag.cluster.local.environment import LocalEnvironment
from greylag.cluster.local.folders import EnvironmentRecord, Phase
from greylag.cluster.local.logfile import last_words
from greylag.cluster.local.stopping import Supervisor, Threads
from greylag.cluster.shared import plain
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

    from greylag.cluster.local.processes import ProcessId

_HEALTH_SECONDS = 1.0
_NOTE_END_SECONDS = 1.0
_MOST_BYTES = 8192
_MOST_WORDS = 300
_OK = 200
_BAD_SETTINGS = 2
_TERMINAL_EXITS = frozenset({launch.NOT_FOUND, _BAD_SETTINGS})
_FAILED_HINT = "`greylag logs` shows what it says; activate the project to start it again."
_STARTING = Observation(Observed.STARTING, steps=(PROCESS_STARTED,))
_SILENT = ErrorInfo(
    "agent_unreachable",
    "The agent's API does not answer in time.",
    "It may be busy; `greylag logs` shows what it says.",
)


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
        """Drop what is kept of an environment that was deleted."""
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
                    return _not_ready(answer.status, await answer.content.read(_MOST_BYTES))
        except TimeoutError:
            # One that was ready and now is late may only be busy: nothing is known of it.
            if self._was_ready.get(environment.path) == record.process:
                return Observation(Observed.UNKNOWN, error=_SILENT)
            return replace(_STARTING, error=_SILENT)
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
            await self._supervisor.end_noted(environment, record.process, _NOTE_END_SECONDS)
        noted = await self._threads.run(environment.folder.read)
        if noted is None or noted.process != record.process:
            return await self._observe(environment)
        log, start = environment.folder.log, noted.log_start
        return _failed(noted, await self._threads.run(lambda: last_words(log, start)))

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
