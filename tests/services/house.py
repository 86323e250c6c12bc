"""All use cases over memory adapters, with a worker that runs or is stepped."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from greylag.agent.memory import MemoryAgents
from greylag.cluster.memory import MemoryCluster
from greylag.common.agent_api import Operation
from greylag.common.clock import SystemClock
from greylag.domain.users import OPERATOR, User
from greylag.ports import AgentRequest
from greylag.reconcile.reconciler import Pace, Reconciler
from greylag.reconcile.worker import Worker
from greylag.services.agents import Agents
from greylag.services.messages import Messages
from greylag.services.projects import Projects
from greylag.services.use_cases import Platform, UseCases
from greylag.store.memory import MemoryStore
from greylag.store.users import StaticUsers

USERS = (User("ada", "Ada Lovelace"), User("Zoë", "Zoë Ω"))


class House:
    """Everything that `greylag up` is made of, in memory."""

    def __init__(self, *, auto: bool = True, activation_timeout: float = 10.0) -> None:
        self.clock = SystemClock()
        self.store = MemoryStore()
        self.cluster = MemoryCluster(auto=auto)
        self.gateway = MemoryAgents()
        projects = Projects(
            self.store,
            StaticUsers(USERS),
            self.clock,
            namespace_prefix="user-",
            activation_timeout=activation_timeout,
        )
        agents = Agents(projects, self.cluster, self.gateway)
        self.use_cases = UseCases(
            projects=projects,
            agents=agents,
            messages=Messages(projects, agents, self.gateway),
            platform=Platform("0", "memory", "memory", notice=None, demonstration=None),
            store=self.store,
        )
        pace = Pace(lease=15, resync=60, activation_timeout=activation_timeout)
        rng = random.Random(1)  # noqa: S311 - spreads retries, guards nothing
        reconciler = Reconciler(self.store, self.cluster, self.clock, pace, worker="w1", rng=rng)
        self.worker = Worker(self.store, self.cluster, self.clock, reconciler, concurrency=8)

    async def ask(self, operation: Operation[Any], **parts: str) -> Any:
        """Return the JSON that the agent of ada's project demo answers to an operation."""
        request = AgentRequest(operation, parts)
        opening = await self.use_cases.agents.relay(OPERATOR, "ada", "demo", request)
        async with opening as answer:
            return json.loads(b"".join([chunk async for chunk in answer.body]))

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Run the worker inside the block."""
        ready = asyncio.Event()
        task = asyncio.create_task(self.worker.run(ready, 5.0), name="worker")
        await ready.wait()
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.cluster.close()
            await self.store.close()
