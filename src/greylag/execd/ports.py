"""Which ports of the loopback the processes that execd started listen on.

Others are not told of, and not connected to: what else listens there, agentd's own port in a pod
or this machine's services beside a laptop's sandbox, is not the agent's to show.
"""

import asyncio
import ipaddress
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from greylag.execd import processes

_LISTENS = "0A"  # TCP_LISTEN, in proc_net(5)
_SOCKET = re.compile(r"socket:\[(\d+)\]")
_LONGEST_LOOK = 2.0  # a process can open very many files
_IPV4 = 4
_LINUX = sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class Listener:
    """A port, the addresses at which it may be connected to, and whose it is."""

    port: int
    addresses: tuple[str, ...]
    process: str


def listeners() -> list[Listener]:
    """Return who listens, by port, one for each; blocks for some milliseconds."""
    by_port: dict[int, Listener] = {}
    for one in _on_linux() if _LINUX else _elsewhere():
        known = by_port.setdefault(one.port, one)
        addresses = tuple(dict.fromkeys((*known.addresses, *one.addresses)))
        by_port[one.port] = replace(known, addresses=addresses)
    return [by_port[port] for port in sorted(by_port)]


class Looks:
    """Looks who listens, in one thread at a time: once for all who ask before that is begun.

    A look costs some hundredths of a second for all processes that there are, and who shows a port
    to many is asked for many connections at once: by looks of their own these took the threads of
    all else that execd does.
    """

    def __init__(self) -> None:
        self._looking = asyncio.Lock()
        self._next: asyncio.Task[list[Listener]] | None = None

    async def listeners(self) -> list[Listener]:
        """Return who listens, as it was at some time after the call."""
        if self._next is None:
            self._next = asyncio.create_task(self._look(), name="look who listens")
        return await asyncio.shield(self._next)

    async def listener(self, port: int) -> Listener | None:
        """Return who listens on a port, if that is one of ours."""
        return next((one for one in await self.listeners() if one.port == port), None)

    async def _look(self) -> list[Listener]:
        async with self._looking:
            self._next = None
            return await asyncio.to_thread(listeners)


def _on_linux() -> Iterator[Listener]:
    sockets = _listening_sockets()
    end = time.monotonic() + _LONGEST_LOOK
    for pid in processes.descendants():
        for inode in _open_sockets(pid):
            if inode in sockets:
                port, addresses = sockets[inode]
                yield Listener(port, addresses, _name(pid))
            if time.monotonic() > end:
                return


def _listening_sockets() -> Mapping[str, tuple[int, tuple[str, ...]]]:
    """Return port and addresses of each socket that the loopback reaches, by its inode."""
    listening = list(_listening())
    # Who listens at ``::`` in both ways keeps others from the port in IPv4. Where somebody has it
    # there, ``::`` is of IPv6 alone, and 127.0.0.1 would lead to that somebody.
    in_ipv4 = {port for _, host, port in listening if _plain(host).version == _IPV4}
    found = {}
    for inode, host, port in listening:
        reached = ("::1",) if host == "::" and port in in_ipv4 else _reached(host)
        if reached:
            found[inode] = port, reached
    return found


def _listening() -> Iterator[tuple[str, str, int]]:
    """Yield inode, address and port of each socket that listens."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError), Path(f"/proc/self/net/{table}").open() as lines:
            next(lines, None)  # the names of the columns
            for fields in map(str.split, lines):
                local, state, inode = fields[1], fields[3], fields[9]
                host, _, port = local.partition(":")
                if state == _LISTENS:
                    yield inode, _address(host), int(port, 16)


def _address(written: str) -> str:
    # Words of four bytes, each in this machine's own order.
    words = [int(written[at : at + 8], 16) for at in range(0, len(written), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return str(ipaddress.ip_address(packed))


def _reached(host: str) -> tuple[str, ...]:
    """Return at which addresses of the loopback one reaches who listens at ``host``, if any."""
    if host == "::":
        return "127.0.0.1", "::1"  # of IPv6 alone or of both, where there is a loopback of it
    address = _plain(host)
    if address.is_unspecified:
        return ("127.0.0.1",)
    return (str(address),) if address.is_loopback else ()


def _plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an address, one of IPv4 also where it is written as one of IPv6."""
    address = ipaddress.ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address


def _open_sockets(pid: int) -> Iterator[str]:
    with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with suppress(OSError):  # closed meanwhile
                match = _SOCKET.fullmatch(os.readlink(entry.path))  # noqa: PTH115 - a path would cost more
                yield match[1] if match else ""


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _elsewhere() -> Iterator[Listener]:
    import psutil  # noqa: PLC0415 - only where there is no /proc

    for pid in processes.descendants():
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN and (reached := _reached(one.laddr.ip)):
                    yield Listener(one.laddr.port, reached, process.name())
