"""The whole server in this process, on memory adapters, behind a real port."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from tests.fakes.agent import MemoryAgents
from tests.fakes.cluster import MemoryCluster
from tests.fakes.store import MemoryStore
from tests.harness import Harness, served

from greylag.config import Settings
from greylag.web.app import create_app

NOTICE = "Nothing here is isolated."


@dataclass(frozen=True, slots=True)
class Stack:
    """A running server, and the adapters that a test breaks."""

    address: str
    store: MemoryStore
    cluster: MemoryCluster
    agents: MemoryAgents


@asynccontextmanager
async def running_stack(settings: Settings, *, auto: bool = True) -> AsyncIterator[Stack]:
    """Run the server until the block ends. ``auto``: environments start by themselves."""
    # Unconfigured, the server's log would go to stdout, which belongs to the program under test.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    harness = Harness(settings, auto=auto, notice=NOTICE)
    try:
        async with harness.working(), served(create_app(harness.use_cases, settings)) as port:
            address = f"http://127.0.0.1:{port}"
            yield Stack(address, harness.store, harness.cluster, harness.gateway)
    finally:
        structlog.reset_defaults()
