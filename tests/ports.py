"""Ports of loopback for the programs that tests run."""

import random
import socket

# Below those that the kernel gives to outgoing connections: one of theirs could take the port
# between the question and the answer, or while the program that has it is being restarted.
_PORTS = range(10_000, 32_000)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    while True:
        port = random.choice(_PORTS)  # noqa: S311 - nothing secret
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
