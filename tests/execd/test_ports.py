"""Of who listens on the loopback only the environment's own processes are reached."""

import asyncio
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from greylag.execd import ports

_LISTEN = """
import socket, sys
held = []
for host, only in ((sys.argv[at], sys.argv[at + 1] == "only") for at in range(2, len(sys.argv), 2)):
    one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if ":" in host:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    one.bind((host, int(sys.argv[1])))
    one.listen()
    held.append(one)
print("up", flush=True)
sys.stdin.read()
"""

_CONNECT = """
import socket, sys
connected = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(connected.getsockname()[1], flush=True)
sys.stdin.read()
"""

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="PORTS ARE READ FROM /proc")
needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="THERE IS NO IPv6 HERE")


@contextmanager
def _running(program: str, *words: str) -> Iterator[str]:
    """Have a child run a program, and give the first line that it says."""
    command = [sys.executable, "-c", program, *words]
    with subprocess.Popen(  # noqa: S603 - a fixed program of ours
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        try:
            yield child.stdout.readline().strip()
        finally:
            child.kill()


@contextmanager
def _listening(port: int, *addresses: str) -> Iterator[None]:
    """Have a child listen at a port of some addresses, each with ``only`` or ``both`` behind it."""
    with _running(_LISTEN, str(port), *addresses) as said:
        assert said == "up"
        yield


def _addresses(port: int) -> tuple[str, ...]:
    return next((one.addresses for one in ports.listeners() if one.port == port), ())


@needs_linux
@needs_ipv6
@pytest.mark.parametrize("foreign", ["127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1"])  # noqa: S104
def test_a_port_of_ipv6_alone_is_not_looked_for_at_a_foreign_one_of_ipv4(foreign: str) -> None:
    both = ":" in foreign
    kind = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server((foreign, 0), family=kind, dualstack_ipv6=both) as service:
        port = service.getsockname()[1]
        assert _addresses(port) == ()
        with _listening(port, "::", "only"):
            assert _addresses(port) == ("::1",)


@needs_linux
@needs_ipv6
def test_a_port_is_reached_at_all_addresses_at_which_it_is_our_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with _listening(port, "::", "both"):
        assert _addresses(port) == ("127.0.0.1", "::1")
    with _listening(port, "::", "only", "127.0.0.1", "both"):
        assert set(_addresses(port)) == {"127.0.0.1", "::1"}


@needs_linux
def test_a_port_from_which_somebody_connects_is_none_that_is_listened_on() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as service,
        _running(_CONNECT, str(service.getsockname()[1])) as port,
    ):
        assert _addresses(int(port)) == ()


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("0.0.0.0", ("127.0.0.1",)),  # noqa: S104
        ("127.0.0.2", ("127.0.0.2",)),
        ("::ffff:127.0.0.1", ("127.0.0.1",)),
        ("::1", ("::1",)),
        ("10.0.0.5", ()),
        ("::ffff:10.0.0.5", ()),
        ("fe80::1", ()),
    ],
)
def test_what_listens_beside_the_loopback_is_not_reached(
    host: str, reached: tuple[str, ...]
) -> None:
    assert ports._reached(host) == reached


async def test_many_who_ask_who_listens_cost_one_look_that_begins_after_they_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: queue.Queue[threading.Event] = queue.Queue()

    def listeners() -> list[ports.Listener]:
        go_on = threading.Event()
        begun.put(go_on)
        go_on.wait()
        return [ports.Listener(8000, ("127.0.0.1",), "app")]

    monkeypatch.setattr(ports, "listeners", listeners)
    looks = ports.Looks()
    async with asyncio.timeout(20):
        first = asyncio.create_task(looks.listener(8000))
        look = await asyncio.to_thread(begun.get)
        others = [asyncio.create_task(looks.listener(8000)) for _ in range(50)]
        left = asyncio.create_task(looks.listeners())
        await asyncio.sleep(0)
        left.cancel()
        look.set()
        assert await first is not None
        (await asyncio.to_thread(begun.get)).set()
        found = await asyncio.gather(*others)
        assert [one and one.process for one in found] == ["app"] * 50
        assert begun.empty()
        again = asyncio.create_task(looks.listener(1))
        (await asyncio.to_thread(begun.get)).set()
        assert await again is None
