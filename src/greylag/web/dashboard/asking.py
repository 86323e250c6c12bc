"""Who asks, for what, and where a form's answer leads."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request
from starlette.responses import RedirectResponse

from greylag.domain.errors import UnauthorizedError
from greylag.domain.users import Principal
from greylag.web.exchange import exchange_of


def _principal(request: Request) -> Principal:
    principal = exchange_of(request.scope).principal
    if principal is None:
        raise UnauthorizedError("The request does not say who it comes from.")
    return principal


Asker = Annotated[Principal, Depends(_principal)]
"""The principal who makes a request, as the guard found it."""


def see(url: str) -> RedirectResponse:
    """Return the answer to a form that sends the browser to ``url`` (303, with GET)."""
    return RedirectResponse(url, status_code=303)
