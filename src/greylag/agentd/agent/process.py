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
    GIT_CONFIG,
    AgentCommand,
    AgentSetup,
    AgentUnavailableError,
)
from greylag.agentd.execution import (
    Execution,
    ExecutionError,
    ExecutionRefusedError,
    RemoteProcess,
)
from greylag.common.concurrent import to_its_end
from greylag.common.net import proxy_variables

_INHERITED = frozenset({"PATH", "LANG", "TERM", "TZ"})
_LONGER = 60  # seconds than the relay's own time for the model, whose error says more
_AUTHORITIES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)
_STDERR_LINES = 20
_STDERR_WIDTH = 300
_STDERR_READ = 4096
_LAST_WORDS_SECONDS = 1.0
_SESSION = "AGENT_SESSION_ID"  # goose gives it to its tools

_log = structlog.get_logger(__name__)


def harmless_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return PATH, LANG, LC_*, TERM and TZ of our own environment, which holds secrets too."""
    return {k: v for k, v in environ.items() if k in _INHERITED or k.startswith("LC_")}


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


def base_environment(setup: AgentSetup, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what all that is run in the workspace has over execd's own variables: its folders, the
    environment's name, git's configuration, over which the user's own wins, and the way out.

    Args:
        setup: the folders and the name.
        environ: our own environment, of which the way out is taken and nothing secret.
    """
    named = {"GREYLAG_ENVIRONMENT": setup.environment_id} if setup.environment_id else {}
    return {
        **named,
        "HOME": str(setup.home),
        "TMPDIR": str(setup.tmp),
        "GIT_CONFIG_SYSTEM": str(setup.home / GIT_CONFIG),
        **_tools_way_out(environ),
    }


def _tools_way_out(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what tools need to reach the world as agentd does: authorities, and proxies.

    A proxy that wants a password is left out: tools would have it too.
    """
    found = proxy_variables(environ)
    excepted = found.pop("NO_PROXY", "")
    proxies = {name: url for name, url in found.items() if "@" not in url}
    if proxies:
        proxies["NO_PROXY"] = ",".join(filter(None, (excepted, "localhost,127.0.0.1,::1")))
    # Some programs know the small names only.
    proxies |= {name.lower(): value for name, value in proxies.items()}
    bundle = environ.get("SSL_CERT_FILE")
    return proxies | (dict.fromkeys(_AUTHORITIES, bundle) if bundle else {})


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
