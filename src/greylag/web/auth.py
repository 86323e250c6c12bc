"""Who asks: the bearer token of clients, the signed cookie of a browser, and the page to sign in.

Cookies and sign-in links are signed with a key made from the token: every web process knows them,
and a new token ends them all. Each holds an id. What must not count any more though its signature
is good, a sign-in that was ended or a link that was used, is kept in the store by that id until it
runs out, for every process. So signing in writes nothing, and one look by a key tells the rest.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Depends, Form, Query, Request
from itsdangerous import BadSignature, TimestampSigner
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from greylag.common.net import client_of
from greylag.config import Settings
from greylag.domain.audit import AuditAction, anonymous
from greylag.domain.errors import ConfigError, GreylagError, LimitExceededError, UnauthorizedError
from greylag.domain.users import OPERATOR, Principal
from greylag.services.access import MAX_REASON_LENGTH
from greylag.services.people import SESSION_FORM
from greylag.services.tokens import is_token
from greylag.services.use_cases import UseCases
from greylag.web import errors
from greylag.web.addresses import address, root_path
from greylag.web.dashboard.pages import form_alone, respond

SIGN_IN = "/sign-in"
SIGN_OUT = "/sign-out"
SIGN_OUT_AT_PROVIDER = "/auth/sign-out"
REASON_HEADER = "x-greylag-reason"
COOKIE = "greylag_sign_in"
COOKIE_SECONDS = 30 * 24 * 3600
LINK_SECONDS = 24 * 3600
MAX_FAILURES = 20
FAILURE_WINDOW_SECONDS = 60.0
_MAX_COUNTED = 10_000
_LONGEST_PATH = 2000
_MOST_SIGN_INS = 4
_PREFIX_BYTES = 8
_BEARER = "bearer "
_SECURE = frozenset({"https", "wss"})
# A path of ours: never "//host" or "/\host", which a browser takes for another site.
_OWN_PATH = re.compile(r"/(?:[!-.0-\[\]-~][!-\[\]-~]*)?")

_log = structlog.get_logger(__name__)


class WrongTokens:
    """Counts wrong tokens, by the client's address and by how they begin.

    The right token is found right before anything is counted, so nobody's guesses lock it out. It
    remembers the 10,000 addresses and beginnings that failed last, in this process only.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._failures: dict[str, deque[float]] = {}

    def count(self, client: str, token: bytes) -> None:
        """Count one wrong token.

        Raises:
            LimitExceededError: there were 20 within the last minute from this address, or 20 that
                began as this one does, wherever they came from.
        """
        # A beginning may be that of a mistyped right one: nothing of it is kept.
        beginning = hashlib.sha256(token[:_PREFIX_BYTES]).hexdigest()
        if self.is_beyond(client):
            raise LimitExceededError(
                "Too many wrong tokens came from this address.", hint="Try again in a minute."
            )
        if self.is_beyond(beginning):
            raise LimitExceededError(
                "Too many wrong tokens began like this one.", hint="Try again in a minute."
            )

    def is_beyond(self, key: str) -> bool:
        """Count one try of ``key``, and tell whether there were 20 within the last minute."""
        now = self._monotonic()
        times = self._failures.pop(key, None) or deque(maxlen=MAX_FAILURES)
        beyond = len(times) == MAX_FAILURES and now - times[0] < FAILURE_WINDOW_SECONDS
        if not beyond:
            times.append(now)
        self._failures[key] = times
        if len(self._failures) > _MAX_COUNTED:
            del self._failures[next(iter(self._failures))]
        return beyond


@dataclass(frozen=True, slots=True)
class Signed:
    """A cookie or link whose signature is good: its name in the store, when it was made, and when
    it runs out.
    """

    name: str
    at: datetime
    until: datetime


class Signatures:
    """Makes and reads the cookies and sign-in links of one token."""

    def __init__(self, token: SecretStr) -> None:
        secret = token.get_secret_value().encode()
        key = hashlib.sha256(b"greylag sign-in cookie\0" + secret).digest()
        self._cookies = TimestampSigner(key, salt="greylag.cookie", digest_method=hashlib.sha256)
        self._links = TimestampSigner(key, salt="greylag.link", digest_method=hashlib.sha256)

    def cookie(self) -> str:
        """Return the cookie's value for a new sign-in."""
        return self._cookies.sign(secrets.token_urlsafe(16)).decode()

    def link(self, address: str) -> str:
        """Return a link to the site at ``address`` that signs one browser in, within a day.

        It stands in the fragment, which browsers send to nobody.
        """
        return f"{address}{SIGN_IN}#token={self._links.sign(secrets.token_urlsafe(16)).decode()}"

    def read_cookie(self, value: str) -> Signed | None:
        """Return what a cookie's value says, ``None`` when it is not ours or has run out."""
        return _read(self._cookies, value.encode(errors="replace"), "cookie", COOKIE_SECONDS)

    def read_link(self, given: bytes) -> Signed | None:
        """Return what stands in a link, ``None`` when it is not ours or has run out."""
        return _read(self._links, given, "link", LINK_SECONDS)


def _read(signer: TimestampSigner, value: bytes, kind: str, seconds: int) -> Signed | None:
    try:
        held, signed_at = signer.unsign(value, return_timestamp=True)
    except BadSignature:
        return None
    if not is_current(signed_at, seconds, signer.get_timestamp()):
        return None
    until = signed_at + timedelta(seconds=seconds)
    return Signed(f"{kind} {held.decode()}", signed_at, until)


def is_current(signed_at: datetime, seconds: int, now: float) -> bool:
    """Tell whether what was signed then, to be good for ``seconds``, is so ``now`` (Unix seconds).

    What was signed at a moment that is still to come is, for as long before it: the web that signed
    it has a clock that is ahead of ours, be it by a second, or our own was set back since.
    """
    return abs(now - signed_at.timestamp()) <= seconds


class Authenticator:
    """Tells who makes a request. With ``GREYLAG_AUTH=none`` everyone is the operator.

    Raises:
        ConfigError: there is no token, and nobody has said that none is wanted.
    """

    def __init__(self, settings: Settings, use_cases: UseCases) -> None:
        if settings.token is None and settings.auth != "none":
            raise ConfigError("There is no token that says who may come in: set GREYLAG_TOKEN.")
        self._token = settings.token
        self._signatures = Signatures(settings.token) if settings.token else None
        self._revocations = use_cases.store
        self._people = use_cases.people
        self._tokens = use_cases.tokens
        self._audit = use_cases.audit
        self._wrong = WrongTokens()

    @property
    def needed(self) -> bool:
        """Whether anyone has to sign in at all."""
        return self._token is not None

    async def principal(self, scope: Scope) -> Principal:
        """Return who asks.

        Raises:
            UnauthorizedError: nobody is named, or wrongly.
            LimitExceededError: too many wrong tokens came from there.
            StoreUnavailableError: it cannot be told whether a sign-in was ended.
        """
        if not self.needed:
            return _operator(scope)
        if (given := Headers(scope=scope).get("authorization")) is not None:
            return await self._of_bearer(given, scope)
        if (found := await self.signed_in(scope)) is not None:
            return found
        raise UnauthorizedError("The request does not say who it comes from.")

    def ending(self, scope: Scope, principal: Principal) -> Hashable | None:
        """Return what tells the sign-in that ``principal`` came in by from others; ``None`` for one
        that no one can end while this process lives.
        """
        given = Headers(scope=scope).get("authorization")
        if principal == OPERATOR and (given is not None or not self.needed):
            return None
        return given or tuple(_sign_in_cookies(scope))

    async def again(self, scope: Scope, before: Principal) -> Principal:
        """Return who asks now, by what ``before`` came in by. Nothing is counted as a guess.

        Raises:
            UnauthorizedError: it does not count any more.
            StoreUnavailableError: it cannot be told.
        """
        if (given := Headers(scope=scope).get("authorization")) is None:
            found = await self.signed_in(scope)
        else:
            found = await self._tokens.principal(_token_in(given), client_of(scope))
        if found is None or (found.user_id, found.via) != (before.user_id, before.via):
            raise UnauthorizedError("The token or sign-in does not count any more.")
        return found

    async def signed_in(self, scope: Scope) -> Principal | None:
        """Return whom a cookie names whose sign-in has not ended, ``None`` where none does."""
        for one in self._sign_ins(scope):
            if not await self._revocations.is_revoked(one.name, one.at):
                sign_in = f"{one.name} {int(one.at.timestamp())}"
                return replace(_operator(scope), sign_in=sign_in)
        for secret in _sessions(scope):
            if (found := await self._people.by_session(secret, client_of(scope))) is not None:
                return found
        return None

    def is_token(self, authorization: str) -> bool:
        """Tell whether an Authorization header holds the token, or what has the form of a user's:
        nothing that others may be told.
        """
        try:
            text = _token_in(authorization)
        except UnauthorizedError:
            return False
        return self._is_right(text.encode("latin-1")) or is_token(text)

    def is_sign_in(self, value: str) -> bool:
        """Tell the same of a cookie's value."""
        value = value.strip('"')
        signed = self._signatures is not None and self._signatures.read_cookie(value) is not None
        return signed or SESSION_FORM.fullmatch(value) is not None

    async def sign_in(self, given: str, scope: Scope) -> str:
        """Return a new cookie's value for the right token, or for a link that nobody has used.

        Whatever sign-in the browser had before is ended. It fails as ``principal`` does.
        """
        token = given.encode(errors="replace")
        if self._signatures is None:
            return ""
        if not self._is_right(token) and not await self._use_link(token):
            try:
                self._wrong.count(client_of(scope), token)
            finally:
                await self._audit.refused(
                    anonymous(client_of(scope)),
                    AuditAction.SESSION_START,
                    "",
                    UnauthorizedError.code,
                )
            raise UnauthorizedError(
                "This is not the token, or a link that has been used or is older than a day.",
                hint="Each start of Greylag prints a new link.",
            )
        await self.sign_out(scope)
        await self._audit.append(self._audit.event(_operator(scope), AuditAction.SESSION_START, ""))
        return self._signatures.cookie()

    async def sign_out(self, scope: Scope) -> None:
        """End the sign-in that the browser has, for every process; nothing if it has none."""
        for one in self._sign_ins(scope):
            ended = self._audit.event(_operator(scope), AuditAction.SESSION_END, "")
            await self._revocations.revoke(one.name, one.until, datetime.now(UTC), audit=ended)
        for secret in _sessions(scope):
            await self._people.end_session(secret, client_of(scope))

    async def _of_bearer(self, header: str, scope: Scope) -> Principal:
        text = _token_in(header)
        token = text.encode("latin-1")
        if self._is_right(token):
            return _operator(scope)
        client = client_of(scope)
        found = await self._tokens.principal(text, client)
        if found is None:
            self._wrong.count(client, token)
            raise UnauthorizedError("The token is not the right one, or does not count any more.")
        return found

    def _is_right(self, token: bytes) -> bool:
        wanted = self._token.get_secret_value().encode() if self._token else b""
        # Digests have one length, so that the time tells nothing of the token's.
        digests = (hashlib.sha256(value).digest() for value in (wanted, token))
        return self.needed and hmac.compare_digest(*digests)

    async def _use_link(self, given: bytes) -> bool:
        link = self._signatures.read_link(given) if self._signatures else None
        if link is None or await self._revocations.is_revoked(link.name, link.at):
            return False
        return await self._revocations.revoke(link.name, link.until, datetime.now(UTC))

    def _sign_ins(self, scope: Scope) -> list[Signed]:
        if self._signatures is None:
            return []
        read = [self._signatures.read_cookie(value) for value in _sign_in_cookies(scope)]
        return [one for one in read if one is not None]


def with_reason(principal: Principal, scope: Scope) -> Principal:
    """Return an administrator with the reason that their request gives, if it does."""
    reason = Headers(scope=scope).get(REASON_HEADER, "").strip()
    given = reason and principal.is_admin
    return replace(principal, reason=reason[:MAX_REASON_LENGTH]) if given else principal


def _operator(scope: Scope) -> Principal:
    return replace(OPERATOR, address=client_of(scope))


def _token_in(header: str) -> str:
    if header[: len(_BEARER)].lower() != _BEARER:
        raise UnauthorizedError("The Authorization header is not of the form `Bearer TOKEN`.")
    return header[len(_BEARER) :].strip()


@dataclass(frozen=True, slots=True)
class Cookie:
    """A cookie of ours, which no script can read.

    Attributes:
        plain: its name, without what is put before it behind TLS.
        below: the path to which alone it is sent; "": to all.
        same_site: whether it is sent when another site leads here (lax) or not.
    """

    plain: str
    below: str = ""
    same_site: Literal["strict", "lax"] = "strict"

    def name(self, scope: Scope) -> str:
        """Return its name: behind TLS one that no plain page can set and, at the root of a host, no
        other host either. Browsers keep that promise only for cookies of a whole host.
        """
        if scope["scheme"] not in _SECURE:
            return self.plain
        return f"__Secure-{self.plain}" if root_path() or self.below else f"__Host-{self.plain}"

    def give(self, response: Response, scope: Scope, value: str, seconds: int) -> None:
        """Have the browser keep it, with ``value``, for so long."""
        response.set_cookie(
            self.name(scope),
            value,
            max_age=seconds,
            path=root_path() + self.below or "/",
            httponly=True,
            samesite=self.same_site,
            secure=scope["scheme"] in _SECURE,
        )

    def take_back(self, response: Response, scope: Scope) -> None:
        """Have the browser forget it."""
        self.give(response, scope, "", 0)


SIGN_IN_COOKIE = Cookie(COOKIE)


def _sessions(scope: Scope) -> list[str]:
    """Return the secrets of sessions that the browser has."""
    return [value for value in _sign_in_cookies(scope) if SESSION_FORM.fullmatch(value)]


def cookies(scope: Scope) -> list[tuple[str, str]]:
    """Return name and value of every cookie that came, as they came."""
    parts = [
        part.strip().partition("=")
        for header in Headers(scope=scope).getlist("cookie")
        for part in header.split(";")
    ]
    return [(name, value) for name, _, value in parts if name]


def _sign_in_cookies(scope: Scope) -> list[str]:
    """Return the first values of our cookie: another port of this host may have set one too, and
    each may cost a question to the store.
    """
    ours = SIGN_IN_COOKIE.name(scope)
    values = dict.fromkeys(value.strip('"') for name, value in cookies(scope) if name == ours)
    return list(values)[:_MOST_SIGN_INS]


# The page where a browser gives the token or its link, and gets the cookie for it.

router = APIRouter(include_in_schema=False)


async def _authenticator(request: Request) -> Authenticator:
    found: Authenticator = request.app.state.authenticator
    return found


AuthenticatorDep = Annotated[Authenticator, Depends(_authenticator)]


@router.get(SIGN_IN)
async def show_sign_in(
    request: Request,
    authenticator: AuthenticatorDep,
    wanted: Annotated[str, Query(alias="next")] = "/",
) -> Response:
    """Show the form, unless nobody has to sign in."""
    if not authenticator.needed:
        return RedirectResponse(address("/"), status_code=303)
    return sign_in_page(request, wanted)


@router.post(SIGN_IN, dependencies=[Depends(form_alone)])
async def sign_in(
    request: Request,
    authenticator: AuthenticatorDep,
    token: Annotated[str, Form()] = "",
    wanted: Annotated[str, Form(alias="next")] = "/",
) -> Response:
    """Give a new cookie for the right token, and lead to the page that was wanted."""
    response = RedirectResponse(address(own_path(wanted)), status_code=303)
    try:
        cookie = await authenticator.sign_in(token.strip(), request.scope)
    except (UnauthorizedError, LimitExceededError) as error:
        # Whoever opens a used link again in the same browser is there already.
        if await authenticator.signed_in(request.scope) is not None:
            return response
        return sign_in_page(request, wanted, error, by_token=True)
    if authenticator.needed:
        SIGN_IN_COOKIE.give(response, request.scope, cookie, COOKIE_SECONDS)
    return response


@router.post(SIGN_OUT)
async def sign_out(request: Request, authenticator: AuthenticatorDep) -> Response:
    """End the sign-in on the server, and take the cookie back; then at the provider, if any."""
    await authenticator.sign_out(request.scope)
    after = SIGN_IN if request.app.state.use_cases.sign_in is None else SIGN_OUT_AT_PROVIDER
    response = RedirectResponse(address(after), status_code=303)
    SIGN_IN_COOKIE.take_back(response, request.scope)
    return response


def sign_in_page(
    request: Request,
    wanted: str,
    error: GreylagError | None = None,
    *,
    by_token: bool = False,
) -> Response:
    """Return the page to sign in at, with what went wrong; ``by_token``: with the form open."""
    service = request.app.state.use_cases.sign_in
    known = error.info if error else None
    return respond(
        "sign_in.html",
        status=errors.status_of(known) if known else 200,
        next=own_path(wanted),
        error=known,
        provider=service and service.provider.name,
        by_token=by_token,
    )


def own_path(wanted: str) -> str:
    """Return a path of this site: the one that was wanted, or that of its first page."""
    return wanted if len(wanted) <= _LONGEST_PATH and _OWN_PATH.fullmatch(wanted) else "/"
