"""The page where a browser gives the token, and gets the cookie for it."""

import re
from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from greylag.domain.errors import GreylagError, LimitExceededError, UnauthorizedError
from greylag.web import errors
from greylag.web.auth import COOKIE, COOKIE_SECONDS, SIGN_IN, Authenticator
from greylag.web.dashboard.pages import respond

# A path of ours: never "//host" or "/\host", which a browser takes for another site.
_OWN_PATH = re.compile(r"/(?:[!-.0-\[\]-~][!-\[\]-~]*)?")


def sign_in_routes(authenticator: Authenticator) -> APIRouter:
    """Return the routes of signing in and out."""
    router = APIRouter(include_in_schema=False)

    def page(wanted: str, error: GreylagError | None = None) -> Response:
        status = errors.status_of(error.info) if error else 200
        told = error.info if error else None
        return respond("sign_in.html", status=status, next=_own(wanted), error=told)

    @router.get(SIGN_IN)
    async def show(request: Request) -> Response:
        if not authenticator.needed:
            return RedirectResponse("/", status_code=303)
        return page(request.query_params.get("next", "/"))

    @router.post(SIGN_IN)
    async def sign_in(
        request: Request,
        token: Annotated[str, Form()] = "",
        wanted: Annotated[str, Form(alias="next")] = "/",
    ) -> Response:
        try:
            cookie = authenticator.sign_in(token.strip(), request.scope)
        except (UnauthorizedError, LimitExceededError) as error:
            return page(wanted, error)
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
        response = RedirectResponse(SIGN_IN, status_code=303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    return router


def _own(wanted: str) -> str:
    return wanted if _OWN_PATH.fullmatch(wanted) else "/"
