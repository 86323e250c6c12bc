"""The agent as an operating-system process: started clean, watched, and killed with all it made."""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

import psutil

from greylag.agentd.agent import process_tree
from greylag.agentd.agent.types import AgentCommand, AgentSetup, AgentUnavailableError

_INHERITED = frozenset({"PATH", "LANG", "TERM", "TZ"})
_MODEL_TIMEOUT = "240"  # seconds; longer than the relay's own, whose error says more
_STDERR_LINES = 20
_STDERR_WIDTH = 300
_STDERR_READ = 4096


def agent_environment(
    setup: AgentSetup, environ: Mapping[str, str], relay_url: str, relay_token: str
) -> dict[str, str]:
    """Build the agent's environment from nothing, so that no secret of ours reaches its tools.

    Args:
        setup: the folders, the model and the settings.
        environ: our own environment; only PATH, LANG, LC_*, TERM and TZ are taken from it.
        relay_url: base URL of the model relay.
        relay_token: the token that the relay asks for; good for model calls only.
    """
    taken = {k: v for k, v in environ.items() if k in _INHERITED or k.startswith("LC_")}
    model = {"GOOSE_MODEL": setup.model} if setup.model is not None else {}
    named = {"GREYLAG_ENVIRONMENT": setup.environment_id} if setup.environment_id else {}
    return {
        **taken,
        **setup.settings,
        **model,
        **named,
        "HOME": str(setup.home),
        "TMPDIR": str(setup.tmp),
        "GOOSE_PROVIDER": "openai",
        "GOOSE_DISABLE_KEYRING": "1",
        "GOOSE_TELEMETRY_OFF": "1",
        "GOOSE_PROVIDER_SKIP_BACKOFF": "true",  # the relay paces the tries, and can be stopped
        "OPENAI_HOST": relay_url,
        "OPENAI_API_KEY": relay_token,
        "OPENAI_TIMEOUT": _MODEL_TIMEOUT,
    }


class AgentProcess:
    """One running agent process; ``start`` makes it, ``kill`` ends it and all that it started."""

    def __init__(
        self, process: asyncio.subprocess.Process, root: psutil.Process | None, mark: str
    ) -> None:
        self._process = process
        self._root = root
        self._mark = mark
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)

    @classmethod
    async def start(
        cls, command: AgentCommand, setup: AgentSetup, environment: Mapping[str, str]
    ) -> "AgentProcess":
        """Start the agent in its workspace.

        Raises:
            AgentUnavailableError: it cannot be started; the message says why.
        """
        mark = secrets.token_hex(8)
        try:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=setup.workspace,
                env={**environment, process_tree.MARK: mark},
                start_new_session=True,  # a Ctrl-C meant for us must not reach it
            )
        except OSError as error:
            reason = f"The agent ({command.argv[0]}) cannot be started: {error.strerror}."
            raise AgentUnavailableError(reason) from error
        root: psutil.Process | None = None
        with suppress(psutil.NoSuchProcess):  # it may have ended at once; ``ended`` tells why
            root = psutil.Process(process.pid)
        return cls(process, root, mark)

    @property
    def pid(self) -> int:
        """The agent's process id."""
        return self._process.pid

    @property
    def streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The agent's stdout and stdin."""
        reader, writer = self._process.stdout, self._process.stdin
        if reader is None or writer is None:
            raise AgentUnavailableError("The agent was started without pipes.")
        return reader, writer

    async def watch_stderr(self) -> None:
        """Read stderr to its end, so that the agent never blocks on it; the last lines are kept."""
        stream = self._process.stderr
        if stream is None:
            return
        rest = ""
        while chunk := await stream.read(_STDERR_READ):
            *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
            self._stderr.extend(line[:_STDERR_WIDTH] for line in lines if line.strip())
            rest = rest[:_STDERR_WIDTH]
        if rest.strip():
            self._stderr.append(rest)

    async def ended(self) -> str:
        """Wait until the process has ended and say how, in one plain sentence."""
        code = await self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        last = f" (it said: {self._stderr[-1]})" if self._stderr else ""
        return f"The agent process {how}{last}."

    def request_kill(self) -> None:
        """Kill the agent itself at once; what it started is killed by ``kill``."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def kill(self) -> None:
        """Kill the agent and everything it started, and wait until they are gone."""
        await _in_thread(process_tree.kill_tree, self._root, self._mark)
        await self._process.wait()
        self.reap_adopted()

    async def kill_tools(self, session: str, since: float) -> None:
        """Kill what the session's tools have started since then (``process_clock``)."""
        await _in_thread(process_tree.kill_session, self._mark, session, since)

    def reap_adopted(self) -> None:
        """Take the exit status of processes that came to us when their parent had ended."""
        process_tree.reap_adopted(self.pid)


async def _in_thread(work: Callable[..., None], *args: object) -> None:
    """Run blocking work to its end, even when the caller is cancelled meanwhile."""
    task = asyncio.create_task(asyncio.to_thread(work, *args), name=work.__name__)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task  # whoever stops us must not leave anything alive
        raise
