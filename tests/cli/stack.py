"""The whole server in this process, on memory adapters, behind a real port."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog
from pydantic import SecretStr
from tests.fakes.agent import MemoryAgents
from tests.fakes.cluster import MemoryCluster
from tests.fakes.delivery import MemoryDelivery
from tests.fakes.store import MemoryStore
from tests.harness import Harness, served

from greylag.common.token_file import ensure_token
from greylag.config import Settings
from greylag.web.app import create_app

NOTICE = "Nothing here is isolated."


@dataclass(frozen=True, slots=True)
class Stack:
    """A running server, and the adapters that a test breaks."""

    address: str
    data: Path
    token: str
    store: MemoryStore
    cluster: MemoryCluster
    agents: MemoryAgents
    delivery: MemoryDelivery

    @property
    def env(self) -> dict[str, str]:
        """What the command line finds the server and its token by."""
        return {"GREYLAG_SERVER": self.address, "GREYLAG_DATA": str(self.data)}


@asynccontextmanager
async def running_stack(settings: Settings, *, auto: bool = True) -> AsyncIterator[Stack]:
    """Run the server until the block ends, without a token of the settings' with that of a data
    folder. ``auto``: environments start by themselves.
    """
    # Unconfigured, the server's log would go to stdout, which belongs to the program under test.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with TemporaryDirectory() as folder:
        async with _running(settings, Path(folder), auto=auto) as running:
            yield running


@asynccontextmanager
async def _running(given: Settings, data: Path, *, auto: bool) -> AsyncIterator[Stack]:
    token = given.token or SecretStr(ensure_token(data))
    settings = given.model_copy(update={"token": token})
    harness = Harness(settings, auto=auto, notice=NOTICE)
    try:
        async with harness.working(), served(create_app(harness.use_cases, settings)) as port:
            address = f"http://127.0.0.1:{port}"
            adapters = (harness.store, harness.cluster, harness.gateway, harness.delivery)
            yield Stack(address, data, token.get_secret_value(), *adapters)
    finally:
        structlog.reset_defaults()
