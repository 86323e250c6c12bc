"""A running agent, and a sink that keeps what it is told."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from aiohttp import web

from greylag.agentd.agent.agent import Agent
from greylag.agentd.agent.types import (
    AgentCommand,
    AgentSetup,
    ModelProvider,
    PermissionRequest,
    Settlement,
    find_agent,
)
from greylag.agentd.execution import ExecdProcess, Execution, ExecutionError
from greylag.agentd.model import scripted as scripted_model


class RecordingSink:
    """Keeps all updates; answers permissions with `decision`, or waits when it is None."""

    def __init__(self, decision: Settlement | None = "allow_once") -> None:
        self.decision = decision
        self.updates: list[dict[str, Any]] = []
        self.questions: list[PermissionRequest] = []
        self.changed = asyncio.Condition()

    async def update(self, update: dict[str, Any]) -> None:
        async with self.changed:
            self.updates.append(update)
            self.changed.notify_all()

    async def permission(self, request: PermissionRequest) -> Settlement:
        async with self.changed:
            self.questions.append(request)
            self.changed.notify_all()
        if self.decision is None:
            await asyncio.Event().wait()
        return self.decision or "cancelled"

    async def wait_for(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(true)

    def text(self, kind: str = "agent_message_chunk") -> str:
        return "".join(self.of(kind, lambda update: update["content"]["text"]))

    def of(self, kind: str, pick: Callable[[dict[str, Any]], Any]) -> list[Any]:
        return [pick(u) for u in self.updates if u["sessionUpdate"] == kind]

    def tool_output(self) -> str:
        ended = self.of("tool_call_update", lambda update: update)
        finished = [u for u in ended if u.get("status") in {"completed", "failed"}]
        return "\n".join(c["content"]["text"] for u in finished for c in u["content"])


StartAgent = Callable[..., Awaitable[Agent]]


@pytest.fixture
def goose_command() -> AgentCommand:
    command = find_agent(None, os.environ)
    if command.kind != "goose":
        pytest.skip("GOOSE IS NOT INSTALLED: run `make setup` on a machine with Node.js")
    return command


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def execd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """Run an execd without a sandbox; each test ends what it has it run."""
    path = tmp_path_factory.mktemp("execd") / "execd.sock"
    command = (sys.executable, "-I", "-m", "greylag.execd")
    running = asyncio.create_task(ExecdProcess(command, path, dict(os.environ)).run(), name="execd")
    try:
        async with asyncio.timeout(20):
            while not await _answers(Execution(path)):  # noqa: ASYNC110 - nobody tells us of its start
                await asyncio.sleep(0.01)
        yield path
    finally:
        running.cancel()
        await asyncio.wait({running})


@pytest.fixture
async def execution(execd: Path) -> Execution:
    client = Execution(execd)
    try:
        async with asyncio.timeout(20):
            await client.hello()
    except (TimeoutError, ExecutionError) as error:
        pytest.fail(f"execd has ended in an earlier test: {error}")
    return client


async def _answers(client: Execution) -> bool:
    try:
        await client.hello()
    except ExecutionError:
        return False
    return True


@pytest.fixture
async def start_agent(tmp_path: Path, execution: Execution) -> AsyncIterator[StartAgent]:
    """Start an agent that is ready and ends with the test."""
    async with AsyncExitStack() as stack:

        async def start(command: AgentCommand, **setup: Any) -> Agent:
            workspace, home, tmp = (tmp_path / name for name in ("workspace", "home", "tmp"))
            for folder in (workspace, home, tmp):
                folder.mkdir(exist_ok=True)
            agent = Agent(command, AgentSetup(workspace, home, tmp, **setup), execution)
            await stack.enter_async_context(_running(agent))
            await agent.wait_ready(30)
            return agent

        yield start


@asynccontextmanager
async def _running(agent: Agent) -> AsyncIterator[None]:
    run = asyncio.create_task(agent.run(), name="agent")
    try:
        yield
    finally:
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run


@pytest.fixture
async def fake_provider() -> AsyncIterator[ModelProvider]:
    """Run the scripted model on a port of its own, as a provider would run."""
    async with serve(scripted_model.app()) as url:
        yield ModelProvider(url, key="provider-key")


@asynccontextmanager
async def serve(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield "http://{}:{}".format(*runner.addresses[0])
    finally:
        await runner.cleanup()


@pytest.fixture
def serve_app() -> Callable[[web.Application], Any]:
    return serve


@pytest.fixture
def make_sink() -> type[RecordingSink]:
    return RecordingSink


@pytest.fixture
def count_processes() -> Callable[[str], int]:
    """Count living processes whose command line has this word as one of its arguments."""

    def count(word: str) -> int:
        found = 0
        for process in psutil.process_iter(["cmdline", "status"]):
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            found += alive and word in (process.info["cmdline"] or [])
        return found

    return count


@pytest.fixture
def wait_for_process(count_processes: Callable[[str], int]) -> Callable[[str], Awaitable[None]]:
    """Wait until a process runs that has this word as one of its arguments."""

    async def wait(word: str) -> None:
        async with asyncio.timeout(20):
            while not count_processes(word):  # noqa: ASYNC110 - nobody tells us of a new process
                await asyncio.sleep(0.02)

    return wait


@pytest.fixture
def unused_url() -> str:
    """Give an address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
