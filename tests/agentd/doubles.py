"""A scripted `AgentPort`, and the real server around it, for tests of agentd's own part."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from tests.agentd.client import Client

from greylag.agentd.agent.types import (
    AgentError,
    AgentState,
    AgentUnavailableError,
    ExtensionState,
    ModelFailure,
    PromptResult,
    TurnSink,
)
from greylag.agentd.api.app import Services, create_app
from greylag.agentd.changes.store import SnapshotStore
from greylag.agentd.config import AgentdSettings
from greylag.agentd.execution import Execution
from greylag.agentd.journal.folder import Journals
from greylag.agentd.main import build_services, http_server
from greylag.agentd.model import scripted as scripted_model
from greylag.agentd.records import Records
from greylag.agentd.volume import Volume
from greylag.common.server import listen

Script = Callable[["AgentDouble", str, TurnSink], Awaitable[PromptResult]]
READY = AgentState("goose", "ready", "1.52.0", "The agent is ready.")


def chunk(text: str, message_id: str = "chatcmpl-1") -> dict[str, Any]:
    """Return one piece of an answer, as goose sends it."""
    return {
        "sessionUpdate": "agent_message_chunk",
        "content": {"type": "text", "text": text},
        "messageId": message_id,
        "_meta": {"goose": {"created": 1795415304}},
    }


async def echo(_agent: "AgentDouble", text: str, sink: TurnSink) -> PromptResult:
    """Answer with the message itself."""
    await sink.update(chunk(text))
    return PromptResult("end_turn", {"totalTokens": 3})


def recording_model(requests: list[str]) -> web.Application:
    """Return the scripted model, which keeps the bodies of what it is asked."""

    @web.middleware
    async def keep(request: web.Request, handler: Any) -> Any:
        requests.append(await request.text())
        return await handler(request)

    model = scripted_model.app()
    model.middlewares.append(keep)
    return model


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return when the condition holds; a TimeoutError when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event, a file say
            await asyncio.sleep(0.01)


@dataclass
class AgentDouble:
    """An agent whose answers are a script."""

    script: Script = echo
    state: AgentState = READY
    prompts: list[tuple[str, str]] = field(default_factory=list)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, ModelFailure] = field(default_factory=dict)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    titles: list[str] = field(default_factory=list)
    cuts: list[tuple[str, int]] = field(default_factory=list)
    uncut: Exception | None = None
    replaced: list[tuple[str, str]] = field(default_factory=list)
    extensions: dict[str, ExtensionState] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    options: dict[str, dict[str, str]] = field(default_factory=dict)
    refuses: AgentError | None = None
    given_up: int = 0

    async def wait_ready(self, timeout: float) -> None:  # noqa: ASYNC109 - as the port has it
        self.waits.append(timeout)
        if self.state.status != "ready":
            raise AgentUnavailableError(self.state.detail)

    async def new_session(self, title: str) -> str:
        self.titles.append(title)
        return f"20261123_{len(self.titles)}"

    async def configure(self, agent_session_id: str, options: Mapping[str, str]) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.options[agent_session_id] = dict(options)

    async def reopen_session(self, agent_session_id: str) -> str:
        self.refuses = None
        if self.uncut is not None:
            raise self.uncut
        return f"{agent_session_id}.again"

    async def prompt(self, agent_session_id: str, text: str, sink: TurnSink) -> PromptResult:
        self.prompts.append((agent_session_id, text))
        return await self.script(self, text, sink)

    async def cancel(self, agent_session_id: str) -> None:
        assert agent_session_id == self.prompts[-1][0]
        self.cancelled.set()

    def give_up(self, why: str = "did not answer") -> None:
        assert why
        self.given_up += 1

    def model_failure(self, agent_session_id: str) -> ModelFailure | None:
        return self.failures.get(agent_session_id)

    async def message_count(self, agent_session_id: str) -> int:
        return 2 * sum(session == agent_session_id for session, _ in self.prompts)

    async def cut_session(self, agent_session_id: str, kept: int) -> str:
        self.cuts.append((agent_session_id, kept))
        if self.uncut is not None:
            raise self.uncut
        new = f"{agent_session_id}.{len(self.cuts)}"
        said = [text for session, text in self.prompts if session == agent_session_id]
        self.prompts += [(new, text) for text in said[: kept // 2]]
        return new

    async def replace_session(self, old: str, new: str) -> None:
        self.replaced.append((old, new))

    async def forget_session(self, agent_session_id: str) -> None:
        self.forgotten.append(agent_session_id)

    async def try_extension(self, entry: dict[str, Any]) -> ExtensionState:
        return self.extensions.setdefault(entry["configKey"], ExtensionState("ready", "It works."))

    def extension_state(self, key: str) -> ExtensionState | None:
        return self.extensions.get(key)

    def forget_extension(self, key: str) -> None:
        self.extensions.pop(key, None)

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        self.calls.append((method, params))
        answer = self.answers.get(method, {})
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class Api(Client):
    """A client of the server, with what stands behind it."""

    agent: AgentDouble
    services: Services


@asynccontextmanager
async def serving(
    folder: Path, agent: AgentDouble | None = None, **changes: Any
) -> AsyncIterator[Api]:
    """Run the real server, records and journals around an agent double."""
    agent = agent or AgentDouble()
    settings = replace(AgentdSettings(folder=folder, port=0), **changes)
    volume = Volume(folder)
    volume.prepare()
    records = await Records.open(volume.database)
    journals = Journals(volume.journals, settings.turn_journal_limit, settings.journal_limit)
    listener = listen(settings.host, settings.port)
    tasks = asyncio.TaskGroup()
    execution = Execution(folder / "execd")
    store = SnapshotStore(volume.snapshots, settings.snapshot_limit)
    services = build_services(settings, volume, agent, execution, store, records, journals, tasks)
    await services.turns.recover()
    async with tasks:
        server = http_server(create_app(settings, services))
        serve = tasks.create_task(server.serve([listener]), name="http server")
        beside = tasks.create_task(services.git.run(), name="git")
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        headers = {}
        if settings.token is not None:
            headers["authorization"] = f"Bearer {settings.token.value}"
        async with aiohttp.ClientSession(headers=headers) as http:
            try:
                yield Api(http, base, agent, services)
            finally:
                await services.turns.stop()
                await services.turns.wait_all_ended(2)
                await services.terminals.close()
                await services.previews.close()
                await services.changes.stop()
                beside.cancel()
                server.finish()
        await serve
    await records.aclose()
    await store.aclose()
