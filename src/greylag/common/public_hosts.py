"""Which hosts may be reached for users who name them: those at public addresses, and those that the
operator has named. So no user's address leads into the operator's own network.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from greylag.common.net import Proxy

_THREADS = 4
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""By whose addresses IPv6 reaches those of IPv4, which are their last 32 bits (RFC 6052)."""
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291, section 2.4


class NotPublicError(OSError):
    """A host has an address that is not public, and the operator has not named it."""


class NamedHosts:
    """The hosts that the operator has named, which may have any address.

    Args:
        named: each a host, with a port or for any; with ``http://`` before it, it is spoken to
            without TLS.
    """

    def __init__(self, named: Sequence[str] = ()) -> None:
        plain = {one.removeprefix("http://") for one in named if one.startswith("http://")}
        self._plain = frozenset(plain)
        self._named = frozenset(one.removeprefix("http://") for one in named)

    def origin(self, host: str) -> str:
        """Return the scheme and authority of a host."""
        return f"http://{host}" if host in self._plain else f"https://{host}"

    def is_plain(self, url: URL) -> bool:
        """Tell whether the operator has named the host of an address as one without TLS."""
        return not {url.host, f"{url.host}:{url.port}"}.isdisjoint(self._plain)

    def check(self, host: str, port: int, addresses: Sequence[str]) -> None:
        """Raise ``NotPublicError`` for a host that may not be reached at these addresses."""
        if {host, f"{host}:{port}"} & self._named:
            return
        if not all(map(is_public, addresses)):
            raise NotPublicError(f"{host} has an address that is not public")

    def check_literal(self, url: URL) -> None:
        """Check an address that stands for itself, which no resolver is asked for. Numbers that are
        written otherwise than addresses are, as 127.1, lead nowhere.
        """
        host = str(url.host)
        if ":" in host or host.replace(".", "").isdigit():
            self.check(host, url.port or 443, [host])


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the Internet's, and leads to no other one."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        # Beside these all that is the Internet's is in there.
        if inner is None and found not in _GLOBAL_UNICAST:
            return False
        found = inner or found
    return found.is_global and not found.is_multicast


class PublicResolver(AbstractResolver):
    """Finds addresses, and refuses those that may not be reached: what is checked is what is
    connected to.

    It has threads of its own: users may name hosts whose name servers never answer, and those of
    the loop are for the hosts that all others ask for.

    Args:
        hosts: the hosts that may have any address.
        proxies: the variables that name proxies (``proxy_variables``): those may have any, too, and
            ``check_name`` is for what they would be asked for.
        threads: how many names are looked up at once.
    """

    def __init__(
        self, hosts: NamedHosts, proxies: Mapping[str, str] | None = None, threads: int = _THREADS
    ) -> None:
        self._hosts = hosts
        named = [one for name, one in (proxies or {}).items() if name != "NO_PROXY"]
        urls = [URL(Proxy.parse(one).url) for one in named]
        self._proxies = frozenset((url.host, url.port) for url in urls)
        self._threads = ThreadPoolExecutor(threads, "names that users gave")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host."""
        found = await self._found(host, port, family)
        if (host, port) not in self._proxies:
            self._hosts.check(host, port, [one["host"] for one in found])
        return found

    async def check_name(self, url: URL) -> None:
        """Raise ``NotPublicError`` for what a proxy would be asked for, as far as its address is
        known here.
        """
        host, port = url.host or "", url.port or 0
        try:
            found = await self._found(host, port, socket.AF_UNSPEC)
        except OSError:
            return  # the proxy may know it
        self._hosts.check(host, port, [one["host"] for one in found])

    async def close(self) -> None:
        """Let the threads end; one that still waits for a name server ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _found(
        self, host: str, port: int, family: socket.AddressFamily
    ) -> list[ResolveResult]:
        asking = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        infos = await asyncio.get_running_loop().run_in_executor(self._threads, asking)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=of_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for of_family, _, protocol, _, address in infos
        ]
