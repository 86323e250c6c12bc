"""Greylag over memory adapters, put together by the wiring's own builder."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.types import ASGIApp
from tests.fakes.agent import MemoryAgents
from tests.fakes.cluster import MemoryCluster
from tests.fakes.delivery import MemoryDelivery
from tests.fakes.store import MemoryStore

from greylag import wiring
from greylag.common.clock import SystemClock
from greylag.common.server import HttpServer, listen
from greylag.config import Settings
from greylag.ports import Clock

FIRST_LOOK_SECONDS = 5.0
TOKEN = "the-token-of-the-operator"
BEARER = {"authorization": f"Bearer {TOKEN}"}


def settings(**values: Any) -> Settings:
    """Settings as given, with nothing from a file; without `auth` there is a token, ``TOKEN``."""
    token = {} if "auth" in values else {"token": TOKEN}
    return Settings(_env_file=None, **{**token, **values})


class Harness:
    """Everything that `greylag up` is made of, in memory.

    Args:
        given: the settings; None: the defaults, with a model provider, so that nothing is a
            demonstration.
        auto: environments start and stop by themselves.
        clock: None: the machine's own.
        worker: the worker's name.
        notice: what the cluster has to say to every user.
    """

    def __init__(
        self,
        given: Settings | None = None,
        *,
        auto: bool = True,
        clock: Clock | None = None,
        worker: str = "w1",
        notice: str | None = None,
    ) -> None:
        self.settings = given or settings(model_url="https://model.example")
        self.store = MemoryStore()
        self.cluster = MemoryCluster(auto=auto)
        self.cluster.notice = notice
        self.gateway = MemoryAgents()
        self.clock = clock or SystemClock()
        self.delivery = MemoryDelivery()
        self._adapters = wiring.Adapters(
            self.store, self.cluster, self.gateway, self.delivery, self.clock
        )
        built = self.build(worker)
        self.use_cases = built.use_cases
        self.reconciler = built.reconciler
        self.worker = built.worker

    def build(self, worker: str) -> wiring.Application:
        """Put it together once more over the same adapters, under another worker's name."""
        rng = random.Random(1)  # noqa: S311 - spreads retries, guards nothing
        return wiring.build(self.settings, self._adapters, worker=worker, rng=rng)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Run the worker inside the block."""
        ready = asyncio.Event()
        task = asyncio.create_task(self.worker.run(ready, FIRST_LOOK_SECONDS), name="worker")
        await ready.wait()
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.cluster.close()
            await self.store.close()


@asynccontextmanager
async def served(app: ASGIApp, *, grace: int = 1, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Serve ``app`` as `greylag serve` does, leave signals alone, and give the port."""
    is_up = asyncio.Event()
    server = HttpServer(app, ends_within=grace, started=is_up.set)
    with listen(host, 0) as listener:
        serving = asyncio.create_task(server.serve([listener]), name="server")
        try:
            await is_up.wait()
            yield listener.getsockname()[1]
        finally:
            server.finish()
            await serving
