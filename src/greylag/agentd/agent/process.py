"""The agent as an operating-system process: started clean, made ready, watched, and killed with all
that it made.
"""

import asyncio
import math
import os
import secrets
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import structlog

from greylag.agentd.agent.acp import AcpPeer, MessageHandler
from greylag.agentd.agent.extensions import CONFIGURED, new_session
from greylag.agentd.agent.types import (
    AgentCommand,
    AgentDiedError,
    AgentError,
    AgentKind,
    AgentRefusedError,
    AgentSetup,
    AgentStarvedError,
    AgentUnavailableError,
    base_environment,
    understood,
)
from greylag.agentd.execution import Execution, ExecutionError, ExecutionRefusedError, RemoteProcess
from greylag.common.concurrent import to_its_end

INITIALIZE = {
    "protocolVersion": 1,
    # Without customNotifications goose says nothing of compaction and of an overfull context.
    "clientCapabilities": {"_meta": {"goose": {"customNotifications": True}}},
    "clientInfo": {"name": "greylag", "version": "1"},
}
"""What an agent is asked for first."""
_PREPARED = "GREYLAG_PREPARED"
_TOOLS_ON = "developer"
_LONGER = 60  # seconds than the relay's own time for the model, whose error says more
_STDERR_LINES = 20
_STDERR_WIDTH = 300
_STDERR_READ = 4096
_LAST_WORDS_SECONDS = 1.0
_NO_MEMORY = "memory allocation of "  # what a program in Rust ends with, and then an aside
_ASIDE = "note: "
_START_SECONDS = 60.0
_TIDY_SECONDS = 10.0
_FORGET = """
cd "${XDG_CONFIG_HOME:-$HOME/.config}/goose" 2>/dev/null || exit 0
chmod u+rwx . && rm -f ./permission.yaml
"""
# goose makes one for each session, and leaves it there when it is killed.
_REMOVE_LEFT = """
find "$TMPDIR" -mindepth 1 -maxdepth 1 -type d -name '.tmp??????' -empty -mmin +1 -exec rmdir {} +
"""
_SESSION = "AGENT_SESSION_ID"  # goose gives it to its tools

_log = structlog.get_logger(__name__)


def agent_environment(
    setup: AgentSetup, environ: Mapping[str, str], relay_url: str, relay_token: str
) -> dict[str, str]:
    """Build the agent's environment from nothing, so that no secret of ours reaches its tools.

    PATH and the like are those of execd, which may be in another image.

    Args:
        setup: the folders, the model and the settings.
        environ: our own environment; see ``base_environment``.
        relay_url: base URL of the model relay, as the agent reaches it.
        relay_token: the token that the relay asks for; good for model calls only.
    """
    model = {"GOOSE_MODEL": setup.model} if setup.model is not None else {}
    return {
        **setup.settings,
        **model,
        **base_environment(setup, environ),
        "GOOSE_PROVIDER": "openai",
        "GOOSE_DISABLE_KEYRING": "1",
        "GOOSE_TELEMETRY_OFF": "1",
        "GOOSE_PROVIDER_SKIP_BACKOFF": "true",  # the relay paces the tries, and can be stopped
        "OPENAI_HOST": relay_url,
        "OPENAI_API_KEY": relay_token,
        "OPENAI_TIMEOUT": str(math.ceil(setup.model_timeout) + _LONGER),
    }


async def make_folders(execution: Execution, setup: AgentSetup) -> None:
    """Make the agent's folders where they are not: its tools can remove them.

    Raises:
        AgentUnavailableError: they cannot be made; the message says why.
    """
    try:
        await execution.make_folders(setup.folders)
    except ExecutionError as error:
        raise AgentUnavailableError(f"The agent's folders cannot be made: {error}") from error


async def forget_allowed(execution: Execution, setup: AgentSetup) -> None:
    """Take away what goose keeps of tools that it asks about no more, and reads when it starts.

    Tools can write that. We never have goose keep any: what holds in a session is kept by agentd.
    """
    code = await _tidied(execution, setup, _FORGET)
    if code != 0:
        _log.warning("allowed_tools_not_forgotten", reason=code)


async def remove_left(execution: Execution, setup: AgentSetup) -> None:
    """Remove the empty folders that former processes of goose's left in the folder for temporary
    files, which is kept while the environment sleeps.
    """
    code = await _tidied(execution, setup, _REMOVE_LEFT)
    if code != 0:
        _log.warning("temporary_folders_not_removed", reason=code)


async def _tidied(execution: Execution, setup: AgentSetup, script: str) -> int | str:
    """Run a script where the agent runs; return its exit code, or why there is none."""
    env = base_environment(setup, os.environ)
    argv = ("/bin/sh", "-c", script)
    try:
        process = await execution.run(argv, env=env, cwd=setup.home, group=secrets.token_hex(8))
        try:
            async with asyncio.timeout(_TIDY_SECONDS):
                return await process.wait()
        finally:
            await to_its_end(process.end(), "tidying")
    except (ExecutionError, TimeoutError) as error:
        return str(error) or "it took too long"


async def make_ready(
    peer: AcpPeer,
    setup: AgentSetup,
    kind: AgentKind,
    configuring: AbstractAsyncContextManager[None],
) -> str:
    """Bring a fresh agent to where it can take sessions, and prove that it can.

    Args:
        peer: what speaks with it.
        setup: what is stored in it.
        kind: which agent it is.
        configuring: held by whoever changes its configuration.

    Returns:
        The agent's version.

    Raises:
        AgentRefusedError: it answered one of the steps with an error.
        Exception: it answered otherwise than it must (see ``understood``).
        AgentDiedError: it ended meanwhile.
    """
    answer = await peer.request("initialize", INITIALIZE)
    if kind == "goose":
        async with configuring:
            await _store_defaults(peer, setup.defaults)
            await _limit_extensions(peer)
    # goose's own health check says yes when nothing works; only a session that was made is proof.
    # It has no extensions: what is the matter with one must hold back nobody.
    session, _ = await new_session(peer, setup, "Readiness")
    await peer.request("session/delete", {"sessionId": session})
    info = answer.get("agentInfo") or {}
    return str(info.get("version", "unknown"))


@asynccontextmanager
async def _uncounted(lock: asyncio.Lock, limit: asyncio.Timeout) -> AsyncIterator[None]:
    """Hold a lock; how long others have it before is no part of a limit, and bounded by theirs."""
    loop = asyncio.get_running_loop()
    left = (limit.when() or loop.time()) - loop.time()
    limit.reschedule(None)
    async with lock:
        limit.reschedule(loop.time() + left)
        yield


async def _store_defaults(peer: AcpPeer, defaults: Mapping[str, str]) -> None:
    for key, value in defaults.items():
        if await _setting(peer, key) is None:
            params = {"key": key, "value": value}
            await peer.request("_goose/unstable/config/upsert", params)


async def _limit_extensions(peer: AcpPeer) -> None:
    """Turn off, once for each HOME, the many extensions that goose has on by default.

    Once only: what the user turns on later stays on.
    """
    if await _setting(peer, _PREPARED) is not None:
        return
    listed = await peer.request(f"{CONFIGURED}/list", {})
    for entry in listed["extensions"]:
        if entry["enabled"] and entry["configKey"] != _TOOLS_ON:
            # Added, not set: in a fresh HOME goose lists what its configuration does not hold.
            params = {"extension": entry["extension"], "enabled": False}
            await peer.request(f"{CONFIGURED}/add", params)
    params = {"key": _PREPARED, "value": "1"}
    await peer.request("_goose/unstable/config/upsert", params)


async def _setting(peer: AcpPeer, key: str) -> Any:
    answer = await peer.request("_goose/unstable/config/read", {"key": key})
    return answer.get("value")


class AgentProcess:
    """One running agent process; ``start`` makes it, ``kill`` ends it and all that it started.

    Attributes:
        peer: what speaks with it.
        remote: it itself, where it runs.
    """

    def __init__(
        self,
        remote: RemoteProcess,
        execution: Execution,
        kind: AgentKind,
        setup: AgentSetup,
        mark: str,
    ) -> None:
        self.peer = AcpPeer(remote.stdout, remote)
        self.remote = remote
        self._execution = execution
        self._kind = kind
        self._setup = setup
        self._mark = mark
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._all_said = asyncio.Event()
        self._starved = False
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(
        cls,
        execution: Execution,
        command: AgentCommand,
        setup: AgentSetup,
        environment: Mapping[str, str],
    ) -> "AgentProcess":
        """Start the agent in its workspace.

        Raises:
            AgentUnavailableError: it cannot be started; the message says why.
        """
        mark = secrets.token_hex(8)
        try:
            remote = await execution.run(
                command.argv, env=environment, cwd=setup.workspace, group=mark, private=True
            )
        except ExecutionRefusedError as error:
            raise AgentUnavailableError(f"The agent's program {error}") from error
        except ExecutionError as error:
            raise AgentUnavailableError(f"The agent cannot be started: {error}") from error
        return cls(remote, execution, command.kind, setup, mark)

    async def run(
        self,
        handler: MessageHandler,
        configuring: asyncio.Lock,
        on_ready: Callable[[str], None],
        on_end: Callable[[], None],
    ) -> str:
        """Live until the process ends; on return all that it started is dead.

        Args:
            handler: takes what the agent says.
            configuring: held by whoever changes the agent's configuration.
            on_ready: called once, with the agent's version, when it can take work.
            on_end: called as soon as it can take no more, before anyone who waits for an answer
                hears of it.

        Returns:
            Why it ended, in one plain sentence.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read(handler, on_end), name="agent-read")
                watchers = [
                    reading,
                    tasks.create_task(self.watch_stderr(), name="agent-stderr"),
                    tasks.create_task(self._make_ready(configuring, on_ready), name="agent-start"),
                    tasks.create_task(self._await_end(reading), name="agent-end"),
                ]
                reason = await self._over
                for task in watchers:
                    task.cancel()
            return reason
        finally:
            await self.kill()

    async def _read(self, handler: MessageHandler, on_end: Callable[[], None]) -> None:
        try:
            await self.peer.run(handler, on_end)
        except AgentError as error:
            self._say(f"The agent was stopped: {error}.")

    async def _make_ready(self, configuring: asyncio.Lock, on_ready: Callable[[str], None]) -> None:
        limit = asyncio.timeout(_START_SECONDS)
        try:
            with understood():
                async with limit:
                    alone = _uncounted(configuring, limit)
                    version = await make_ready(self.peer, self._setup, self._kind, alone)
        except AgentRefusedError as error:
            self._say(f"The agent could not start: {error.words}.")
        except TimeoutError:
            self._say(f"The agent did not start within {_START_SECONDS:g} seconds.")
        except AgentError as error:
            _log.info("agent_start_interrupted", error=str(error))  # ``_await_end`` knows more
        else:
            on_ready(version)

    async def _await_end(self, reading: "asyncio.Task[None]") -> None:
        reason = await self.ended()
        # What it started may hold its pipes open; once that is gone, its last words can be read.
        await self.kill()
        await asyncio.wait({reading}, timeout=_LAST_WORDS_SECONDS)
        self._say(reason)

    def _say(self, reason: str) -> None:
        if not self._over.done():
            self._over.set_result(reason)

    async def watch_stderr(self) -> None:
        """Read stderr to its end, so that the agent never blocks on it; the last lines are kept."""
        rest = ""
        while chunk := await self.remote.stderr.read(_STDERR_READ):
            *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
            self._stderr.extend(line[:_STDERR_WIDTH] for line in lines if line.strip())
            rest = rest[:_STDERR_WIDTH]
        if rest.strip():
            self._stderr.append(rest)
        self._all_said.set()

    async def ended(self) -> str:
        """Wait until the process has ended and say how, in one plain sentence."""
        try:
            code = await self.remote.wait()
        except ExecutionError as error:
            return f"The agent process was lost: {error}"
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._all_said.wait()
        said = any(_NO_MEMORY in line for line in self._stderr)
        self._starved = said or code == -signal.SIGKILL
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        return f"The agent process {how}{self._last_words()}."

    async def death(self, died: AgentDiedError) -> AgentDiedError:
        """Return the end of the process as whoever waited for an answer is to be told of it."""
        await asyncio.wait({self._over}, timeout=2 * _LAST_WORDS_SECONDS)
        return AgentStarvedError(str(died)) if self._starved else died

    def _last_words(self) -> str:
        said = [line for line in self._stderr if not line.startswith(_ASIDE)]
        return f" (it said: {said[-1]})" if said else ""

    def request_kill(self, why: str = "did not answer") -> None:
        """Have ``run`` end at once, and so the agent and all that it started, which ``why``."""
        # Not by a signal: that would wait behind what the agent does not read.
        self._say(f"The agent process {why} and was ended{self._last_words()}.")

    async def kill(self) -> None:
        """Kill the agent and everything it started, and wait until they are gone."""
        # Whoever stops us must not leave anything alive.
        await to_its_end(self.remote.end(), "agent-kill")

    async def kill_tools(self, sessions: Sequence[str], since: float) -> None:
        """Kill what the tools of sessions have started since then (``process_clock``), at once: any
        extension can make them many.

        goose ends only the shell itself when a turn is cancelled, not what the shell had started.
        """
        try:
            await self._execution.end_matching(self._mark, {_SESSION: sessions}, since)
        except ExecutionError as error:
            _log.warning("agent_tools_not_killed", error=str(error))
