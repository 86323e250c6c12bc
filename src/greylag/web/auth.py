"""Who asks: the bearer token of clients, and the signed cookie of a browser that has signed in.

Stateless: the cookie is signed with a key made from the token, so every web process knows it, and a
new token ends all sign-ins.
"""

import hashlib
import hmac
import time
from collections import deque
from collections.abc import Callable

from itsdangerous import BadSignature, TimestampSigner
from pydantic import SecretStr
from starlette.types import Scope

from greylag.domain.errors import LimitExceededError, UnauthorizedError
from greylag.domain.users import OPERATOR, Principal
from greylag.web.hosts import values

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
