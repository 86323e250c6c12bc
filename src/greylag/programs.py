"""The long-running programs: web and worker in one process, or each alone."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp

from greylag.config import Settings
from greylag.domain.errors import ConfigError
from greylag.services.use_cases import UseCases
from greylag.web.app import create_app
from greylag.web.health import create_health_app
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
        probed = _health_server(parts.use_cases)
        if settings.health_port is not None:
            listener = _bind_for_probes(settings.health_port)
            tasks.create_task(probed.serve([listener]), name="health")
        await looked.wait()
        announce("the worker is running")
        with contextlib.suppress(asyncio.CancelledError):
            await working
        probed.should_exit = True


async def _serve(
    use_cases: UseCases, settings: Settings, listener: socket.socket, announce: Announce
) -> None:
    config = _config(create_app(use_cases, settings))
    await _AnnouncingServer(config, lambda: announce(_address(listener))).serve([listener])


def _health_server(use_cases: UseCases) -> "_GuestServer":
    return _GuestServer(_config(create_health_app(use_cases.check_ready)))


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # A proxy's word for the client's address or scheme is taken only where one is configured.
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )


class _GuestServer(uvicorn.Server):
    """Leaves signals to the program that it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _AnnouncingServer(uvicorn.Server):
    """Calls back once requests are answered."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop serving on a signal. Unlike uvicorn's own it does not raise the signal again after
        that: the worker's last writes and the handing back of its leases are still to come.
        """
        loop = asyncio.get_running_loop()
        for number in _STOPPING:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in _STOPPING:
                loop.remove_signal_handler(number)


def _bind_for_probes(port: int) -> socket.socket:
    """Return a socket that listens on all addresses, of both families where there are both."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise ConfigError(
            f"GREYLAG_HEALTH_PORT: the port {port} cannot be used: {error.strerror}."
        ) from error


def _bind(settings: Settings) -> socket.socket:
    """Return a listening socket, so that a taken port is told before anything is started."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"The address {settings.host}:{settings.port} cannot be used: {error.strerror}.",
            hint="Choose another with --host and --port, or stop what listens there.",
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    name: tuple[Any, ...] = listener.getsockname()
    host = f"[{name[0]}]" if listener.family is socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"
