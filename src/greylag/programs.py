"""The long-running programs: web and worker in one process, or each alone."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable

import structlog

from greylag.common.server import HttpServer, address_of, listen
from greylag.config import Settings
from greylag.domain.errors import ConfigError
from greylag.services.use_cases import UseCases
from greylag.web.api.platform import create_health_app
from greylag.web.app import create_app
from greylag.wiring import assembled

log = structlog.get_logger(__name__)

GRACEFUL_SHUTDOWN_SECONDS = 3
_STOPPING = (signal.SIGINT, signal.SIGTERM)
Announce = Callable[[str], None]


async def up(settings: Settings, announce: Announce) -> None:
    """Run web and worker until a signal; ``announce`` gets the address once requests are served.

    Raises ``ConfigError`` when the address cannot be bound or the data folder not used, and
    ``StoreUnavailableError``: somebody sits before it, and is told at once what is missing.
    """
    listener = _bind(settings)
    async with assembled(settings) as parts, asyncio.TaskGroup() as tasks:
        looked = asyncio.Event()
        timeout = settings.startup_reconcile_timeout
        working = tasks.create_task(parts.worker.run(looked, timeout), name="worker")
        await looked.wait()
        await _serve(parts.use_cases, settings, listener, announce)
        working.cancel()
    log.info("stopped; active environments go on running and are found again at the next start")


async def serve(settings: Settings, announce: Announce) -> None:
    """Run the web alone until a signal; a worker elsewhere does what it writes.

    A store on servers that cannot be reached is waited for; until then requests are told so.
    """
    listener = _bind(settings)
    async with assembled(settings, patient=True) as parts:
        await _serve(parts.use_cases, settings, listener, announce)


async def serve_parts(use_cases: UseCases, settings: Settings, announce: Announce) -> None:
    """Run the web over use cases that the caller has made, until a signal."""
    await _serve(use_cases, settings, _bind(settings), announce)


async def work(settings: Settings, announce: Announce) -> None:
    """Run the worker alone until a signal; a store that cannot be reached is waited for."""
    async with assembled(settings, patient=True) as parts, asyncio.TaskGroup() as tasks:
        looked = asyncio.Event()
        timeout = settings.startup_reconcile_timeout
        working = tasks.create_task(parts.worker.run(looked, timeout), name="worker")
        loop = asyncio.get_running_loop()
        for number in _STOPPING:
            loop.add_signal_handler(number, working.cancel)
        probed = HttpServer(
            create_health_app(parts.use_cases.check_ready), ends_within=GRACEFUL_SHUTDOWN_SECONDS
        )
        if settings.health_port is not None:
            listener = _bind_for_probes(settings.health_port)
            tasks.create_task(probed.serve([listener]), name="health")
        await looked.wait()
        announce("the worker is running")
        with contextlib.suppress(asyncio.CancelledError):
            await working
        probed.finish()


async def _serve(
    use_cases: UseCases, settings: Settings, listener: socket.socket, announce: Announce
) -> None:
    server = HttpServer(
        create_app(use_cases, settings),
        ends_within=GRACEFUL_SHUTDOWN_SECONDS,
        signals=_STOPPING,
        started=lambda: announce(address_of(listener)),
    )
    await server.serve([listener])


def _bind(settings: Settings) -> socket.socket:
    try:
        return listen(settings.host, settings.port)
    except OSError as error:
        raise ConfigError(
            f"The address {settings.host}:{settings.port} cannot be used: {error.strerror}.",
            hint="Choose another with --host and --port, or stop what listens there.",
        ) from error


def _bind_for_probes(port: int) -> socket.socket:
    """Return a socket that listens on all addresses, of both families where there are both."""
    try:
        return listen("", port)
    except OSError as error:
        raise ConfigError(
            f"GREYLAG_HEALTH_PORT: the port {port} cannot be used: {error.strerror}."
        ) from error
