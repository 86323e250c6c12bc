"""Signing in by an identity provider: the browser's way there and back, and what the provider tells
by itself.

A sign-in under way is kept by the browser that began it, in a signed cookie named by its state, so
any process may end what another began. The nonce and PKCE's verifier are made of the state by a key
that only Greylag has. The store remembers which states were used.

That cookie is SameSite=Lax: the provider's answer is a navigation from another site. The cookie of
who has signed in is SameSite=Strict, and no navigation that another site began sends it, a redirect
at its end included. So the callback answers with a page of ours that goes on by itself: what it
begins is this site's own. It does so before the sign-in too, which ends the one that the browser
had.
"""

import hashlib
import hmac
import re
import secrets
import time
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request
from itsdangerous import BadData, URLSafeTimedSerializer
from pydantic import SecretStr
from starlette.responses import JSONResponse, RedirectResponse, Response

from greylag.common.net import client_of
from greylag.domain.audit import AuditAction, anonymous
from greylag.domain.errors import (
    GreylagError,
    IdentityProviderUnavailableError,
    LimitExceededError,
    MissingError,
    SignInFailedError,
    SignInRefusedError,
)
from greylag.domain.users import LOGIN_LASTS
from greylag.ports import AuthorizationRequest
from greylag.services.sign_in import SignIn
from greylag.web import errors
from greylag.web.addresses import address, site_of
from greylag.web.auth import (
    COOKIE_SECONDS,
    SIGN_IN,
    SIGN_IN_COOKIE,
    SIGN_OUT_AT_PROVIDER,
    AuthenticatorDep,
    Cookie,
    WrongTokens,
    is_current,
    own_path,
    sign_in_page,
)
from greylag.web.dashboard.pages import respond
from greylag.web.deps import CallDep, UseCasesDep, api_router, pages_router, problems
from greylag.web.request_log import exchange_of
from greylag.web.schemas import DeviceLoginIn, DeviceLoginOut, DeviceSecretIn, NewTokenOut

SIGN_IN_AT_PROVIDER = "/auth/sign-in"
CALLBACK = "/auth/callback"
BACK_CHANNEL = "/auth/back-channel-logout"
PATHS = frozenset({SIGN_IN_AT_PROVIDER, CALLBACK, SIGN_OUT_AT_PROVIDER, BACK_CHANNEL})
"""Open to whoever has not signed in."""
STATE_SECONDS = 600
ID_TOKEN_COOKIE = Cookie("greylag_id_token", below=SIGN_OUT_AT_PROVIDER)
_NOBODY = "Nobody signs in by an identity provider here."
_STATE_COOKIE = "greylag_state_"
_MOST_UNDER_WAY = 8
_TAG_LENGTH = 8
_NOT_IN_A_TAG = re.compile(r"[^A-Za-z0-9_-]")
_TOO_LONG = "-"
_LONGEST_ID_TOKEN = 3800
"""Browsers keep no cookie of more than 4096 bytes, its name and what is said of it included."""


@dataclass(frozen=True, slots=True)
class PendingSignIn:
    """A sign-in under way: what the provider was asked, and the page that was wanted."""

    request: AuthorizationRequest
    wanted: str
    until: datetime


class States:
    """Makes and reads the cookies of sign-ins under way; all processes of one token read them."""

    def __init__(self, token: SecretStr) -> None:
        secret = token.get_secret_value().encode()
        self._key = hashlib.sha256(b"greylag sign-in state\0" + secret).digest()
        self._serializer = URLSafeTimedSerializer(
            self._key, salt="greylag.state", signer_kwargs={"digest_method": hashlib.sha256}
        )

    def new(self, redirect_uri: str, wanted: str) -> tuple[PendingSignIn, str]:
        """Return a new sign-in, and its cookie's value."""
        state = secrets.token_urlsafe(32)
        value = self._serializer.dumps([state, wanted])
        return self._pending(state, redirect_uri, wanted, datetime.now(UTC)), str(value)

    def read(self, value: str, state: str, redirect_uri: str) -> PendingSignIn | None:
        """Return the sign-in that a cookie holds, ``None`` if it is not that of ``state``, not ours
        or too old.
        """
        try:
            (held, wanted), begun = self._serializer.loads(value, return_timestamp=True)
        except BadData:
            return None
        if not is_current(begun, STATE_SECONDS, time.time()):
            return None
        if not hmac.compare_digest(held.encode(), state.encode(errors="replace")):
            return None
        return self._pending(held, redirect_uri, wanted, begun)

    def _pending(
        self, state: str, redirect_uri: str, wanted: str, begun: datetime
    ) -> PendingSignIn:
        request = AuthorizationRequest(
            redirect_uri, state, self._derived("nonce", state), self._derived("verifier", state)
        )
        return PendingSignIn(request, wanted, begun + timedelta(seconds=STATE_SECONDS))

    def _derived(self, purpose: str, state: str) -> str:
        digest = hmac.digest(self._key, f"{purpose}\0{state}".encode(), "sha256")
        return urlsafe_b64encode(digest).rstrip(b"=").decode()


# The way there and back.

router = APIRouter(include_in_schema=False)


async def _sign_in_service(request: Request) -> SignIn:
    found: SignIn | None = request.app.state.use_cases.sign_in
    if found is None:
        raise MissingError(_NOBODY)
    return found


SignInDep = Annotated[SignIn, Depends(_sign_in_service)]


@router.get(SIGN_IN_AT_PROVIDER)
async def begin(
    request: Request, sign_in: SignInDep, wanted: Annotated[str, Query(alias="next")] = "/"
) -> Response:
    """Send the browser to the provider, with the cookie that its way back will be checked by."""
    states: States = request.app.state.states
    pending, value = states.new(_callback(request), own_path(wanted))
    try:
        url = await sign_in.begin(pending.request)
    except IdentityProviderUnavailableError as error:
        return sign_in_page(request, wanted, error)
    response = RedirectResponse(url, status_code=303)
    begun = [name for name in request.cookies if _STATE_COOKIE in name]
    # Each is sent along with every request until it runs out.
    for name in begun if len(begun) >= _MOST_UNDER_WAY else ():
        _state_cookie(name.rpartition(_STATE_COOKIE)[2]).take_back(response, request.scope)
    cookie = _state_cookie(pending.request.state)
    cookie.give(response, request.scope, value, STATE_SECONDS)
    return response


@router.get(CALLBACK)
async def finish(request: Request, sign_in: SignInDep, authenticator: AuthenticatorDep) -> Response:
    """Sign the browser in by the provider's answer, and go on to the page that was wanted.

    Whatever sign-in the browser had before is ended; where its cookie does not come along as
    another site led here, this page is asked for once more, by itself.
    """
    if request.headers.get("sec-fetch-site") == "cross-site":
        return _onward(address(f"{CALLBACK}?{request.url.query}"))
    answer = request.query_params
    cookie = _state_cookie(answer.get("state", ""))
    wanted = "/"
    try:
        pending = await _pending(request, cookie)
        wanted = pending.wanted
        signed_in = await sign_in.finish(
            answer, pending.request, pending.until, client_of(request.scope)
        )
    except (SignInFailedError, SignInRefusedError, IdentityProviderUnavailableError) as error:
        response = sign_in_page(request, wanted, error)
    else:
        await authenticator.sign_out(request.scope)
        response = _onward(address(wanted))
        SIGN_IN_COOKIE.give(response, request.scope, signed_in.secret, COOKIE_SECONDS)
        # Kept by the browser, for the provider's eyes, when it signs out there, alone.
        fits = len(signed_in.id_token) <= _LONGEST_ID_TOKEN
        id_token = signed_in.id_token if fits else _TOO_LONG
        ID_TOKEN_COOKIE.give(response, request.scope, id_token, COOKIE_SECONDS)
    cookie.take_back(response, request.scope)
    return response


@router.get(SIGN_OUT_AT_PROVIDER)
async def sign_out(request: Request, sign_in: SignInDep) -> Response:
    """Go on to the provider's own page to sign out, if the browser had signed in there."""
    kept = request.cookies.get(ID_TOKEN_COOKIE.name(request.scope))
    url = None
    if kept is not None:
        hint = None if kept == _TOO_LONG else kept
        url = await sign_in.sign_out_url(site_of(request) + SIGN_IN, hint)
    response = _onward(url) if url else RedirectResponse(address(SIGN_IN), status_code=303)
    ID_TOKEN_COOKIE.take_back(response, request.scope)
    return response


@router.post(BACK_CHANNEL)
async def end(
    request: Request, sign_in: SignInDep, logout_token: Annotated[str, Form()] = ""
) -> Response:
    """End the sessions that the provider says have ended (Back-Channel Logout 1.0)."""
    try:
        await sign_in.end(logout_token, client_of(request.scope))
    except SignInFailedError as error:
        refusal = {"error": "invalid_request", "error_description": error.info.message}
        return JSONResponse(refusal, status_code=400)
    return Response()


async def _pending(request: Request, cookie: Cookie) -> PendingSignIn:
    """Return the sign-in that this browser has begun and the provider answers.

    Raises:
        SignInFailedError: it began none such, or too long ago, or has ended it before.
    """
    states: States = request.app.state.states
    value = request.cookies.get(cookie.name(request.scope), "")
    state = request.query_params.get("state", "")
    if (found := states.read(value, state, _callback(request))) is not None:
        return found
    error = SignInFailedError(
        "This is no sign-in that this browser has begun within the last ten minutes, or one that "
        "has ended already."
    )
    who, audit = anonymous(client_of(request.scope)), request.app.state.use_cases.audit
    await audit.refused(who, AuditAction.SESSION_START, "", error.info.code)
    raise error


def _callback(request: Request) -> str:
    return site_of(request) + CALLBACK


def _state_cookie(state: str) -> Cookie:
    tag = _NOT_IN_A_TAG.sub("", state)[:_TAG_LENGTH]
    return Cookie(_STATE_COOKIE + tag, same_site="lax")


def _onward(url: str) -> Response:
    """Return a page that goes on by itself, as one that this site has begun."""
    response = respond("onward.html", url=url)
    response.headers["cache-control"] = "no-store"
    return response


# Letting in a program that has no browser: what it asks, and the page where a person confirms.

DEVICE_LOGINS = "/api/device-logins"
DEVICE_TOKEN = f"{DEVICE_LOGINS}/token"
DEVICE_PAGE = "/device"
DEVICE_PATHS = frozenset({DEVICE_LOGINS, DEVICE_TOKEN})
"""Open to whoever has not signed in."""
INTERVAL_SECONDS = 3

device_router = api_router("platform")
device_pages = pages_router()


async def _bound(request: Request, what: str) -> None:
    """Raise ``LimitExceededError`` when ``what`` was done too often within a minute."""
    attempts: WrongTokens = request.app.state.device_attempts
    if attempts.is_beyond(what):
        error = LimitExceededError("Too many logins were tried.", hint="Try again in a minute.")
        audit = request.app.state.use_cases.audit
        who = exchange_of(request.scope).principal or anonymous(client_of(request.scope))
        await audit.refused(who, AuditAction.REQUEST, request.url.path, error.info.code)
        raise error


@device_router.post(
    DEVICE_LOGINS,
    summary="Ask to be let in without a browser",
    status_code=201,
    responses={**problems(404, 413), 201: {"description": "Begun."}},
)
async def begin_device_login(
    request: Request, use_cases: UseCasesDep, body: DeviceLoginIn
) -> DeviceLoginOut:
    """Open to all. Show the person `code` and `url`, and ask for the token with `secret`."""
    client = client_of(request.scope)
    await _bound(request, f"begin {client}")
    if use_cases.sign_in is None:
        raise MissingError(_NOBODY, hint="Use a token instead.")
    secret, login = await use_cases.device_logins.begin(body.name, frozenset(body.scopes), client)
    return DeviceLoginOut(
        secret=secret,
        code=login.code,
        url=site_of(request) + DEVICE_PAGE,
        interval=INTERVAL_SECONDS,
        expires_in=int(LOGIN_LASTS.total_seconds()),
    )


@device_router.post(
    DEVICE_TOKEN,
    summary="Get the token once a person has confirmed",
    status_code=200,
    response_model=NewTokenOut,
    responses={
        **problems(404, 409, 413),
        202: {"description": "Nobody has answered yet: ask again in `interval` seconds."},
    },
)
async def redeem_device_login(
    request: Request, use_cases: UseCasesDep, body: DeviceSecretIn
) -> NewTokenOut | Response:
    """Open to all. The token is given once; 404 when it was turned away or its time is over."""
    try:
        found = await use_cases.device_logins.redeem(body.secret)
    except MissingError:
        await _bound(request, f"redeem {client_of(request.scope)}")
        raise
    if found is None:
        return Response(status_code=202)
    text, token = found
    return NewTokenOut.of(token, token=text)


# The page.

_Code = Annotated[str, Query(max_length=20)]


@device_pages.get(DEVICE_PAGE)
async def ask_for_code(request: Request, call: CallDep, code: _Code = "") -> Response:
    """Ask for the code that a program shows, then whether to let it in."""
    if not code.strip():
        return call.page("device.html", login=None, error=None, done=None)
    try:
        await _bound(request, f"code {call.principal.user_id}")
        login = await call.use_cases.device_logins.waiting(code)
    except GreylagError as error:
        return _failed(call, error)
    return call.page("device.html", login=login, error=None, done=None)


@device_pages.post(DEVICE_PAGE)
async def answer_program(
    request: Request,
    call: CallDep,
    code: Annotated[str, Form(max_length=20)] = "",
    answer: Annotated[str, Form(max_length=20)] = "",
) -> Response:
    """Let the program in, or turn it away."""
    try:
        await _bound(request, f"code {call.principal.user_id}")
        await call.use_cases.device_logins.answer(call.principal, code, allow=answer == "allow")
    except GreylagError as error:
        return _failed(call, error)
    done = "It is let in." if answer == "allow" else "It is turned away."
    return call.page("device.html", login=None, error=None, done=done)


def _failed(call: CallDep, error: GreylagError) -> Response:
    status = errors.status_of(error.info)
    return call.page("device.html", status=status, login=None, error=error.info, done=None)
