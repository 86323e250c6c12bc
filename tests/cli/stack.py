"""The whole server in this process, on memory adapters, behind a real port."""

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import uvicorn

from greylag.agent.memory import MemoryAgents
from greylag.cluster.memory import MemoryCluster
from greylag.common.clock import SystemClock
from greylag.config import Settings
from greylag.reconcile.reconciler import Pace, Reconciler
from greylag.reconcile.worker import Worker
from greylag.services.agents import Agents
from greylag.services.messages import Messages
from greylag.services.projects import Projects
from greylag.services.use_cases import Platform, UseCases
from greylag.store.memory import MemoryStore
from greylag.store.users import StaticUsers
from greylag.web.app import create_app

NOTICE = "Nothing here is isolated."


@dataclass(frozen=True, slots=True)
class Stack:
    """A running server, and the adapters that a test breaks."""

    address: str
    store: MemoryStore
    cluster: MemoryCluster
    agents: MemoryAgents


class _QuietServer(uvicorn.Server):
    """Leaves the signals of the test's process alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def running_stack(settings: Settings, *, auto: bool = True) -> AsyncIterator[Stack]:
    """Run the server until the block ends. ``auto``: environments start by themselves."""
    # Unconfigured, the server's log would go to stdout, which belongs to the program under test.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    clock = SystemClock()
    store, cluster, agents = MemoryStore(), MemoryCluster(auto=auto), MemoryAgents()
    worker = _worker(store, cluster, clock)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # From here on a client's connection waits instead of being refused.
        listener.listen()
        app = create_app(_use_cases(settings, store, cluster, agents, clock), settings)
        config = uvicorn.Config(
            app, lifespan="off", log_config=None, ws="none", timeout_graceful_shutdown=1
        )
        server = _QuietServer(config)
        working = asyncio.create_task(worker.run(asyncio.Event(), 1), name="worker")
        serving = asyncio.create_task(server.serve([listener]), name="server")
        try:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield Stack(address, store, cluster, agents)
        finally:
            server.should_exit = True
            await serving
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working
            structlog.reset_defaults()


def _use_cases(
    settings: Settings,
    store: MemoryStore,
    cluster: MemoryCluster,
    agents: MemoryAgents,
    clock: SystemClock,
) -> UseCases:
    projects = Projects(
        store,
        StaticUsers(settings.user_list),
        clock,
        namespace_prefix=settings.namespace_prefix,
        activation_timeout=settings.activation_timeout,
    )
    runtime = Agents(projects, cluster, agents)
    return UseCases(
        projects=projects,
        agents=runtime,
        messages=Messages(projects, runtime, agents),
        platform=Platform("0.1.0", cluster.kind, "memory", NOTICE, None),
        store=store,
    )


def _worker(store: MemoryStore, cluster: MemoryCluster, clock: SystemClock) -> Worker:
    pace = Pace(lease=15, resync=60, activation_timeout=60)
    rng = random.Random(1)  # noqa: S311 - spreads retries, guards nothing
    reconciler = Reconciler(store, cluster, clock, pace, worker="test", rng=rng)
    return Worker(store, cluster, clock, reconciler, concurrency=4)
