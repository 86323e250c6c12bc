"""Find and kill every process that an agent started, also those that left its tree.

A tool may detach what it starts (`nohup x &`, setsid, a double fork). Three things find it again:
the process tree, a mark in the environment that every descendant inherits, and, on Linux, that
agentd is a child subreaper, so that what loses its parent becomes a child of agentd itself.
"""

import asyncio
import ctypes
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress

import psutil
import structlog

from greylag.agentd.agent.acp import AgentUnavailableError
from greylag.agentd.agent.types import AgentCommand, AgentSetup
from greylag.common.process_start import started_at

MARK = "GREYLAG_AGENT_RUN"

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_KILL_SECONDS = 3.0
_PAUSE_SECONDS = 0.02
_SESSION = "AGENT_SESSION_ID"
_TICK = 0.02  # seconds; start times are counted in ticks of 10 ms

log = structlog.get_logger(__name__)


def harden_this_process() -> None:
    """Guard agentd's own memory from its tools, and adopt what loses its parent.

    Linux only; elsewhere it does nothing. To be called once, first thing in agentd's process,
    and never in a process that starts children other than the agent.
    """
    if sys.platform != "linux":
        return
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def adopts_orphans() -> bool:
    """Whether this process is a child subreaper, as `harden_this_process` makes it."""
    if sys.platform != "linux":
        return False
    answer = ctypes.c_int(0)
    _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.addressof(answer))
    return bool(answer.value)


def kill_all(root: psutil.Process, mark: str) -> None:
    """Kill the agent and all that it started; blocks, for at most a few seconds.

    Args:
        root: the agent, looked up while it ran (so that a reused process id is noticed); it may
            be dead already.
        mark: the value of MARK in the agent's environment.
    """
    tree = _tree(root)
    # Looked up again each time: a process may fork between being seen and being killed.
    _kill_until_none(lambda: [*tree, *_marked(mark), *_adopted()])


def kill_session(mark: str, session: str, since: float) -> None:
    """Kill what one session's tools have started since then; blocks, like `kill_all`.

    goose ends only the shell itself when a turn is cancelled, not what the shell had started.

    Args:
        mark: the value of MARK in the agent's environment.
        session: the agent's session id, which goose gives to its tools.
        since: a value of `process_clock`.
    """
    wanted = {MARK: mark, _SESSION: session}
    _kill_until_none(lambda: _begun_since(_with_environ(wanted), since - _TICK))


def reap(agent_pid: int | None) -> None:
    """Take the exit status of adopted processes that have ended, so that no zombie stays.

    The agent itself is left to whoever started it.
    """
    if not adopts_orphans():
        return
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid == agent_pid:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)
        except ChildProcessError:
            return


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}) failed: {os.strerror(number)}")


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _adopted() -> list[psutil.Process]:
    """Return what has lost its parent: agentd starts no child but the agent."""
    return psutil.Process().children(recursive=True) if adopts_orphans() else []


def _marked(mark: str) -> list[psutil.Process]:
    return _with_environ({MARK: mark})


def _with_environ(wanted: Mapping[str, str]) -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if wanted.items() <= _environ(p).items()]


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):  # gone meanwhile, or another user's
        return {}


def _begun_since(processes: Collection[psutil.Process], since: float) -> list[psutil.Process]:
    """Return those that began since then, without what older ones among them have started.

    A loop in the background of an earlier turn may start a process every moment.
    """
    began = {process.pid: started_at(process.pid) for process in processes}
    older = {pid for pid, start in began.items() if start < since}
    return [
        process
        for process in processes
        if process.pid not in older and older.isdisjoint(_parents(process))
    ]


def _parents(process: psutil.Process) -> set[int]:
    try:
        return {parent.pid for parent in process.parents()}
    except psutil.Error:
        return set()


def _kill_until_none(find: Callable[[], Iterable[psutil.Process]]) -> None:
    deadline = time.monotonic() + _KILL_SECONDS
    while alive := {process for process in find() if _is_running(process)}:
        if time.monotonic() > deadline:
            log.error("agent_processes_left", pids=sorted(p.pid for p in alive))
            return
        for process in alive:
            _kill(process)
        time.sleep(_PAUSE_SECONDS)


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
    except psutil.Error as error:
        log.warning("agent_process_not_killed", pid=process.pid, reason=str(error))


# The agent as an operating-system process: started clean, watched, and killed with all it made.

__all__ = ["AgentProcess", "agent_environment", "harden_this_process"]

_INHERITED = frozenset({"PATH", "LANG", "TERM", "TZ"})
_MODEL_TIMEOUT = "240"  # seconds; longer than the relay's own, whose error says more
_STDERR_LINES = 20
_STDERR_WIDTH = 300
_STDERR_READ = 4096
_LAST_WORDS_SECONDS = 1.0


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
    """One running agent process; `start` makes it, `kill` ends it and all that it started."""

    def __init__(
        self, process: asyncio.subprocess.Process, root: psutil.Process, mark: str
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
                env={**environment, MARK: mark},
                start_new_session=True,  # a Ctrl-C meant for us must not reach it
            )
        except OSError as error:
            reason = f"The agent ({command.argv[0]}) cannot be started: {error.strerror}."
            raise AgentUnavailableError(reason) from error
        try:
            return cls(process, psutil.Process(process.pid), mark)
        except psutil.NoSuchProcess as error:
            raise AgentUnavailableError(await _ended_at_once(process)) from error

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
        return _ending(await self._process.wait(), self._stderr)

    def request_kill(self) -> None:
        """Kill the agent itself at once; what it started is killed by `kill`."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def kill(self) -> None:
        """Kill the agent and everything it started, and wait until they are gone."""
        await _in_thread(kill_all, self._root, self._mark)
        await self._process.wait()
        self.reap_orphans()

    async def kill_tools(self, session: str, since: float) -> None:
        """Kill what the session's tools have started since then (`process_clock`)."""
        await _in_thread(kill_session, self._mark, session, since)

    def reap_orphans(self) -> None:
        """Take the exit status of processes that came to us when their parent had ended."""
        reap(self.pid)


def _ending(code: int, said: Sequence[str]) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
    last = f" (it said: {said[-1]})" if said else ""
    return f"The agent process {how}{last}."


async def _ended_at_once(process: asyncio.subprocess.Process) -> str:
    """Say how a process ended that was gone before we could look at it."""
    said = b""
    with suppress(TimeoutError):  # what it started may hold its stderr open
        async with asyncio.timeout(_LAST_WORDS_SECONDS):
            _, said = await process.communicate()
    lines = [line[:_STDERR_WIDTH] for line in said.decode("utf-8", "replace").splitlines()]
    return _ending(await process.wait(), [line for line in lines if line.strip()])


async def _in_thread(work: Callable[..., None], *args: object) -> None:
    """Run blocking work to its end, even when the caller is cancelled meanwhile."""
    task = asyncio.create_task(asyncio.to_thread(work, *args), name=work.__name__)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task  # whoever stops us must not leave anything alive
        raise
