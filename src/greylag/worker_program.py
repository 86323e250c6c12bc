"""The worker alone, and what it has in common with the programs that serve the web: ports, and what
those who watch a program are told there. A worker loads nothing that only the web needs.
"""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Protocol

from starlette.types import ASGIApp

from greylag.common.clock import SystemClock
from greylag.common.server import HttpServer, ServerLimits, listen
from greylag.config import Settings
from greylag.domain.errors import ConfigError
from greylag.services.use_cases import UseCases
from greylag.web.health import create_health_app
from greylag.web.metrics import create_metrics_app
from greylag.wiring import assembled

GRACEFUL_SHUTDOWN_SECONDS = 3
STOPPING = (signal.SIGINT, signal.SIGTERM)
_WATCHERS = 64


class Announce(Protocol):
    """Tells a person that a program is at work."""

    def __call__(self, address: str, *others: str, link: str | None = None) -> None:
        """Tell its address, or a sentence; the other addresses that it has; and the link that signs
        one browser in, if there is one. The link is for this person: it is never logged.
        """


async def work(settings: Settings, announce: Announce) -> None:
    """Run the worker alone; a store that cannot be reached is waited for.

    It runs until SIGINT or SIGTERM, and tells ``announce`` when it is at work.

    Raises:
        ConfigError: a port or the data folder cannot be used.
    """
    async with (
        _watched_port(settings.health_port, "GREYLAG_HEALTH_PORT") as probed,
        metrics_port(settings) as watched,
        assembled(settings, patient=True) as greylag,
        also_served(probed, create_health_app(greylag.use_cases.store.ping)),
        also_served(watched, metrics_of(greylag.use_cases)),
        asyncio.TaskGroup() as tasks,
    ):
        looked = asyncio.Event()
        working = tasks.create_task(
            greylag.worker.run(looked, settings.startup_reconcile_timeout), name="worker"
        )
        loop = asyncio.get_running_loop()
        for number in STOPPING:
            loop.add_signal_handler(number, working.cancel)
        beside = {
            tasks.create_task(_announce_after(looked, announce), name="announcement"),
            tasks.create_task(greylag.notifier.run(), name="notifications"),
        }
        await asyncio.wait({working})
        for task in beside:
            task.cancel()


@asynccontextmanager
async def also_served(listener: socket.socket | None, app: ASGIApp) -> AsyncIterator[None]:
    """Serve beside the block, if there is a listener, those who watch the program."""
    if listener is None:
        yield
        return
    server = HttpServer(
        app,
        ends_within=GRACEFUL_SHUTDOWN_SECONDS,
        limits=ServerLimits(connections=_WATCHERS),
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([listener]), name=f"port {listener.getsockname()[1]}")
        yield
        server.finish()


def metrics_of(use_cases: UseCases) -> ASGIApp:
    """Return the application that tells Prometheus the numbers of a program."""
    return create_metrics_app(use_cases.store, SystemClock())


async def _announce_after(looked: asyncio.Event, announce: Announce) -> None:
    await looked.wait()
    announce("the worker is running")


def metrics_port(settings: Settings) -> AbstractAsyncContextManager[socket.socket | None]:
    """Listen within the block where Prometheus asks, if the settings name a port for it.

    Raises:
        ConfigError: the port cannot be used.
    """
    return _watched_port(settings.metrics_port, "GREYLAG_METRICS_PORT")


def _watched_port(
    port: int | None, setting: str
) -> AbstractAsyncContextManager[socket.socket | None]:
    # On all addresses: probes and Prometheus come from elsewhere.
    if port is None:
        return nullcontext()
    return open_port(
        "", port, f"{setting}: the port {port}", "Choose another, or stop what listens there."
    )


@asynccontextmanager
async def open_port(host: str, port: int, called: str, hint: str) -> AsyncIterator[socket.socket]:
    """Listen within the block; ``called`` and ``hint`` tell a person what cannot be used.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    try:
        listener = listen(host, port)
    except OSError as error:
        raise ConfigError(f"{called} cannot be used: {error.strerror}.", hint=hint) from error
    with listener:
        yield listener
