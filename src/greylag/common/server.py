"""The HTTP server that every program of ours runs: on a socket that it is given."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp

_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, so that a taken port is told before anything is started.

    Args:
        host: the address or name to listen on; "" for all addresses, of both families.
        port: the TCP port, 0 for any free one.

    Raises:
        OSError: the address cannot be had.
    """
    if not host:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(
            ("", port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
        )
    found = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    # The whole address: an IPv6 one may be of one interface only.
    return socket.create_server(found[0][4], family=found[0][0], backlog=_BACKLOG)


def address_of(listener: socket.socket) -> str:
    """Return the ``http`` URL at which a listening socket is found."""
    host, port = listener.getsockname()[:2]
    return (
        f"http://[{host}]:{port}" if listener.family is socket.AF_INET6 else f"http://{host}:{port}"
    )


class HttpServer(uvicorn.Server):
    """Serves one ASGI application; ``serve([socket])`` runs it, ``finish`` ends it.

    It never raises a signal again as uvicorn's own does: a program's last writes are still to come.

    Args:
        app: what answers.
        ends_within: seconds that open answers get after ``finish``.
        most_connections: how many may be open at once; beyond it is 503. ``None``: no limit.
        signals: those that end it; none: they are left to the program.
        started: called once requests are answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        ends_within: int,
        most_connections: int | None = None,
        signals: Sequence[signal.Signals] = (),
        started: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                log_level="warning",
                server_header=False,
                # A proxy's word for the client's address is taken only where one is configured.
                proxy_headers=False,
                limit_concurrency=most_connections,
                timeout_graceful_shutdown=ends_within,
            )
        )
        self._signals = signals
        self._announce_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets)
        if self._announce_started is not None:
            self._announce_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Finish on one of the signals; uvicorn's own would raise it again after that."""
        loop = asyncio.get_running_loop()
        for number in self._signals:
            loop.add_signal_handler(number, self.finish)
        try:
            yield
        finally:
            for number in self._signals:
                loop.remove_signal_handler(number)

    def finish(self) -> None:
        """Stop serving: ``serve`` returns when open answers have ended, or at their limit."""
        self.should_exit = True
