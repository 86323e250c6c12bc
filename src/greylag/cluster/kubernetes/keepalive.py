"""Sockets whose other end is missed within seconds, though nothing is sent."""

import socket
from typing import Any

# Linux's names; what a system lacks is left at its own. The last one is in milliseconds.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}


def kept_alive(address: Any) -> socket.socket:
    """Return a socket for an address as ``getaddrinfo`` gives it."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made
