"""Observing a local environment: its record, its process, and what its agent says."""

from typing import TYPE_CHECKING

import aiohttp

from greylag.cluster import seen
from greylag.cluster.attendant import Attendant
from greylag.cluster.environment import Environment
from greylag.cluster.health import ask_health
from greylag.cluster.logfile import last_words
from greylag.cluster.record import Phase, Record
from greylag.cluster.threads import Threads
from greylag.domain.errors import ClusterError
from greylag.domain.lifecycle import Observation, Observed

if TYPE_CHECKING:
    from pathlib import Path

    from greylag.cluster.processes import ProcessId

_HEALTH_SECONDS = 1.0
_NOTE_END_SECONDS = 1.0


class Observer:
    """Says what state an environment is in. What it finds unattended it hands to ``attendant``."""

    def __init__(self, threads: Threads, attendant: Attendant) -> None:
        self._threads = threads
        self._attendant = attendant
        self._was_ready: dict[Path, ProcessId] = {}
        self._http: aiohttp.ClientSession | None = None

    async def observe(self, environment: Environment) -> Observation:
        """Return the environment's state; what cannot be read is ``UNKNOWN``."""
        try:
            return await self._observe(environment)
        except ClusterError as error:
            return Observation(Observed.UNKNOWN, error=error.info)

    def forget(self, environment: Environment) -> None:
        """Drop what is kept of an environment that was deleted."""
        self._was_ready.pop(environment.folder.path, None)

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.close()

    async def _observe(self, environment: Environment) -> Observation:
        sight = await self._threads.run(environment.look)
        record = sight.record
        if record is None:
            return Observation(Observed.ABSENT)
        if record.phase is Phase.STOPPED:
            return Observation(Observed.STOPPED)
        if record.process is not None:
            self._attendant.watch(environment, record.ref, record.process)
        if record.phase is Phase.STOPPING:
            self._attendant.take_up_stop(environment)
            return Observation(Observed.STOPPING)
        if not sight.alive:
            return await self._observe_end(environment, record)
        return await self._ask(environment, record, sight.port)

    async def _ask(self, environment: Environment, record: Record, port: int | None) -> Observation:
        if port is None:
            return seen.starting()
        path, url = environment.folder.path, local_url(port)
        answer = await ask_health(self._session(), url, _HEALTH_SECONDS)
        if not answer.ready:
            was_ready = self._was_ready.get(path) == record.process
            return seen.not_ready(answer, was_ready=was_ready)
        if record.process is not None:
            self._was_ready[path] = record.process
        return seen.ready(url)

    async def _observe_end(self, environment: Environment, record: Record) -> Observation:
        """Say how the process ended; its exit code is on record once the end has been noted."""
        if record.process is not None:
            await self._attendant.end_noted(environment, record.process, _NOTE_END_SECONDS)
        noted = await self._threads.run(environment.folder.read)
        if noted is None or noted.process != record.process:
            return await self._observe(environment)
        log, start = environment.folder.log, noted.log_start
        return seen.failed(noted, await self._threads.run(lambda: last_words(log, start)))

    def _session(self) -> aiohttp.ClientSession:
        """Return the HTTP client, made at its first use, as it belongs to the running loop."""
        if self._http is None:
            self._http = aiohttp.ClientSession()
        return self._http


def local_url(port: int) -> str:
    """Return the address of what listens on ``port`` of loopback."""
    return f"http://127.0.0.1:{port}"
