"""Attending to environments' processes while this program runs: their end, and their stopping."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import structlog

from greylag.cluster.local.attendant import Attendant
from greylag.cluster.local.environment import LocalEnvironment, Spawner
from greylag.cluster.local.folders import Folder, Phase, Record, empty_removed
from greylag.cluster.local.observation import Observer, local_url
from greylag.cluster.local.processes import Threads
from greylag.cluster.local.sandbox import Limits, SandboxChoice, choose_sandbox
from greylag.cluster.logfile import read_lines
from greylag.cluster.news import News
from greylag.domain.errors import ClusterUnavailableError, NotActiveError
from greylag.domain.lifecycle import Observation, Observed
from greylag.domain.project import Environment, ProjectRef
from greylag.ports import AgentAddress

# Environments as processes of this machine: the cluster that needs nothing installed.

_log = structlog.get_logger(__name__)
_AGENTD = (sys.executable, "-m", "greylag.agentd")
_CHANGING_POLL_SECONDS = 0.05
_RESTING_POLL_SECONDS = 0.5
_CHANGING = frozenset({Observed.STARTING, Observed.STOPPING})


class LocalCluster:
    """Environments as process groups of this account, each with a folder under ``root``.

    Environments outlive this object and its program; another one over the same ``root``, also at
    the same time, finds them again. Construct it before serving: it may run bubblewrap once.

    Args:
        root: the folder of all environments; made when it is missing.
        agentd_command: what runs in an environment.
        model: environment variables of the model's provider (``GREYLAG_MODEL_URL`` and so on).
        goose: what ``GREYLAG_GOOSE`` is to be; ``None`` leaves the finding to agentd.
        sandbox: ``auto`` takes bubblewrap where it works, ``bubblewrap`` demands it.
        hidden: folders that environments in a sandbox must not read, beside the usual ones.
        limits: most of what each process of an environment may have.
        grace: seconds between a stop's SIGTERM and its SIGKILL.

    Raises:
        ConfigError: bubblewrap was demanded and does not work.
    """

    kind = "local"

    def __init__(  # noqa: PLR0913 - each is a setting of its own, given by name
        self,
        root: Path,
        *,
        agentd_command: Sequence[str] = _AGENTD,
        model: Mapping[str, str] | None = None,
        goose: str | None = None,
        sandbox: SandboxChoice = "auto",
        hidden: Sequence[Path] = (),
        limits: Limits | None = None,
        grace: float = 8.0,
    ) -> None:
        self._root = root.absolute()
        box = choose_sandbox(
            sandbox,
            hidden=(self._root, *hidden),
            needed=[*_programs(goose or "goose"), *_files(agentd_command)],
        )
        extra = {**(model or {}), **({"GREYLAG_GOOSE": goose} if goose else {})}
        self._spawner = Spawner(
            command=agentd_command, extra=extra, sandbox=box, limits=limits or Limits()
        )
        self._threads = Threads()
        self._unasked = News()
        self._attendant = Attendant(self._threads, self._unasked, grace)
        self._observer = Observer(self._threads, self._attendant)
        self._observed: dict[ProjectRef, Observation] = {}
        self._closing = False
        self.notice: str | None = box.notice
        _log.warning("local_environments", notice=box.notice, folder=str(self._root))

    async def observe(self, environment: Environment) -> Observation:
        """Return the environment's state. A stop or an end that nobody attends to is taken up."""
        observation = await self._observer.observe(self._environment(environment))
        self._observed[environment.ref] = observation
        return observation

    async def prepare(self, environment: Environment) -> None:
        """Make the environment's folder and record."""
        local = self._environment(environment)
        await self._threads.run(lambda: local.prepare(environment.ref))

    async def start(self, environment: Environment) -> None:
        """Start the environment's process, unless it runs."""
        local = self._environment(environment)
        process = await self._threads.run(lambda: local.start(environment.ref, self._spawner.spawn))
        if process is not None:
            self._attendant.watch(local, environment.ref, process)

    async def stop(self, environment: Environment) -> None:
        """Tell the agent to end; a task of this object sees to it that all its processes do."""
        local = self._environment(environment)
        await self._attendant.begin_stop(local)

    async def delete(self, environment: Environment) -> None:
        """Remove the environment's folder."""
        local = self._environment(environment)
        await self._threads.run(local.delete)
        self._observed.pop(environment.ref, None)
        self._attendant.forget(local)
        self._observer.forget(local)

    async def changed(self, environment: Environment, timeout: float) -> None:  # noqa: ASYNC109 - the port's
        """Return once the state differs from what was last observed, or after ``timeout``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._closing and (left := deadline - loop.time()) > 0:
            now = await self._observer.observe(self._environment(environment))
            if now != self._observed.get(environment.ref):
                return
            changing = now.state in _CHANGING
            pause = _CHANGING_POLL_SECONDS if changing else _RESTING_POLL_SECONDS
            await asyncio.sleep(min(left, pause))

    async def changes(self) -> AsyncIterator[ProjectRef]:
        """Yield projects whose process ended unasked, also before this object was made."""
        heard = self._unasked.listen()
        for local, record in await self._sights():
            if record.phase is Phase.RUNNING and record.process is not None:
                self._attendant.watch(local, record.ref, record.process)
        async for ref in heard:
            yield ref

    async def reach(self, environment: Environment) -> AgentAddress:
        """Return the agent's address on loopback and its token, once it listens."""
        sight = await self._threads.run(self._environment(environment).look)
        if sight.record is None or sight.record.phase is not Phase.RUNNING or sight.port is None:
            raise NotActiveError("The environment does not run.")
        return AgentAddress(local_url(sight.port), sight.record.token)

    @asynccontextmanager
    async def logs(
        self, environment: Environment, *, follow: bool, tail: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open what agentd wrote to its stdout and stderr."""
        path = self._environment(environment).folder.log
        lines = read_lines(path, follow=follow, tail=tail, closing=lambda: self._closing)
        async with aclosing(lines):
            yield lines

    async def inventory(self) -> Sequence[ProjectRef]:
        """Return every environment under the root; finish removals that were cut short."""
        await self._threads.run(lambda: empty_removed(self._root))
        return [record.ref for _, record in await self._sights()]

    async def close(self) -> None:
        """Let go of the environments, which go on; a stop under way is taken up by the next."""
        self._closing = True
        self._unasked.close()
        await self._attendant.close()
        await self._observer.close()
        await self._threads.close()

    def _environment(self, environment: Environment) -> LocalEnvironment:
        return LocalEnvironment(Folder.of(self._root, environment.names), environment.fence)

    async def _sights(self) -> list[tuple[LocalEnvironment, Record]]:
        """Return all environments under the root, without those whose record cannot be read."""
        return await self._threads.run(lambda: _readable(self._root))


def _programs(name: str) -> list[Path]:
    """Return where this program is, and what it links to."""
    found = shutil.which(name)
    return [Path(found), Path(found).resolve()] if found else []


def _files(command: Sequence[str]) -> list[Path]:
    """Return the program of ``command`` and the files that it names."""
    named = [Path(word) for word in command[1:] if Path(word).is_file()]
    return [*_programs(command[0]), *named]


def _readable(root: Path) -> list[tuple[LocalEnvironment, Record]]:
    found: list[tuple[LocalEnvironment, Record]] = []
    for folder in Folder.all(root):
        try:
            record = folder.read()
        except ClusterUnavailableError as error:
            _log.warning("environment_unreadable", reason=str(error))
            continue
        if record is not None:
            found.append((LocalEnvironment(folder), record))
    return found
