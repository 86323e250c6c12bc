"""Small facts of networks and HTTP that several programs need: who is here, what is passed on."""

import ipaddress
import re
import uuid
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

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

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def is_loopback(host: str) -> bool:
    """Tell whether ``host`` (a name or an address, no port) can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


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
