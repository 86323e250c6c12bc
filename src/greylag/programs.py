"""The long-running programs: web and worker in one process, or each alone.

Each runs until SIGINT or SIGTERM, and tells ``announce`` when it is at work. A ``ConfigError`` says
that an address or the data folder cannot be used.
"""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Protocol

import structlog
from pydantic import SecretStr
from starlette.types import ASGIApp

from greylag.common.agent_api import LEGACY_API
from greylag.common.clock import SystemClock
from greylag.common.net import network_of
from greylag.common.server import HttpServer, ServerLimits, addresses_of, listen
from greylag.common.token_file import ensure_token
from greylag.config import Settings
from greylag.domain.errors import ConfigError
from greylag.services.use_cases import OPEN_TO_ALL, UseCases
from greylag.web.app import create_app, create_health_app
from greylag.web.auth import Signatures
from greylag.web.metrics import create_metrics_app
from greylag.wiring import assembled

_log = structlog.get_logger(__name__)

GRACEFUL_SHUTDOWN_SECONDS = 3
FINISH_SECONDS = 60
"""What a web alone lets uploads, downloads and waits for environments take after it was told to
end: others serve meanwhile. Its pod's ``terminationGracePeriodSeconds`` is longer.
"""
_WATCHERS = 64
_STOPPING = (signal.SIGINT, signal.SIGTERM)


class Announce(Protocol):
    """Tells a person that a program is at work."""

    def __call__(self, address: str, *others: str, link: str | None = None) -> None:
        """Tell its address, or a sentence; the other addresses that it has; and the link that signs
        one browser in, if there is one. The link is for this person: it is never logged.
        """


async def up(settings: Settings, announce: Announce) -> None:
    """Run web and worker.

    Raises:
        StoreUnavailableError: the store cannot be reached: somebody sits before it, and is told at
            once what is missing.
    """
    async with (
        _web_port(settings) as listener,
        _metrics_port(settings) as watched,
        assembled(settings) as greylag,
        _also_served(watched, _metrics(greylag.use_cases)),
        asyncio.TaskGroup() as tasks,
    ):
        looked = asyncio.Event()
        working = tasks.create_task(
            greylag.worker.run(looked, settings.startup_reconcile_timeout), name="worker"
        )
        telling = tasks.create_task(greylag.notifier.run(), name="notifications")
        await looked.wait()
        await _serve_with_token(greylag.use_cases, settings, listener, announce)
        working.cancel()
        telling.cancel()
    _log.info("stopped", environments="active ones go on, and are found again at the next start")


async def serve(settings: Settings, announce: Announce) -> None:
    """Run the web alone; a worker elsewhere does what it writes.

    A store on servers that cannot be reached is waited for; until then requests are told so. A web
    that was given no key for the provider of models has nothing to say of it: agents call it.
    """
    has_key = settings.model_key is not None
    async with (
        _web_port(settings) as listener,
        _metrics_port(settings) as watched,
        assembled(settings, patient=True, tries_model=has_key) as greylag,
        _also_served(watched, _metrics(greylag.use_cases)),
    ):
        await _serve_with_token(
            greylag.use_cases, settings, listener, announce, finishes_within=FINISH_SECONDS
        )


async def serve_parts(use_cases: UseCases, settings: Settings, announce: Announce) -> None:
    """Run the web over use cases that the caller has made, with the token of ``settings``."""
    async with _web_port(settings) as listener:
        await _serve(use_cases, settings, listener, announce)


async def work(settings: Settings, announce: Announce) -> None:
    """Run the worker alone; a store that cannot be reached is waited for."""
    async with (
        _watched_port(settings.health_port, "GREYLAG_HEALTH_PORT") as probed,
        _metrics_port(settings) as watched,
        assembled(settings, patient=True) as greylag,
        _also_served(probed, create_health_app(greylag.use_cases.store.ping)),
        _also_served(watched, _metrics(greylag.use_cases)),
        asyncio.TaskGroup() as tasks,
    ):
        looked = asyncio.Event()
        working = tasks.create_task(
            greylag.worker.run(looked, settings.startup_reconcile_timeout), name="worker"
        )
        loop = asyncio.get_running_loop()
        for number in _STOPPING:
            loop.add_signal_handler(number, working.cancel)
        beside = {
            tasks.create_task(_announce_after(looked, announce), name="announcement"),
            tasks.create_task(greylag.notifier.run(), name="notifications"),
        }
        await asyncio.wait({working})
        for task in beside:
            task.cancel()


@asynccontextmanager
async def _also_served(listener: socket.socket | None, app: ASGIApp) -> AsyncIterator[None]:
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


def _metrics(use_cases: UseCases) -> ASGIApp:
    return create_metrics_app(use_cases.store, SystemClock())


async def _announce_after(looked: asyncio.Event, announce: Announce) -> None:
    await looked.wait()
    announce("the worker is running")


async def _serve_with_token(
    use_cases: UseCases,
    settings: Settings,
    listener: socket.socket,
    announce: Announce,
    *,
    finishes_within: int = GRACEFUL_SHUTDOWN_SECONDS,
) -> None:
    """Serve with the token of the settings, else with the data folder's: nobody knows that one by
    heart, so there is a link.
    """
    if settings.legacy_api:
        _log.warning("legacy_api_open", meaning=LEGACY_API)
    if settings.auth == "none":
        _log.warning("sign_in_off", meaning=OPEN_TO_ALL)
    elif settings.token is None:
        token = SecretStr(ensure_token(settings.data))
        settings = settings.model_copy(update={"token": token})
        link = Signatures(token).link(_sites(settings, listener)[0])
        announce = partial(announce, link=link)
    await _serve(use_cases, settings, listener, announce, finishes_within=finishes_within)


async def _serve(
    use_cases: UseCases,
    settings: Settings,
    listener: socket.socket,
    announce: Announce,
    *,
    finishes_within: int = GRACEFUL_SHUTDOWN_SECONDS,
) -> None:
    server = HttpServer(
        create_app(use_cases, settings),
        ends_within=GRACEFUL_SHUTDOWN_SECONDS,
        finishes_within=finishes_within,
        limits=_limits(settings),
        signals=_STOPPING,
        started=lambda: announce(*_sites(settings, listener)),
    )
    await server.serve([listener])


def _sites(settings: Settings, listener: socket.socket) -> list[str]:
    return [f"{address}{settings.root_path}" for address in addresses_of(listener)]


def _limits(settings: Settings) -> ServerLimits:
    plain = ServerLimits()
    return ServerLimits(
        # The guard's own answer to too many headers is the better one.
        headers=max(plain.headers, settings.header_limit + 1),
        connections=settings.connection_limit,
        per_address=settings.connections_per_address,
        proxies=tuple(map(network_of, filter(None, settings.uncounted_addresses.split(",")))),
    )


def _web_port(settings: Settings) -> AbstractAsyncContextManager[socket.socket]:
    return _port(
        settings.host,
        settings.port,
        f"The address {settings.host}:{settings.port}",
        "Choose another with --host and --port, or stop what listens there.",
    )


def _metrics_port(settings: Settings) -> AbstractAsyncContextManager[socket.socket | None]:
    return _watched_port(settings.metrics_port, "GREYLAG_METRICS_PORT")


def _watched_port(
    port: int | None, setting: str
) -> AbstractAsyncContextManager[socket.socket | None]:
    # On all addresses: probes and Prometheus come from elsewhere.
    if port is None:
        return nullcontext()
    return _port(
        "", port, f"{setting}: the port {port}", "Choose another, or stop what listens there."
    )


@asynccontextmanager
async def _port(host: str, port: int, called: str, hint: str) -> AsyncIterator[socket.socket]:
    try:
        listener = listen(host, port)
    except OSError as error:
        raise ConfigError(f"{called} cannot be used: {error.strerror}.", hint=hint) from error
    with listener:
        yield listener
