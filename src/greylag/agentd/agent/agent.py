"""The agent as agentd uses it: one process for all sessions, kept running.

``AgentProcess`` is one process from its start to its end, and ``Agent`` what starts the next one
and gives it the sessions' prompts.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from greylag.agentd.agent import history
from greylag.agentd.agent.acp import AcpPeer
from greylag.agentd.agent.extensions import ExtensionStarter, Make, new_session
from greylag.agentd.agent.open_sessions import ARCHIVE, OpenSessions
from greylag.agentd.agent.process import (
    INITIALIZE,
    AgentProcess,
    agent_environment,
    forget_allowed,
    make_folders,
    remove_left,
)
from greylag.agentd.agent.prompt import CANCELLED, AgentTurn
from greylag.agentd.agent.types import (
    METHOD_NOT_FOUND,
    AgentCommand,
    AgentDiedError,
    AgentReadiness,
    AgentRefusedError,
    AgentSetup,
    AgentState,
    AgentUnavailableError,
    ExtensionState,
    ModelFailure,
    PromptResult,
    SessionStuckError,
    TurnSink,
    understood,
)
from greylag.agentd.execution import Execution, ExecutionError
from greylag.agentd.model.relay import ModelRelay
from greylag.common.backoff import backoff
from greylag.common.concurrent import beside
from greylag.common.typed import dig
from greylag.execd.processes import process_clock

_CONFIGURATION = "_goose/unstable/config/"
_INVALID_PARAMS = -32602
_LOOPBACK = "127.0.0.1"
_UPDATES = frozenset({"session/update", "_goose/unstable/session/update"})

_SUBAGENT = re.compile(r"subagent:(\d{8}_\d{1,9})")
_MOST_SUBAGENTS = 1000
_CALL_SECONDS = 60.0
_OPEN_SECONDS = 20.0
"""How long goose may take to open a session with servers, for which it waits without an end."""
_PUT_AWAY_SECONDS = 15.0  # nobody needs it: who deletes a session waits for no more
_FIRST_BACKOFF = 0.25
_LONGEST_BACKOFF = 30.0
_STABLE_SECONDS = 10.0

_log = structlog.get_logger(__name__)


class Agent:
    """One agent process, shared by all sessions, started again whenever it ends.

    ``run`` must be running for anything else to work. What its calls do and raise, ``AgentPort``
    says.

    Args:
        command: the program.
        setup: its folders, model and settings.
        execution: what runs it.
    """

    def __init__(self, command: AgentCommand, setup: AgentSetup, execution: Execution) -> None:
        self._command = command
        self._setup = setup
        self._execution = execution
        self._relay = ModelRelay(
            setup.provider,
            idle_seconds=setup.model_timeout,
            retry_seconds=setup.model_retries,
            tell=self._tell,
        )
        self._state = AgentState(command.kind, "starting", None, "The agent is starting.")
        self._ready = asyncio.Event()
        self._process: AgentProcess | None = None
        self._turns: dict[str, AgentTurn] = {}
        self._open = OpenSessions()
        self._extensions = ExtensionStarter(self._open.held)
        self._subagents: dict[str, set[str]] = {}
        # Each process of goose's writes its configuration whole: of two at once one is lost.
        self._configuring = asyncio.Lock()

    @property
    def state(self) -> AgentState:
        """How the agent is doing now."""
        return self._state

    async def run(self) -> None:
        """Keep the agent running until cancelled; on return all that it started is dead."""
        failed = 0
        async with self._relay.serving():
            while True:
                began = asyncio.get_running_loop().time()
                reason = await self._live_once()
                self._show("failed", f"{reason} It will be started again.")
                _log.error("agent_ended", reason=reason)
                if asyncio.get_running_loop().time() - began > _STABLE_SECONDS:
                    failed = 0
                await asyncio.sleep(backoff(failed, _FIRST_BACKOFF, _LONGEST_BACKOFF))
                failed += 1

    async def wait_ready(self, timeout: float) -> None:  # noqa: ASYNC109 - how long a caller will wait is part of the call
        """Return when the agent is ready, at once if it is, within ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        except TimeoutError as error:
            raise AgentUnavailableError(self._state.detail) from error

    async def new_session(self, title: str) -> str:
        """Make a session and return the agent's id for it."""
        async with _patience():
            peer = self._living().peer
            await make_folders(self._execution, self._setup)
            if self._command.kind == "goose":
                return await self._opened(peer, partial(new_session, peer, self._setup, title))
            session, _ = await new_session(peer, self._setup, title)
            return session

    async def _opened(self, peer: AcpPeer, make: Make) -> str:
        session = await self._extensions.open(peer, make)
        self._open.opened(session)
        return session

    async def configure(self, agent_session_id: str, options: Mapping[str, str]) -> None:
        """Have a session work with these options from now on."""
        if self._command.kind != "goose":
            return  # the scripted agent has none
        work = self._configured(agent_session_id, options)
        async with beside(work, f"configure {agent_session_id}") as configuring:
            await asyncio.wait({configuring}, timeout=_OPEN_SECONDS)
            if not configuring.done():
                await self._see_whether_stuck(agent_session_id)
            await configuring

    async def _configured(self, agent_session_id: str, options: Mapping[str, str]) -> None:
        async with self._held(agent_session_id, _CALL_SECONDS):
            for option, value in options.items():
                # Also what it was told before: tools can change what goose keeps.
                params = {"sessionId": agent_session_id, "configId": option, "value": value}
                await self.call("session/set_config_option", params)
            await self._extensions.complete(self._living().peer, agent_session_id)

    async def _see_whether_stuck(self, agent_session_id: str) -> None:
        try:
            async with _patience():
                servers = await self._extensions.servers(self._living().peer, agent_session_id)
        except AgentRefusedError:
            return  # it cannot be told
        if servers:
            named = ", ".join(servers)
            raise SessionStuckError(
                f"Extensions of this session ({named}) have not all started within "
                f"{_OPEN_SECONDS:g} seconds."
            )

    async def reopen_session(self, agent_session_id: str) -> str:
        """Make a session that knows what a stuck one does, and return its id."""
        async with _patience():
            peer = self._living().peer
            for key in await self._extensions.servers(peer, agent_session_id):
                self._extensions.doubt(key)
            exported = await history.whole(peer, agent_session_id)
            await make_folders(self._execution, self._setup)
            return await self._opened(peer, partial(history.restore, peer, self._setup, exported))

    async def prompt(self, agent_session_id: str, text: str, sink: TurnSink) -> PromptResult:
        """Give the agent a message, and the sink all that answers it."""
        process = self._living()
        if agent_session_id in self._turns:
            raise AgentRefusedError(_INVALID_PARAMS, "the session has a running turn")
        turn = AgentTurn(
            process.peer,
            agent_session_id,
            sink,
            stop_model=lambda: self._stop_model(agent_session_id),
            give_up=process.request_kill,
        )
        self._turns[agent_session_id] = turn
        self._subagents.setdefault(agent_session_id, set())
        began: float | None = None
        try:
            with self._open.held(agent_session_id):
                await turn.until_cancelled(self._prepare(agent_session_id), "before a prompt")
                if turn.cancelled:
                    return turn.unsent()
                self._relay.begin_turn(agent_session_id)
                began = process_clock()
                return await turn.run(text)
        except AgentDiedError as error:
            raise await process.death(error) from error
        finally:
            del self._turns[agent_session_id]
            if began is not None and turn.cancelled:
                self._stop_model(agent_session_id)  # of a subagent that was told of since
                await process.kill_tools(self._family(agent_session_id), began)

    async def _prepare(self, agent_session_id: str) -> None:
        await self._open.settled(agent_session_id)
        await make_folders(self._execution, self._setup)
        for words in await self._extensions.settled(agent_session_id):
            await self._tell(agent_session_id, words)

    async def cancel(self, agent_session_id: str) -> None:
        """Ask the session's prompt to end, and return at once; without a prompt, do nothing."""
        turn = self._turns.get(agent_session_id)
        if turn is not None:
            turn.cancel()

    def give_up(self, why: str = "did not answer") -> None:
        """End the process; another takes its place."""
        if self._process is not None:
            self._process.request_kill(why)
            self._on_end()  # at once: nothing more is to be given to it

    async def forget_session(self, agent_session_id: str) -> None:
        """Put a session away in the agent (its id is never used again)."""
        self._extensions.close(agent_session_id)
        family = self._family(agent_session_id)
        for one in family:
            self._relay.forget(one)
        if self._process is not None:
            await self._process.kill_tools(family, 0.0)
        self._subagents.pop(agent_session_id, None)
        await self._put_away(agent_session_id)

    async def message_count(self, agent_session_id: str) -> int:
        """Return how many messages a session has."""
        async with _patience():
            return await history.message_count(self._living().peer, agent_session_id)

    async def cut_session(self, agent_session_id: str, kept: int) -> str:
        """Make a session that knows only another's first ``kept`` messages."""
        async with self._held(agent_session_id, _CALL_SECONDS):
            peer = self._living().peer
            exported = await history.beginning(peer, agent_session_id, kept)
            if exported is None:
                return agent_session_id
            await make_folders(self._execution, self._setup)
            return await self._opened(peer, partial(history.restore, peer, self._setup, exported))

    async def replace_session(self, old: str, new: str) -> None:
        """Put a session away whose place another has taken; what its tools started goes on."""
        self._subagents[new] = {old, *self._subagents.pop(old, ())}  # ends with the new one
        self._extensions.close(old)
        self._relay.forget(old)
        await self.call("session/close", {"sessionId": old})
        await self._put_away(old)

    async def _put_away(self, agent_session_id: str) -> None:
        # Not deleted: goose gives the id of a deleted session to the next one.
        try:
            async with self._held(agent_session_id, _PUT_AWAY_SECONDS):
                await self.call(ARCHIVE, {"sessionId": agent_session_id})
        finally:
            self._open.forget(agent_session_id)

    @asynccontextmanager
    async def _held(self, agent_session_id: str, seconds: float) -> AsyncIterator[None]:
        async with _patience(seconds):
            with self._open.held(agent_session_id):
                await self._open.settled(agent_session_id)
                yield

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """Call any method of the agent (as ``_goose/unstable/config/read``)."""
        async with _patience() as waiting:
            if not method.startswith(_CONFIGURATION):
                return await self._living().peer.request(method, params)
            answering = waiting.words
            waiting.words = "Others did not leave the agent's configuration"
            async with self._configuring:
                waiting.words = answering
                if self._ready.is_set():
                    return await self._living().peer.request(method, params)
                waiting.words = "The agent is not ready, and one for this alone did not start"
                async with self._another() as peer:
                    waiting.words = answering
                    return await peer.request(method, params)

    async def try_extension(self, entry: dict[str, Any]) -> ExtensionState:
        """Start an extension of goose's list once; return how that went after some seconds."""
        return await self._extensions.attempt(self._living().peer, self._setup, entry)

    def extension_state(self, key: str) -> ExtensionState | None:
        """Return how an extension has fared, None when it was not started yet."""
        return self._extensions.state(key)

    def forget_extension(self, key: str) -> None:
        """Forget how an extension has fared."""
        self._extensions.forget(key)

    def model_failure(self, agent_session_id: str) -> ModelFailure | None:
        """Return why the session's last model call failed, None when it did not."""
        return self._relay.failure(agent_session_id)

    async def notification(self, method: str, params: dict[str, Any]) -> None:
        """Take what the agent tells (see ``acp.MessageHandler``)."""
        turn = self._turns.get(str(params.get("sessionId")))
        update = params.get("update")
        if method in _UPDATES and turn is not None and isinstance(update, dict):
            self._note_subagent(str(params["sessionId"]), update)
            self._extensions.note(str(params["sessionId"]), update)
            await turn.deliver(update)

    async def request(self, request_id: str | int, method: str, params: dict[str, Any]) -> None:
        """Take what the agent asks (see ``acp.MessageHandler``)."""
        if self._process is None:
            return
        peer = self._process.peer
        if method != "session/request_permission":
            await peer.refuse(request_id, METHOD_NOT_FOUND, f"no method {method}")
            return
        turn = self._turns.get(str(params.get("sessionId")))
        if turn is None:
            await peer.respond(request_id, CANCELLED)
        else:
            await turn.ask(request_id, params)

    def _note_subagent(self, session: str, update: dict[str, Any]) -> None:
        """Keep which subagent works for a session; it has a session of its own in goose."""
        logger = dig(update, "_meta", "toolNotification", "params").get("logger")
        found = _SUBAGENT.fullmatch(logger) if isinstance(logger, str) else None
        known = self._subagents.get(session)
        if found is None or known is None or len(known) >= _MOST_SUBAGENTS:
            return
        # Any extension can say such a thing: a session of our own is nobody's subagent.
        if found[1] not in self._subagents:
            known.add(found[1])

    def _family(self, session: str) -> list[str]:
        return [session, *self._subagents.get(session, ())]

    def _stop_model(self, session: str) -> None:
        for one in self._family(session):
            self._relay.stop_turn(one)

    async def _tell(self, agent_session_id: str, words: str) -> None:
        """Tell a session's turn what is waited for, as the agent itself would."""
        turn = self._turns.get(agent_session_id)
        if turn is not None:
            status = {"type": "notice", "message": words}
            await turn.deliver({"sessionUpdate": "status_message", "status": status})

    @asynccontextmanager
    async def _another(self) -> AsyncIterator[AcpPeer]:
        """Run a process of the agent's for its configuration alone, while none is ready."""
        environment = agent_environment(self._setup, os.environ, "http://127.0.0.1:9", "none")
        process = await AgentProcess.start(self._execution, self._command, self._setup, environment)
        async with AsyncExitStack() as ending:
            ending.push_async_callback(process.kill)
            for work in (process.peer.run(self), process.watch_stderr()):
                await ending.enter_async_context(beside(work, "agent-configuration"))
            await process.peer.request("initialize", INITIALIZE)
            yield process.peer

    async def _live_once(self) -> str:
        """Run one agent process from start to end, and say in a sentence why it ended."""
        try:
            async with self._execution.listening(_LOOPBACK, self._relay.port) as port:
                return await self._live(f"http://{_LOOPBACK}:{port}")
        except ExecutionError as error:
            return f"The agent cannot be started: {error}"
        except AgentUnavailableError as error:
            return str(error)

    async def _live(self, relay_url: str) -> str:
        environment = agent_environment(self._setup, os.environ, relay_url, self._relay.token)
        await make_folders(self._execution, self._setup)
        if self._command.kind == "goose":
            await forget_allowed(self._execution, self._setup)
            await remove_left(self._execution, self._setup)
        process = await AgentProcess.start(self._execution, self._command, self._setup, environment)
        self._process = process
        try:
            async with beside(self._close_unused(process.peer), "agent-closes"):
                return await process.run(self, self._configuring, self._on_ready, self._on_end)
        finally:
            self._process = None
            await self._extensions.end()

    async def _close_unused(self, peer: AcpPeer) -> None:
        await self._ready.wait()
        if self._command.kind == "goose":
            await self._open.run(peer, self._extensions.closed)

    def _on_end(self) -> None:
        self._ready.clear()
        if self._state.status == "ready":  # else it tells already what is wrong
            self._show("failed", "The agent has ended.")

    def _on_ready(self, version: str) -> None:
        self._state = AgentState(self._command.kind, "ready", version, "The agent is ready.")
        self._ready.set()
        _log.info("agent_ready", kind=self._command.kind, version=version)

    def _living(self) -> AgentProcess:
        if self._process is None or not self._ready.is_set():
            raise AgentUnavailableError(self._state.detail)
        return self._process

    def _show(self, status: AgentReadiness, detail: str) -> None:
        self._state = AgentState(self._command.kind, status, self._state.version, detail)


@dataclass(slots=True)
class _Waiting:
    """What a call waits for, as it is told if that does not come."""

    words: str = "The agent did not answer"


@asynccontextmanager
async def _patience(seconds: float | None = None) -> AsyncIterator[_Waiting]:
    """Bound a call to the agent: ``AgentUnavailableError`` when it takes too long."""
    waiting, seconds = _Waiting(), _CALL_SECONDS if seconds is None else seconds
    try:
        with understood():
            async with asyncio.timeout(seconds):
                yield waiting
    except TimeoutError as error:
        reason = f"{waiting.words} within {seconds:g} seconds."
        raise AgentUnavailableError(reason) from error
