"""One life of the agent process: from its start, through its readiness, to its end."""

import asyncio
from collections.abc import Callable

import structlog

from greylag.agentd.agent import start as agent_start
from greylag.agentd.agent.acp import AcpPeer, MessageHandler
from greylag.agentd.agent.errors import AgentError, AgentRefusedError
from greylag.agentd.agent.process import AgentProcess
from greylag.agentd.agent.types import AgentKind, AgentSetup

_START_SECONDS = 60.0
_LAST_WORDS_SECONDS = 1.0
_EXIT_SECONDS = 0.5
_REAP_SECONDS = 10.0

log = structlog.get_logger(__name__)


class AgentLife:
    """Watches one agent process and speaks with it.

    Args:
        process: the process, just started; `run` ends it.
        setup: what it was given.
        kind: which agent it is.
    """

    def __init__(self, process: AgentProcess, setup: AgentSetup, kind: AgentKind) -> None:
        self.peer = AcpPeer(*process.streams)
        self._process = process
        self._setup = setup
        self._kind = kind
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(
        self,
        handler: MessageHandler,
        on_ready: Callable[[str], None],
        on_end: Callable[[], None],
    ) -> str:
        """Live until the process ends; on return all that it started is dead.

        Args:
            handler: takes what the agent says.
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
                    tasks.create_task(self._process.watch_stderr(), name="agent-stderr"),
                    tasks.create_task(self._start(on_ready), name="agent-start"),
                    tasks.create_task(self._await_end(reading), name="agent-end"),
                    tasks.create_task(self._reap(), name="agent-reap"),
                ]
                reason = await self._over
                for task in watchers:
                    task.cancel()
            return reason
        finally:
            await self._process.kill()

    def give_up(self) -> None:
        """End the process at once; `run` then ends too."""
        self._process.request_kill()

    async def kill_tools(self, session: str, since: float) -> None:
        """Kill what the session's tools have started since then (`orphans.process_clock`)."""
        await self._process.kill_tools(session, since)

    async def _read(self, handler: MessageHandler, on_end: Callable[[], None]) -> None:
        try:
            await self.peer.run(handler, on_end)
        except AgentError as error:
            self._say(f"The agent was stopped: {error}.")
            return
        # Usually it is just ending by itself, and then its exit code is the better reason.
        await asyncio.sleep(_EXIT_SECONDS)
        self._process.request_kill()

    async def _start(self, on_ready: Callable[[str], None]) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                version = await agent_start.make_ready(self.peer, self._setup, self._kind)
        except AgentRefusedError as error:
            self._say(f"The agent could not start: {error.message} ({error.data}).")
        except TimeoutError:
            self._say(f"The agent did not start within {_START_SECONDS:g} seconds.")
        except AgentError as error:
            log.info("agent_start_interrupted", reason=str(error))  # `_await_end` knows more
        else:
            on_ready(version)

    async def _await_end(self, reading: "asyncio.Task[None]") -> None:
        reason = await self._process.ended()
        # What it started may hold its pipes open; once that is gone, its last words can be read.
        await self._process.kill()
        await asyncio.wait({reading}, timeout=_LAST_WORDS_SECONDS)
        self._say(reason)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(_REAP_SECONDS)
            self._process.reap_orphans()

    def _say(self, reason: str) -> None:
        if not self._over.done():
            self._over.set_result(reason)
