"""The HTTP server as agentd uses it: our socket, our signals."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from greylag.agentd.config import AgentdConfigError

_BACKLOG = 256
_MOST_CONNECTIONS = 512
_CONNECTIONS_END_WITHIN = 1


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: address or name to listen on.
        port: TCP port, 0 for any free one.

    Raises:
        AgentdConfigError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    return listener


class HttpServer(uvicorn.Server):
    """Serves one application on one socket; agentd itself takes the signals."""

    def __init__(self, app: ASGIApp) -> None:
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
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=_CONNECTIONS_END_WITHIN,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: turns must be ended before the server stops."""
        yield

    def finish(self) -> None:
        """Stop serving: `serve` returns when open answers have ended, or a second later."""
        self.should_exit = True


def _cannot_listen(host: str, port: int, error: OSError) -> AgentdConfigError:
    return AgentdConfigError(f"Cannot listen on {host} port {port}: {error.strerror or error}.")
