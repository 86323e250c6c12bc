"""The agent as agentd uses it: one process for all sessions, kept running.

``make_ready`` is what a fresh process is told before it is trusted with work, ``AgentLife`` one
process from its start to its end, and ``Agent`` what starts the next one and gives it the sessions'
prompts.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import structlog

from greylag.agentd.agent import history
from greylag.agentd.agent.acp import AcpPeer, MessageHandler
from greylag.agentd.agent.extensions import CONFIGURED, ExtensionStarter, new_session
from greylag.agentd.agent.process import AgentProcess, agent_environment, make_folders
from greylag.agentd.agent.prompt import CANCELLED, AgentTurn
from greylag.agentd.agent.types import (
    METHOD_NOT_FOUND,
    AgentCommand,
    AgentError,
    AgentKind,
    AgentReadiness,
    AgentRefusedError,
    AgentSetup,
    AgentState,
    AgentUnavailableError,
    ExtensionState,
    ModelFailure,
    PromptResult,
    TurnSink,
    understood,
)
from greylag.agentd.execution import Execution, ExecutionError
from greylag.agentd.model.relay import ModelRelay
from greylag.common.backoff import backoff
from greylag.common.process_start import process_clock

_PROTOCOL_VERSION = 1
_CONFIGURATION = "_goose/unstable/config/"
_PREPARED = "GREYLAG_PREPARED"
_TOOLS_ON = "developer"
_INVALID_PARAMS = -32602
_LOOPBACK = "127.0.0.1"
_UPDATES = frozenset({"session/update", "_goose/unstable/session/update"})
_INITIALIZE = {
    "protocolVersion": _PROTOCOL_VERSION,
    # Without customNotifications goose says nothing of compaction and of an overfull context.
    "clientCapabilities": {"_meta": {"goose": {"customNotifications": True}}},
    "clientInfo": {"name": "greylag", "version": "1"},
}

_SUBAGENT = re.compile(r"subagent:(\d{8}_\d{1,9})")
_MOST_SUBAGENTS = 1000
_START_SECONDS = 60.0
_CALL_SECONDS = 60.0
_LAST_WORDS_SECONDS = 1.0
_EXIT_SECONDS = 0.5
_FIRST_BACKOFF = 0.25
_LONGEST_BACKOFF = 30.0
_STABLE_SECONDS = 10.0

_log = structlog.get_logger(__name__)


async def make_ready(peer: AcpPeer, setup: AgentSetup, kind: AgentKind) -> str:
    """Bring a fresh agent to where it can take sessions, and prove that it can.

    Returns:
        The agent's version.

    Raises:
        AgentRefusedError: it answered one of the steps with an error.
        Exception: it answered otherwise than it must (see ``understood``).
        AgentDiedError: it ended meanwhile.
    """
    answer = await peer.request("initialize", dict(_INITIALIZE))
    if kind == "goose":
        await _store_defaults(peer, setup.defaults)
        await _limit_extensions(peer)
    # goose's own health check says yes when nothing works; only a session that was made is proof.
    # It has no extensions: what is the matter with one must hold back nobody.
    session, _ = await new_session(peer, setup, "Readiness")
    await peer.request("session/delete", {"sessionId": session})
    info = answer.get("agentInfo") or {}
    return str(info.get("version", "unknown"))


async def _store_defaults(peer: AcpPeer, defaults: Mapping[str, str]) -> None:
    for key, value in defaults.items():
        if await _read(peer, key) is None:
            params = {"key": key, "value": value}
            await peer.request("_goose/unstable/config/upsert", params)


async def _limit_extensions(peer: AcpPeer) -> None:
    """Turn off, once for each HOME, the many extensions that goose has on by default.

    Once only: what the user turns on later stays on.
    """
    if await _read(peer, _PREPARED) is not None:
        return
    listed = await peer.request(f"{CONFIGURED}/list", {})
    for entry in listed["extensions"]:
        if entry["enabled"] and entry["configKey"] != _TOOLS_ON:
            # Added, not set: in a fresh HOME goose lists what its configuration does not hold.
            params = {"extension": entry["extension"], "enabled": False}
            await peer.request(f"{CONFIGURED}/add", params)
    params = {"key": _PREPARED, "value": "1"}
    await peer.request("_goose/unstable/config/upsert", params)


async def _read(peer: AcpPeer, key: str) -> Any:
    answer = await peer.request("_goose/unstable/config/read", {"key": key})
    return answer.get("value")


class AgentLife:
    """Watches one agent process and speaks with it.

    Args:
        process: the process, just started; ``run`` ends it.
        setup: what it was given.
        kind: which agent it is.
    """

    def __init__(self, process: AgentProcess, setup: AgentSetup, kind: AgentKind) -> None:
        self.peer = AcpPeer(*process.streams)
        self.process = process
        self._setup = setup
        self._kind = kind
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(
        self, handler: MessageHandler, on_ready: Callable[[str], None], on_end: Callable[[], None]
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
                    tasks.create_task(self.process.watch_stderr(), name="agent-stderr"),
                    tasks.create_task(self._start(on_ready), name="agent-start"),
                    tasks.create_task(self._await_end(reading), name="agent-end"),
                ]
                reason = await self._over
                for task in watchers:
                    task.cancel()
            return reason
        finally:
            await self.process.kill()

    async def _read(self, handler: MessageHandler, on_end: Callable[[], None]) -> None:
        try:
            await self.peer.run(handler, on_end)
        except AgentError as error:
            self._say(f"The agent was stopped: {error}.")
            return
        # Usually it is just ending by itself, and then its exit code is the better reason.
        await asyncio.sleep(_EXIT_SECONDS)
        self.process.request_kill()

    async def _start(self, on_ready: Callable[[str], None]) -> None:
        try:
            with understood():
                async with asyncio.timeout(_START_SECONDS):
                    version = await make_ready(self.peer, self._setup, self._kind)
        except AgentRefusedError as error:
            self._say(f"The agent could not start: {error.words}.")
        except TimeoutError:
            self._say(f"The agent did not start within {_START_SECONDS:g} seconds.")
        except AgentError as error:
            _log.info("agent_start_interrupted", error=str(error))  # ``_await_end`` knows more
        else:
            on_ready(version)

    async def _await_end(self, reading: "asyncio.Task[None]") -> None:
        reason = await self.process.ended()
        # What it started may hold its pipes open; once that is gone, its last words can be read.
        await self.process.kill()
        await asyncio.wait({reading}, timeout=_LAST_WORDS_SECONDS)
        self._say(reason)

    def _say(self, reason: str) -> None:
        if not self._over.done():
            self._over.set_result(reason)


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
        self._life: AgentLife | None = None
        self._turns: dict[str, AgentTurn] = {}
        self._extensions = ExtensionStarter()
        self._subagents: dict[str, set[str]] = {}
        self._options: dict[str, dict[str, str]] = {}

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
                make = partial(new_session, peer, self._setup, title)
                return await self._extensions.open(peer, make)
            session, _ = await new_session(peer, self._setup, title)
            return session

    async def configure(self, agent_session_id: str, options: Mapping[str, str]) -> None:
        """Have a session work with these options from now on."""
        if self._command.kind != "goose":
            return  # the scripted agent has none
        given = self._options.setdefault(agent_session_id, {})
        for option, value in options.items():
            if given.get(option) != value:
                params = {"sessionId": agent_session_id, "configId": option, "value": value}
                await self.call("session/set_config_option", params)
                given[option] = value

    async def prompt(self, agent_session_id: str, text: str, sink: TurnSink) -> PromptResult:
        """Give the agent a message, and the sink all that answers it."""
        life = self._living()
        if agent_session_id in self._turns:
            raise AgentRefusedError(_INVALID_PARAMS, "the session has a running turn")
        turn = AgentTurn(
            life.peer,
            agent_session_id,
            sink,
            stop_model=lambda: self._stop_model(agent_session_id),
            give_up=life.process.request_kill,
        )
        self._turns[agent_session_id] = turn
        self._subagents.setdefault(agent_session_id, set())
        try:
            await make_folders(self._execution, self._setup)
            for words in await self._extensions.settled(agent_session_id):
                await self._tell(agent_session_id, words)
        except BaseException:
            del self._turns[agent_session_id]
            raise
        self._relay.begin_turn(agent_session_id)
        began = process_clock()
        try:
            return await turn.run(text)
        finally:
            del self._turns[agent_session_id]
            if turn.cancelled:
                self._stop_model(agent_session_id)  # of a subagent that was told of since
                for one in self._family(agent_session_id):
                    await life.process.kill_tools(one, began)

    async def cancel(self, agent_session_id: str) -> None:
        """Ask the session's prompt to end, and return at once; without a prompt, do nothing."""
        turn = self._turns.get(agent_session_id)
        if turn is not None:
            turn.cancel()

    def give_up(self) -> None:
        """End the process, which does not answer; another takes its place."""
        if self._life is not None:
            self._life.process.request_kill()

    async def forget_session(self, agent_session_id: str) -> None:
        """Put a session away in the agent (its id is never used again)."""
        self._extensions.close(agent_session_id)
        self._options.pop(agent_session_id, None)
        for one in self._family(agent_session_id):
            self._relay.forget(one)
            if self._life is not None:
                await self._life.process.kill_tools(one, 0.0)
        self._subagents.pop(agent_session_id, None)
        await self._put_away(agent_session_id)

    async def message_count(self, agent_session_id: str) -> int:
        """Return how many messages a session has."""
        async with _patience():
            return await history.message_count(self._living().peer, agent_session_id)

    async def cut_session(self, agent_session_id: str, kept: int) -> str:
        """Make a session that knows only another's first ``kept`` messages."""
        async with _patience():
            peer = self._living().peer
            exported = await history.beginning(peer, agent_session_id, kept)
            if exported is None:
                return agent_session_id
            await make_folders(self._execution, self._setup)
            make = partial(history.restore, peer, self._setup, exported)
            return await self._extensions.open(peer, make)

    async def replace_session(self, old: str, new: str) -> None:
        """Put a session away whose place another has taken; what its tools started goes on."""
        self._subagents[new] = {old, *self._subagents.pop(old, ())}  # ends with the new one
        self._extensions.close(old)
        self._options.pop(old, None)
        self._relay.forget(old)
        await self.call("session/close", {"sessionId": old})
        await self._put_away(old)

    async def _put_away(self, agent_session_id: str) -> None:
        # Not deleted: goose gives the id of a deleted session to the next one.
        await self.call("_goose/unstable/session/archive", {"sessionId": agent_session_id})

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """Call any method of the agent (as ``_goose/unstable/config/read``)."""
        async with _patience():
            if self._ready.is_set() or not method.startswith(_CONFIGURATION):
                return await self._living().peer.request(method, params)
            async with self._another() as peer:
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
            await turn.deliver(update)

    async def request(self, request_id: str | int, method: str, params: dict[str, Any]) -> None:
        """Take what the agent asks (see ``acp.MessageHandler``)."""
        if self._life is None:
            return
        peer = self._life.peer
        if method != "session/request_permission":
            await peer.refuse(request_id, METHOD_NOT_FOUND, f"no method {method}")
            return
        turn = self._turns.get(str(params.get("sessionId")))
        if turn is None:
            await peer.respond(request_id, CANCELLED)
        else:
            turn.ask(request_id, params)

    def _note_subagent(self, session: str, update: dict[str, Any]) -> None:
        """Keep which subagent works for a session; it has a session of its own in goose."""
        meta = update.get("_meta")
        told = meta.get("toolNotification") if isinstance(meta, dict) else None
        about = told.get("params") if isinstance(told, dict) else None
        logger = about.get("logger") if isinstance(about, dict) else None
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
        peer = AcpPeer(*process.streams)
        async with AsyncExitStack() as ending:
            ending.push_async_callback(process.kill)
            for name, work in (("read", peer.run(self)), ("stderr", process.watch_stderr())):
                task = asyncio.create_task(work, name=f"agent-configuration-{name}")
                ending.push_async_callback(asyncio.wait, {task})
                ending.callback(task.cancel)
            await peer.request("initialize", dict(_INITIALIZE))
            yield peer

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
        process = await AgentProcess.start(self._execution, self._command, self._setup, environment)
        life = self._life = AgentLife(process, self._setup, self._command.kind)
        try:
            return await life.run(self, self._on_ready, self._on_end)
        finally:
            self._life = None
            self._options.clear()
            await self._extensions.end()

    def _on_end(self) -> None:
        self._ready.clear()
        if self._state.status == "ready":  # else it tells already what is wrong
            self._show("failed", "The agent has ended.")

    def _on_ready(self, version: str) -> None:
        self._state = AgentState(self._command.kind, "ready", version, "The agent is ready.")
        self._ready.set()
        _log.info("agent_ready", kind=self._command.kind, version=version)

    def _living(self) -> AgentLife:
        if self._life is None or not self._ready.is_set():
            raise AgentUnavailableError(self._state.detail)
        return self._life

    def _show(self, status: AgentReadiness, detail: str) -> None:
        self._state = AgentState(self._command.kind, status, self._state.version, detail)


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    """Bound a call to the agent: ``AgentUnavailableError`` when it takes too long."""
    try:
        with understood():
            async with asyncio.timeout(_CALL_SECONDS):
                yield
    except TimeoutError as error:
        reason = f"The agent did not answer within {_CALL_SECONDS:g} seconds."
        raise AgentUnavailableError(reason) from error
