"""Who asks: the bearer token of clients, the signed cookie of a browser, and the page to sign in.

Stateless: the cookie is signed with a key made from the token, so every web process knows it, and
a new token ends all sign-ins.
"""

import hashlib
import hmac
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request
from itsdangerous import BadSignature, TimestampSigner
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from greylag.domain.errors import GreylagError, LimitExceededError, UnauthorizedError
from greylag.domain.users import OPERATOR, Principal
from greylag.web import errors
from greylag.web.dashboard.pages import respond

SIGN_IN = "/sign-in"
COOKIE = "greylag_sign_in"
COOKIE_SECONDS = 30 * 24 * 3600
MAX_FAILURES = 20
FAILURE_WINDOW_SECONDS = 60.0
_MAX_CLIENTS = 10_000
_BEARER = "bearer "
# A path of ours: never "//host" or "/\host", which a browser takes for another site.
_OWN_PATH = re.compile(r"/(?:[!-.0-\[\]-~][!-\[\]-~]*)?")


class TokenAttempts:
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

    def __init__(self, token: SecretStr | None, attempts: TokenAttempts) -> None:
        self._token = token.get_secret_value().encode() if token is not None else None
        key = hashlib.sha256(b"greylag sign-in cookie\0" + (self._token or b"")).digest()
        self._signer = TimestampSigner(key, salt="greylag.sign-in", digest_method=hashlib.sha256)
        self._attempts = attempts

    @property
    def needed(self) -> bool:
        """Whether anyone has to sign in at all."""
        return self._token is not None

    async def principal(self, scope: Scope) -> Principal:
        """Return who asks.

        Raises:
            UnauthorizedError: nobody is named, or wrongly.
            LimitExceededError: too many wrong tokens came from there.
        """
        if self._token is None:
            return OPERATOR
        headers = Headers(scope=scope)
        if (given := headers.get("authorization")) is not None:
            return self._of_bearer(given, f"bearer {_client(scope)}")
        if any(self._is_ours(cookie) for cookie in _cookies(headers)):
            return OPERATOR
        raise UnauthorizedError("The request does not say who it comes from.")

    async def sign_in(self, token: str, scope: Scope) -> str:
        """Return the cookie's value for the right token; raises as ``principal`` does."""
        self._check(token.encode(errors="replace"), f"form {_client(scope)}")
        return self._signer.sign(OPERATOR.name).decode()

    def _of_bearer(self, header: str, client: str) -> Principal:
        if header[: len(_BEARER)].lower() != _BEARER:
            raise UnauthorizedError("The Authorization header is not of the form `Bearer TOKEN`.")
        self._check(header[len(_BEARER) :].strip().encode("latin-1"), client)
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


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _cookies(headers: Headers) -> list[str]:
    """Return every value of our cookie: another port of this host may have set one too."""
    found = []
    for header in headers.getlist("cookie"):
        for part in header.split(";"):
            name, _, value = part.strip().partition("=")
            if name == COOKIE:
                found.append(value.strip('"'))
    return found


# The page where a browser gives the token, and gets the cookie for it.

router = APIRouter(include_in_schema=False)


async def _authenticator(request: Request) -> Authenticator:
    found: Authenticator = request.app.state.authenticator
    return found


_AuthenticatorDep = Annotated[Authenticator, Depends(_authenticator)]


@router.get(SIGN_IN)
async def show_sign_in(
    authenticator: _AuthenticatorDep, wanted: Annotated[str, Query(alias="next")] = "/"
) -> Response:
    """Show the form, unless nobody has to sign in."""
    if not authenticator.needed:
        return RedirectResponse("/", status_code=303)
    return _sign_in_page(wanted)


@router.post(SIGN_IN)
async def sign_in(
    request: Request,
    authenticator: _AuthenticatorDep,
    token: Annotated[str, Form()] = "",
    wanted: Annotated[str, Form(alias="next")] = "/",
) -> Response:
    """Give the cookie for the right token, and lead to the page that was wanted."""
    try:
        cookie = await authenticator.sign_in(token.strip(), request.scope)
    except (UnauthorizedError, LimitExceededError) as error:
        return _sign_in_page(wanted, error)
    response = RedirectResponse(_own(wanted), status_code=303)
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=COOKIE_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/sign-out")
async def sign_out() -> Response:
    """Take the cookie back."""
    response = RedirectResponse(SIGN_IN, status_code=303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


def _sign_in_page(wanted: str, error: GreylagError | None = None) -> Response:
    known = error.info if error else None
    status = errors.status_of(known) if known else 200
    return respond("sign_in.html", status=status, next=_own(wanted), error=known)


def _own(wanted: str) -> str:
    return wanted if _OWN_PATH.fullmatch(wanted) else "/"
