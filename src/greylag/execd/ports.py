"""Which ports of the loopback the processes that execd started listen on.

Others are not told of, and not connected to: what else listens there, agentd's own port in a pod
or this machine's services beside a laptop's sandbox, is not the agent's to show.
"""

import ipaddress
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from greylag.execd import processes

_LISTENS = "0A"  # TCP_LISTEN, in proc_net(5)
_SOCKET = re.compile(r"socket:\[(\d+)\]")
_LONGEST_LOOK = 2.0  # a process can open very many files
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
        by_port.setdefault(one.port, one)
    return [by_port[port] for port in sorted(by_port)]


def listener(port: int) -> Listener | None:
    """Return who listens on a port, if that is one of ours."""
    return next((one for one in listeners() if one.port == port), None)


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
    found = {}
    for table in ("tcp", "tcp6"):
        with suppress(OSError), Path(f"/proc/self/net/{table}").open() as lines:
            next(lines, None)  # the names of the columns
            for fields in map(str.split, lines):
                local, state, inode = fields[1], fields[3], fields[9]
                host, _, port = local.partition(":")
                if state == _LISTENS and (reached := _reached(_address(host))):
                    found[inode] = int(port, 16), reached
    return found


def _address(written: str) -> str:
    # Words of four bytes, each in this machine's own order.
    words = [int(written[at : at + 8], 16) for at in range(0, len(written), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return str(ipaddress.ip_address(packed))


def _reached(host: str) -> tuple[str, ...]:
    """Return at which addresses of the loopback one reaches who listens at ``host``, if any."""
    address = ipaddress.ip_address(host)
    if address == ipaddress.ip_address("::"):
        return "127.0.0.1", "::1"  # of IPv6 alone or of both, where there is a loopback of it
    mapped = getattr(address, "ipv4_mapped", None) or address
    if mapped.is_unspecified:
        return ("127.0.0.1",)
    return (str(mapped),) if mapped.is_loopback else ()


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
