"""Which hosts we answer as, and where a request says it comes from."""

import hashlib
import hmac
import ipaddress
import time
from collections import deque
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from itsdangerous import BadSignature, TimestampSigner
from pydantic import SecretStr
from starlette.types import Scope

from greylag.common.net import is_loopback
from greylag.config import Settings
from greylag.domain.errors import ForbiddenError, LimitExceededError, UnauthorizedError
from greylag.domain.users import OPERATOR, Principal

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


# Who asks: the bearer token of clients, and the signed cookie of a browser that has signed in.
#
# Stateless: the cookie is signed with a key made from the token, so every web process knows it, and
# a new token ends all sign-ins.

SIGN_IN = "/sign-in"
COOKIE = "greylag_sign_in"
COOKIE_SECONDS = 30 * 24 * 3600
MAX_FAILURES = 20
FAILURE_WINDOW_SECONDS = 60.0
_MAX_CLIENTS = 10_000
_BEARER = b"bearer "


class Attempts:
    """Counts the wrong tokens of each client, so that nobody can try many.

    It remembers the 10,000 clients that failed last, in this process only.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._failures: dict[str, deque[float]] = {}

    def check(self, client: str) -> None:
        """Raise ``LimitExceededError`` after 20 failures within the last minute."""
        times = self._failures.get(client)
        if times is not None and len(times) == MAX_FAILURES:
            waited = self._monotonic() - times[0]
            if waited < FAILURE_WINDOW_SECONDS:
                raise LimitExceededError(
                    "Too many wrong tokens came from this address.", hint="Try again in a minute."
                )

    def failed(self, client: str) -> None:
        """Count one wrong token."""
        times = self._failures.pop(client, None) or deque(maxlen=MAX_FAILURES)
        times.append(self._monotonic())
        self._failures[client] = times
        if len(self._failures) > _MAX_CLIENTS:
            del self._failures[next(iter(self._failures))]


class Authenticator:
    """Tells who makes a request. Without a token everyone is the operator (loopback only)."""

    def __init__(self, token: SecretStr | None, attempts: Attempts) -> None:
        self._token = token.get_secret_value().encode() if token is not None else None
        key = hashlib.sha256(b"greylag sign-in cookie\0" + (self._token or b"")).digest()
        self._signer = TimestampSigner(key, salt="greylag.sign-in", digest_method=hashlib.sha256)
        self._attempts = attempts

    @property
    def needed(self) -> bool:
        """Whether anyone has to sign in at all."""
        return self._token is not None

    def principal(self, scope: Scope) -> Principal:
        """Return who asks. Raises ``UnauthorizedError``, or ``LimitExceededError`` for guessing."""
        if self._token is None:
            return OPERATOR
        given = values(scope, b"authorization")
        if given:
            return self._of_bearer(given[0], f"bearer {client_of(scope)}")
        if any(self._is_ours(cookie) for cookie in _cookies(scope)):
            return OPERATOR
        raise UnauthorizedError("The request does not say who it comes from.")

    def sign_in(self, token: str, scope: Scope) -> str:
        """Return the cookie's value for the right token; raises as ``principal`` does."""
        self._check(token.encode(errors="replace"), f"form {client_of(scope)}")
        return self._signer.sign(OPERATOR.name).decode()

    def _of_bearer(self, header: bytes, client: str) -> Principal:
        if header[: len(_BEARER)].lower() != _BEARER:
            raise UnauthorizedError("The Authorization header is not of the form `Bearer TOKEN`.")
        self._check(header[len(_BEARER) :].strip(), client)
        return OPERATOR

    def _check(self, token: bytes, client: str) -> None:
        if self._token is None:
            return
        self._attempts.check(client)
        # Digests have one length, so that the time tells nothing of the token's.
        wanted, given = (hashlib.sha256(value).digest() for value in (self._token, token))
        if not hmac.compare_digest(wanted, given):
            self._attempts.failed(client)
            raise UnauthorizedError("The token is not the right one.")

    def _is_ours(self, cookie: str) -> bool:
        try:
            self._signer.unsign(cookie, max_age=COOKIE_SECONDS)
        except BadSignature:
            return False
        return True


def client_of(scope: Scope) -> str:
    """Return the address that the request came from."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _cookies(scope: Scope) -> list[str]:
    found = []
    for header in values(scope, b"cookie"):
        for part in header.decode("latin-1").split(";"):
            name, _, value = part.strip().partition("=")
            if name == COOKIE:
                found.append(value.strip('"'))
    return found
