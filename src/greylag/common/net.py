"""Small facts of networks and HTTP that several programs need: who is here, what is passed on, and
by which proxy the world is reached.
"""

import asyncio
import base64
import hmac
import ipaddress
import math
import re
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSSLError, StreamReader
    from aiohttp.web import Application, Request, StreamResponse

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Header names about one connection, which are never passed on (RFC 9110, section 7.6.1)."""

ASKED = frozenset({"http", "websocket"})
"""The types of ASGI scopes in which somebody asks for something."""

_MAPPED_BITS = 96
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def unmapped(host: str) -> str:
    """Return an IPv4 address as such also where a socket for both families writes it as IPv6;
    anything else as it is.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return host if mapped is None else str(mapped)


def client_of(scope: Mapping[str, Any]) -> str:
    """Return whom a request is told and counted of: an address, of IPv6 its network, since one
    client has all of that.
    """
    try:
        address = ipaddress.ip_address(unmapped((scope.get("client") or ("",))[0]))
    except (TypeError, ValueError):
        return "unknown"
    if address.version == 4:  # noqa: PLR2004 - of IP
        return str(address)
    return str(ipaddress.ip_network((int(address), 64), strict=False))


def network_of(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return a network, or an address as one of its own; IPv4 as such also where it is written as
    IPv6, as ``unmapped`` has it.

    Raises:
        ValueError: it is none.
    """
    found = ipaddress.ip_network(text)
    if isinstance(found, ipaddress.IPv4Network):
        return found
    mapped, bits = found.network_address.ipv4_mapped, found.prefixlen - _MAPPED_BITS
    return found if mapped is None else ipaddress.ip_network((mapped, bits))


def is_loopback(host: str) -> bool:
    """Tell whether ``host`` (a name or an address, no port) can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_confidential(address: str) -> bool:
    """Tell whether nobody on the way reads what is sent to an address: https, or this machine."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port  # which is looked at when it is asked for
    except ValueError:
        return False
    return bool(host) and (
        parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host or ""))
    )


@asynccontextmanager
async def on_loopback(app: "Application") -> AsyncIterator[int]:
    """Serve an application on a free port of loopback, which is yielded, until the block ends.

    Calls that run are ended a second later; bodies come as they were sent.
    """
    from aiohttp import web  # noqa: PLC0415 - the command line has this module, and serves nothing

    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=1.0,
        auto_decompress=False,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def streamed(
    request: "Request", answer: "ClientResponse", headers: Iterable[tuple[str, str]]
) -> "StreamResponse":
    """Answer a request with another's answer as it comes; what is cut off there is so here.

    Args:
        request: what is answered.
        answer: the other, of which nothing has been read.
        headers: those to pass on.
    """
    from aiohttp import ClientError, web  # noqa: PLC0415 - as above

    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    try:
        async for chunk in answer.content.iter_any():
            # It waits for a slow reader, so that nothing piles up here.
            await response.write(chunk)
        await response.write_eof()
    except (ClientError, TimeoutError):
        # An end would make the part look whole.
        if request.transport is not None:
            request.transport.abort()
    return response


def bears(authorization: str, token: str) -> bool:
    """Tell whether an ``Authorization`` header is just this bearer token."""
    given = authorization.encode("utf-8", "replace")
    return hmac.compare_digest(given, f"Bearer {token}".encode())


async def beginning(stream: "asyncio.StreamReader | StreamReader", most: int) -> bytes:
    """Return all that a stream says to its end, or the first ``most`` bytes of it."""
    try:
        return await stream.readexactly(most)
    except asyncio.IncompleteReadError as error:
        return error.partial


def why_refused(error: "ClientSSLError") -> str:
    """Return OpenSSL's words for why there is no TLS with the other side."""
    own = error.os_error
    if isinstance(own, ssl.SSLCertVerificationError):
        return own.verify_message.rstrip(".")
    return str(getattr(own, "reason", None) or own.strerror or "no TLS").replace("_", " ").lower()


def retry_after(asked: str, date: str = "") -> float | None:
    """Return the seconds that a ``Retry-After`` asks to wait, None for what is none (RFC 9110,
    section 10.2.3).

    Args:
        asked: seconds, with a fraction too, or a date.
        date: the answer's own ``Date``, where the other's clock is to count.
    """
    try:
        seconds = float(asked)
    except ValueError:
        until, now = _unix_seconds(asked), _unix_seconds(date)
        seconds = math.nan if until is None else until - (time.time() if now is None else now)
    return None if math.isnan(seconds) else max(0.0, seconds)


def _unix_seconds(date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return None
    return None if moment.tzinfo is None else moment.timestamp()


def end_to_end(headers: Mapping[str, str], without: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Return the headers that a relay passes on.

    Args:
        headers: as they came; a name may stand in it more than once.
        without: further names to leave out, in lower case.
    """
    named = {
        word.strip().lower()
        for name, value in headers.items()
        if name.lower() == "connection"
        for word in value.split(",")
    }
    dropped = HOP_BY_HOP | named | set(without)
    return [(name, value) for name, value in headers.items() if name.lower() not in dropped]


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the ``x-request-id`` of an ASGI request, or a new one where it has no harmless one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return uuid.uuid4().hex


def below(scope: MutableMapping[str, Any], prefix: str) -> MutableMapping[str, Any]:
    """Return an ASGI request's scope with ``prefix`` taken off its path, if the path has it.

    ``prefix`` begins with a slash and does not end in one.
    """
    path = scope["path"]
    if path != prefix and not path.startswith(f"{prefix}/"):
        return scope
    raw = scope.get("raw_path") or path.encode()
    rest = raw[len(prefix.encode()) :] or b"/"
    return {**scope, "path": path[len(prefix) :] or "/", "raw_path": rest}


# The way out: the proxies that the usual variables name.

PROXY_VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
"""In capitals; each counts in small letters too."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy for HTTP.

    Attributes:
        url: its address, without user and password, which may be shown.
        user: who it is to be told that we are; None: nobody.
        password: that user's.
    """

    url: str
    user: str | None = None
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, address: str) -> Self:
        """Return the proxy at ``address``, which may hold a user and a password.

        Raises:
            ValueError: it is no http or https address; the text does not repeat it.
        """
        try:
            parts = urlsplit(address if "://" in address else f"http://{address}")
            name, number = parts.hostname, parts.port
        except ValueError:  # whose words may be a part of a password
            parts, name, number = urlsplit(""), None, None
        # Past a sign that is not encoded the rest of a password is taken for a path.
        cut = "@" in parts.path + parts.query + parts.fragment
        if parts.scheme not in {"http", "https"} or not name or cut:
            raise ValueError(
                "must be an http or https address, as http://proxy.example:3128, and signs in a "
                "password percent-encoded"
            )
        host = f"[{name}]" if ":" in name else name
        port = f":{number}" if number else ""
        user = None if parts.username is None else unquote(parts.username)
        return cls(f"{parts.scheme}://{host}{port}", user, unquote(parts.password or ""))

    def auth_header(self) -> dict[str, str]:
        """Return the header that says who we are; none where nobody is to be named."""
        if self.user is None:
            return {}
        plain = f"{self.user}:{self.password}".encode()
        return {"Proxy-Authorization": f"Basic {base64.b64encode(plain).decode()}"}


def proxy_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return those of ``PROXY_VARIABLES`` that are set; small letters win, as everywhere."""
    found = {name: environ.get(name.lower()) or environ.get(name) for name in PROXY_VARIABLES}
    return {name: value.strip() for name, value in found.items() if value and value.strip()}


def proxy_for(url: str, variables: Mapping[str, str]) -> Proxy | None:
    """Return the proxy by which ``url`` is to be reached, None for straight there.

    Args:
        url: an http or https address.
        variables: as ``proxy_variables`` returns them.

    Raises:
        ValueError: what is set is no proxy for HTTP.
    """
    parts = urlsplit(url)
    address = variables.get(f"{parts.scheme.upper()}_PROXY") or variables.get("ALL_PROXY")
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    excepted = variables.get("NO_PROXY", "")
    if address is None or any(_excepts(one.strip(), host, port) for one in excepted.split(",")):
        return None
    return Proxy.parse(address)


def _excepts(entry: str, host: str, port: int) -> bool:
    """Tell whether an entry of NO_PROXY (a name, a suffix, an address, a CIDR, ``*``) means it."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        name, _, at = entry.lower().rpartition(":")
        if not at.isdigit() or (":" in name and not name.endswith("]")):
            name, at = entry.lower(), ""
        name = name.strip("[]").removeprefix("*").lstrip(".")
        everything = entry == "*"
        meant = bool(name) and (host == name or host.endswith(f".{name}"))
        return everything or (meant and at in {"", str(port)})
