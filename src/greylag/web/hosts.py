"""Which hosts we answer as, and where a request says it comes from."""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import Scope

from greylag.config import Settings, is_loopback
from greylag.domain.errors import ForbiddenError

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FOREIGN_SITES = frozenset({b"cross-site", b"same-site"})


class AllowedHosts:
    """The hosts that a request may name.

    A page of another site can make a name of its own point here (DNS rebinding) and then read
    answers as its own; it cannot choose the name that its browser sends. So only known names are
    answered: this machine's, the bound one, and those of the settings. An address cannot be
    rebound, so once we are bound beyond loopback any address will do (probes use one).
    """

    def __init__(self, settings: Settings) -> None:
        named = (settings.host, *settings.allowed_hosts.split(","))
        self._names = {_bare(name.strip().lower()) for name in named} - {""}
        self._any_address = not is_loopback(settings.host)

    def check(self, scope: Scope) -> None:
        """Raise ``ForbiddenError`` unless Host, Origin and Sec-Fetch-Site are as they must be."""
        host = _only(scope, b"host")
        if host is None or not self._allows(host):
            raise ForbiddenError(f"Greylag does not answer to the host {_shown(host)}.")
        unsafe = scope["method"] not in SAFE_METHODS
        origin = _only(scope, b"origin")
        if origin is not None:
            self._check_origin(origin, host, unsafe=unsafe)
        if unsafe and any(site in _FOREIGN_SITES for site in values(scope, b"sec-fetch-site")):
            raise ForbiddenError("Another site's page may not change anything here.")

    def _check_origin(self, origin: str, host: str, *, unsafe: bool) -> None:
        scheme, _, authority = origin.partition("://")
        if scheme not in _DEFAULT_PORTS or not self._allows(authority):
            raise ForbiddenError(f"Requests from pages of {_shown(origin)} are not taken.")
        default = _DEFAULT_PORTS[scheme]
        if unsafe and _split(authority, default) != _split(host, default):
            raise ForbiddenError(
                f"A page of {_shown(origin)} may not change anything at {_shown(host)}."
            )

    def _allows(self, authority: str) -> bool:
        name, _ = _split(authority, None)
        if name in self._names or is_loopback(name):
            return True
        return self._any_address and _is_address(name)


def values(scope: Scope, name: bytes) -> Sequence[bytes]:
    """Return the values of every header called ``name`` (lower case)."""
    return [value for key, value in scope["headers"] if key == name]


def _only(scope: Scope, name: bytes) -> str | None:
    """Return the header's value, ``None`` if there is none; two are refused."""
    found = values(scope, name)
    if len(found) > 1:
        raise ForbiddenError(f"The request has {len(found)} {name.decode()} headers.")
    return found[0].decode("latin-1").lower() if found else None


def _split(authority: str, default_port: int | None) -> tuple[str, int | None]:
    """Return host and port of ``host[:port]``; an empty host for one that is malformed."""
    try:
        parts = urlsplit(f"//{authority}")
        port = parts.port or default_port
    except ValueError:
        return "", default_port
    plain = parts.netloc == authority and "@" not in authority
    return (parts.hostname or "") if plain else "", port


def _bare(host: str) -> str:
    return host.removeprefix("[").removesuffix("]")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _shown(text: str | None) -> str:
    return "(none)" if text is None else repr(text[:100])
