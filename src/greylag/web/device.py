"""Letting in a program that has no browser: what it asks, and the page where a person confirms."""

from typing import Annotated

from fastapi import Form, Query, Request, Response

from greylag.domain.audit import AuditAction, anonymous
from greylag.domain.errors import GreylagError, LimitExceededError, MissingError
from greylag.domain.users import LOGIN_LASTS
from greylag.web import errors
from greylag.web.addresses import site_of
from greylag.web.auth import WrongTokens, client_of
from greylag.web.deps import CallDep, UseCasesDep, api_router, pages_router, problems
from greylag.web.request_log import exchange_of
from greylag.web.schemas import DeviceLoginIn, DeviceLoginOut, DeviceSecretIn, NewTokenOut

BEGIN = "/api/device-logins"
REDEEM = "/api/device-logins/token"
PAGE = "/device"
PATHS = frozenset({BEGIN, REDEEM})
"""Open to whoever has not signed in."""
INTERVAL_SECONDS = 3

router = api_router("platform")
page_router = pages_router()


async def _bound(request: Request, what: str) -> None:
    """Raise ``LimitExceededError`` when ``what`` was done too often within a minute."""
    attempts: WrongTokens = request.app.state.device_attempts
    if attempts.is_beyond(what):
        error = LimitExceededError("Too many logins were tried.", hint="Try again in a minute.")
        audit = request.app.state.use_cases.audit
        who = exchange_of(request.scope).principal or anonymous(client_of(request.scope))
        await audit.refused(who, AuditAction.REQUEST, request.url.path, error.info.code)
        raise error


@router.post(
    BEGIN,
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
        raise MissingError(
            "Nobody signs in by an identity provider here.", hint="Use a token instead."
        )
    secret, login = await use_cases.device_logins.begin(body.name, frozenset(body.scopes), client)
    return DeviceLoginOut(
        secret=secret,
        code=login.code,
        url=site_of(request) + PAGE,
        interval=INTERVAL_SECONDS,
        expires_in=int(LOGIN_LASTS.total_seconds()),
    )


@router.post(
    REDEEM,
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


@page_router.get(PAGE)
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


@page_router.post(PAGE)
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
