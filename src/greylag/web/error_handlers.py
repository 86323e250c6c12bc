"""What the web answers to every error: a problem document to a program, a page to a browser."""

import re
from collections.abc import Mapping
from functools import cache

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import compile_path

from greylag.domain.errors import ErrorInfo, GreylagError, InvalidRequestError, TooLargeError
from greylag.web.dashboard.pages import METHODS_HINT, error_page, paths_hint
from greylag.web.errors import (
    FAULT,
    problem_of,
    problem_response,
    retry_after,
    status_of,
    translated,
    unexpected,
)

_NO_FORM = "The request is not of the form it must have."
_UNREADABLE = "The body cannot be read: it is malformed, or compressed, which is not taken."
_NOT_ALLOWED = ErrorInfo(
    "method_not_allowed",
    "This path does not take this method.",
    METHODS_HINT,
)


def page_or_problem(
    request: HTTPConnection,
    error: ErrorInfo,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the answer that tells ``error``: as a page to a browser that asked for one."""
    if not isinstance(request, Request) or not wants_page(request):
        return problem_response(error, headers, status)
    response = error_page(request, problem_of(error, status or status_of(error)))
    response.headers.update({**retry_after(error.code), **(headers or {})})
    return response


def install_error_handlers(app: FastAPI) -> None:
    """Let ``app`` answer every error: as a problem document to a program, as a page to a browser
    that asked for a page.
    """

    @cache
    def methods() -> list[tuple[re.Pattern[str], str]]:
        # For the Allow header: the framework names one route's methods only, and a path has a route
        # for each; the OpenAPI document has them all.
        paths = app.openapi()["paths"]
        return [(compile_path(path)[0], ", ".join(paths[path]).upper()) for path in paths]

    async def on_greylag_error(asked: HTTPConnection, error: Exception) -> Response:
        return page_or_problem(asked, translated(error))

    async def on_invalid(request: Request, error: Exception) -> Response:
        said = _fault_in(error) if isinstance(error, RequestValidationError) else _NO_FORM
        return page_or_problem(request, InvalidRequestError(said).info)

    async def on_http_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return page_or_problem(request, unexpected(error))
        headers = MutableHeaders(error.headers)
        if error.status_code == 405:  # noqa: PLR2004 - HTTP's
            taken = (names for place, names in methods() if place.match(request.url.path))
            if (allowed := next(taken, None)) is not None:
                headers["allow"] = allowed
        return page_or_problem(request, *_of_http(error), headers)

    async def on_fault(request: Request, _error: Exception) -> Response:
        # Logged by RequestLog, to which the framework passes the error on after this.
        return page_or_problem(request, FAULT)

    app.add_exception_handler(GreylagError, on_greylag_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_fault)


def wants_page(request: Request) -> bool:
    """Tell whether a browser asks for a page."""
    path = request.url.path
    is_page = path != "/api" and not path.startswith("/api/")
    return is_page and "text/html" in request.headers.get("accept", "")


def _of_http(error: HTTPException) -> tuple[ErrorInfo, int]:
    match error.status_code:
        case 404:
            return ErrorInfo("not_found", "Nothing is at this path.", paths_hint()), 404
        case 405:
            return _NOT_ALLOWED, 405
        case 413:
            return TooLargeError("The request's body is larger than is taken.").info, 413
        case 400:
            return InvalidRequestError(_UNREADABLE).info, 422
        case status:
            return ErrorInfo(f"http_{status}", str(error.detail)), status


def _fault_in(error: RequestValidationError) -> str:
    """Return one sentence about the first thing that is wrong, naming where it is."""
    first = next(iter(error.errors()), None)
    if first is None:
        return _NO_FORM
    where, *path = (str(part) for part in first["loc"])
    if not path and isinstance(error.body, bytes):
        # The framework has not looked into it.
        return "The body must be JSON and be sent with `Content-Type: application/json`."
    reason = str(first["msg"]).removeprefix("Value error, ")
    if isinstance(first["input"], str):
        # Of a text that was checked first, the length is told as if it were a list's.
        reason = re.sub(r"item(s?) after validation", r"character\1", reason)
    reason = reason[:1].lower() + reason[1:]
    if first["type"] == "json_invalid":
        return f"The body is not JSON: {first['ctx']['error']} (at character {path[0]})."
    field = ".".join(path)
    return f"{field} ({where}): {reason}." if field else f"The {where}: {reason}."
