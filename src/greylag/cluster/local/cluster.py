"""Environments as processes of this machine: the cluster that needs nothing installed."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import structlog

from greylag.cluster.local.environment import LocalEnvironment, Spawner
from greylag.cluster.local.folders import NAME, EnvironmentRecord, Folder, Phase, empty_removed
from greylag.cluster.local.logfile import read_lines
from greylag.cluster.local.sandbox import (
    SandboxChoice,
    SandboxNetwork,
    choose_sandbox,
    start_folder,
)
from greylag.cluster.local.supervision import Observer, Supervisor, Threads, local_url
from greylag.cluster.shared import ChangeFeed
from greylag.domain.errors import ClusterUnavailableError, NotActiveError
from greylag.domain.lifecycle import Observation, Observed
from greylag.domain.names import EnvironmentNames
from greylag.domain.project import Environment, ProjectRef
from greylag.ports import AgentAddress, FoundEnvironment

_log = structlog.get_logger(__name__)
# -I: no folder that it is started in, and no variable, adds to where modules are looked for.
_AGENTD = (sys.executable, "-I", "-m", "greylag.agentd")
_CHANGING_POLL_SECONDS = 0.05
_RESTING_POLL_SECONDS = 0.5
_EMPTYING_SECONDS = 2.0
_ABSENT = Observation(Observed.ABSENT)
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
        network: ``strict`` leaves environments in a sandbox nothing but the way to the model.
        hidden: what environments in a sandbox must not read, beside the usual folders, the one
            that we were started in, and ``root``.
        shown: what they are to read all the same.
        authorities: what the file holds, if any, that ``SSL_CERT_FILE`` names in ``model``: what
            runs with others is outdated.
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
        network: SandboxNetwork = "auto",
        memory: int | None = None,
        hidden: Sequence[Path] = (),
        shown: Sequence[Path] = (),
        authorities: str = "",
        grace: float = 8.0,
    ) -> None:
        self._root = root.absolute()
        box = choose_sandbox(
            sandbox,
            hidden=(self._root, *start_folder(), *hidden),
            needed=[*_programs(goose or "goose"), *shown],
            network=network,
            memory=memory,
        )
        extra = {**(model or {}), **({"GREYLAG_GOOSE": goose} if goose else {})}
        self._spawner = Spawner(
            command=agentd_command, extra=extra, sandbox=box, authorities=authorities
        )
        self._settings = self._spawner.settings
        self._threads = Threads()
        self._unasked = ChangeFeed()
        self._supervisor = Supervisor(self._threads, self._unasked, grace)
        self._observer = Observer(self._threads, self._supervisor)
        self._observed: dict[ProjectRef, Observation] = {}
        self._closing = False
        self.notice: str | None = box.notice
        _log.warning("local_environments", notice=box.notice, folder=str(self._root))

    async def observe(self, environment: Environment) -> Observation:
        """Return the environment's state. A stop or an end that nobody attends to is taken up."""
        handle = self._handle(environment)
        seen = await self._observer.observe(handle)
        if seen == _ABSENT:
            self._forget(handle)
        else:
            self._observed[environment.ref] = seen
        if seen.state is not Observed.READY:
            return seen
        started = await self._threads.run(handle.tend)
        return replace(seen, outdated=None if started == self._settings else self._settings)

    async def prepare(self, environment: Environment) -> None:
        """Make the environment's folder and record."""
        await self._threads.run(self._handle(environment).prepare)

    async def start(self, environment: Environment) -> None:
        """Start the environment's process, unless it runs."""
        handle = self._handle(environment)
        process = await self._threads.run(lambda: handle.start(self._spawner))
        if process is not None:
            self._supervisor.watch(handle, process)

    async def stop(self, environment: Environment) -> None:
        """Tell the agent to end; a task of this object sees to it that all its processes do."""
        handle = self._handle(environment)
        known = await self._threads.run(handle.begin_stop)
        if known is not None:
            self._supervisor.see_to_stop(handle, known)

    async def delete(self, environment: Environment) -> None:
        """Remove the environment's folder; very many files of it may go after this returns."""
        handle = self._handle(environment)
        await self._threads.run(handle.delete)
        self._forget(handle)
        await self._empty_removed()

    async def changed(self, environment: Environment, timeout: float) -> None:  # noqa: ASYNC109 - the port's
        """Return once the state differs from what was last observed, or after ``timeout``.

        It looks after a pause only, as whoever waits has just looked.
        """
        handle, seen = self._handle(environment), self._observed.get(environment.ref, _ABSENT)
        pause = _CHANGING_POLL_SECONDS if seen.state in _CHANGING else _RESTING_POLL_SECONDS
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._closing and (left := deadline - loop.time()) > 0:
            await asyncio.sleep(min(left, pause))
            if await self._observer.observe(handle) != seen:
                return

    async def changes(self) -> AsyncIterator[ProjectRef]:
        """Yield projects whose process ended unasked, also before this object was made."""
        heard = self._unasked.listen()
        for folder, record in await self._recorded():
            if record.phase is Phase.RUNNING and record.process is not None:
                self._supervisor.watch(LocalEnvironment(folder, record.ref), record.process)
        async for ref in heard:
            yield ref

    async def reach(self, environment: Environment) -> AgentAddress:
        """Return the agent's address on loopback and its token, once it listens."""
        state = await self._threads.run(self._handle(environment).look)
        if state.record is None or state.record.phase is not Phase.RUNNING or state.port is None:
            raise NotActiveError("The environment does not run.")
        return AgentAddress(local_url(state.port), state.record.token)

    @asynccontextmanager
    async def logs(
        self, environment: Environment, *, follow: bool, tail: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open what agentd wrote to its stdout and stderr."""
        path = self._handle(environment).folder.log
        lines = read_lines(path, follow=follow, tail=tail, closing=lambda: self._closing)
        async with aclosing(lines):
            yield lines

    async def inventory(self) -> Sequence[ProjectRef]:
        """Return every environment under the root; finish removals that were cut short."""
        await self._empty_removed()
        return [record.ref for _, record in await self._recorded()]

    async def found(self) -> Sequence[FoundEnvironment]:
        """Return what the folders under the root tell. Nobody else's are there."""
        recorded = await self._recorded()
        return await self._threads.run(lambda: [_told(*one) for one in recorded])

    async def take_over(self, found: FoundEnvironment) -> None:
        """Do nothing: all that is there is ours."""

    async def close(self) -> None:
        """Let go of the environments, which go on; a stop under way is taken up by the next."""
        self._closing = True
        self._unasked.close()
        await self._supervisor.close()
        await self._observer.close()
        await self._threads.close()

    async def _empty_removed(self) -> None:
        """Delete what was taken away; what takes long is gone on with by a task."""

        async def empty() -> bool:
            return await self._threads.run(lambda: empty_removed(self._root, _EMPTYING_SECONDS))

        if await empty():
            self._supervisor.repeat(f"empty {self._root}", empty)

    def _forget(self, handle: LocalEnvironment) -> None:
        """Drop what is kept of an environment that is gone, whoever has deleted it."""
        self._observed.pop(handle.ref, None)
        self._supervisor.forget(handle)
        self._observer.forget(handle)

    def _handle(self, environment: Environment) -> LocalEnvironment:
        folder = Folder.of(self._root, environment.names)
        return LocalEnvironment(folder, environment.ref, environment.fence, environment.name)

    async def _recorded(self) -> list[tuple[Folder, EnvironmentRecord]]:
        """Return all environments under the root, without those whose record cannot be read."""
        return await self._threads.run(lambda: _readable(self._root))


def _programs(name: str) -> list[Path]:
    """Return where this program is, beside Python or on PATH, and what it links to."""
    beside = Path(sys.executable).parent
    found = [shutil.which(name, path=beside), shutil.which(name)]
    return [path for one in found if one for path in (Path(one), Path(one).resolve())]


def _told(folder: Folder, record: EnvironmentRecord) -> FoundEnvironment:
    fence = folder.newest_fence()
    slug = folder.deployment.removesuffix("-api")
    return FoundEnvironment(
        ref=record.ref,
        names=EnvironmentNames(
            folder.namespace, folder.deployment, f"{slug}-svc", f"{slug}-ingress"
        ),
        record_id=fence.record_id if fence else None,
        claim=fence.number if fence else 0,
        name=folder.noted(NAME),
        wanted=record.phase is Phase.RUNNING,
    )


def _readable(root: Path) -> list[tuple[Folder, EnvironmentRecord]]:
    found: list[tuple[Folder, EnvironmentRecord]] = []
    for folder in Folder.all(root):
        try:
            record = folder.read()
        except ClusterUnavailableError as error:
            _log.warning("environment_unreadable", error=str(error))
            continue
        if record is not None:
            found.append((folder, record))
    return found
