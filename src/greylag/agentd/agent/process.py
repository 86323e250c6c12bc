"""The agent as an operating-system process: started clean, watched, and killed with all it made."""

import asyncio
import math
import secrets
import signal
from collections import deque
from collections.abc import Mapping
from contextlib import suppress

import structlog

from greylag.agentd.agent.acp import ByteReader, ByteWriter
from greylag.agentd.agent.types import (
    AgentCommand,
    AgentSetup,
    AgentUnavailableError,
    base_environment,
)
from greylag.agentd.execution import Execution, ExecutionError, ExecutionRefusedError, RemoteProcess
from greylag.common.concurrent import to_its_end

_LONGER = 60  # seconds than the relay's own time for the model, whose error says more
_STDERR_LINES = 20
_STDERR_WIDTH = 300
_STDERR_READ = 4096
_LAST_WORDS_SECONDS = 1.0
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
        await execution.make_folders((setup.workspace, setup.home, setup.tmp))
    except ExecutionError as error:
        raise AgentUnavailableError(f"The agent's folders cannot be made: {error}") from error


class AgentProcess:
    """One running agent process; ``start`` makes it, ``kill`` ends it and all that it started."""

    def __init__(self, process: RemoteProcess, execution: Execution, mark: str) -> None:
        self._process = process
        self._execution = execution
        self._mark = mark
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._all_said = asyncio.Event()

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
            process = await execution.run(
                command.argv, env=environment, cwd=setup.workspace, group=mark
            )
        except ExecutionRefusedError as error:
            raise AgentUnavailableError(f"The agent's program {error}") from error
        except ExecutionError as error:
            raise AgentUnavailableError(f"The agent cannot be started: {error}") from error
        return cls(process, execution, mark)

    @property
    def pid(self) -> int:
        """The agent's process id, where it runs."""
        return self._process.pid

    @property
    def streams(self) -> tuple[ByteReader, ByteWriter]:
        """The agent's stdout and stdin."""
        return self._process.stdout, self._process

    async def watch_stderr(self) -> None:
        """Read stderr to its end, so that the agent never blocks on it; the last lines are kept."""
        rest = ""
        while chunk := await self._process.stderr.read(_STDERR_READ):
            *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
            self._stderr.extend(line[:_STDERR_WIDTH] for line in lines if line.strip())
            rest = rest[:_STDERR_WIDTH]
        if rest.strip():
            self._stderr.append(rest)
        self._all_said.set()

    async def ended(self) -> str:
        """Wait until the process has ended and say how, in one plain sentence."""
        try:
            code = await self._process.wait()
        except ExecutionError as error:
            return f"The agent process was lost: {error}"
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._all_said.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        last = f" (it said: {self._stderr[-1]})" if self._stderr else ""
        return f"The agent process {how}{last}."

    def request_kill(self) -> None:
        """Kill the agent itself at once; what it started is killed by ``kill``."""
        self._process.send_signal(signal.SIGKILL)

    async def kill(self) -> None:
        """Kill the agent and everything it started, and wait until they are gone."""
        # Whoever stops us must not leave anything alive.
        await to_its_end(self._process.end(), "agent-kill")

    async def kill_tools(self, session: str, since: float) -> None:
        """Kill what the session's tools have started since then (``process_clock``).

        goose ends only the shell itself when a turn is cancelled, not what the shell had started.
        """
        try:
            await self._execution.end_matching(self._mark, {_SESSION: session}, since)
        except ExecutionError as error:
            _log.warning("agent_tools_not_killed", error=str(error))
