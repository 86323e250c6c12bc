"""The programs that serve the web: alone, or with the worker in the same process (the worker alone:
``worker_program.py``).

Each runs until SIGINT or SIGTERM, and tells ``announce`` when it is at work. A ``ConfigError`` says
that an address or the data folder cannot be used.
"""

import asyncio
import socket
from contextlib import AbstractAsyncContextManager
from functools import partial

import structlog
from pydantic import SecretStr

from greylag.common.agent_api import LEGACY_API
from greylag.common.net import network_of
from greylag.common.server import HttpServer, ServerLimits, addresses_of
from greylag.common.token_file import ensure_token
from greylag.config import Settings
from greylag.services.use_cases import OPEN_TO_ALL, UseCases
from greylag.web.app import create_app
from greylag.web.auth import Signatures
from greylag.wiring import assembled
from greylag.worker_program import (
    GRACEFUL_SHUTDOWN_SECONDS,
    STOPPING,
    Announce,
    also_served,
    metrics_of,
    metrics_port,
    open_port,
)

_log = structlog.get_logger(__name__)

FINISH_SECONDS = 60
"""What a web alone lets uploads, downloads and waits for environments take after it was told to
end: others serve meanwhile. Its pod's ``terminationGracePeriodSeconds`` is longer.
"""


async def up(settings: Settings, announce: Announce) -> None:
    """Run web and worker.

    Raises:
        StoreUnavailableError: the store cannot be reached: somebody sits before it, and is told at
            once what is missing.
    """
    async with (
        _web_port(settings) as listener,
        metrics_port(settings) as watched,
        assembled(settings) as greylag,
        also_served(watched, metrics_of(greylag.use_cases)),
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
        metrics_port(settings) as watched,
        assembled(settings, patient=True, tries_model=has_key) as greylag,
        also_served(watched, metrics_of(greylag.use_cases)),
    ):
        await _serve_with_token(
            greylag.use_cases, settings, listener, announce, finishes_within=FINISH_SECONDS
        )


async def serve_parts(use_cases: UseCases, settings: Settings, announce: Announce) -> None:
    """Run the web over use cases that the caller has made, with the token of ``settings``."""
    async with _web_port(settings) as listener:
        await _serve(use_cases, settings, listener, announce)


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
        signals=STOPPING,
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
    return open_port(
        settings.host,
        settings.port,
        f"The address {settings.host}:{settings.port}",
        "Choose another with --host and --port, or stop what listens there.",
    )
