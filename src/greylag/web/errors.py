"""Errors outward: the one table from code to HTTP status, and RFC 9457 problem documents."""

import re
from collections.abc import Mapping
from functools import cache

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import compile_path

from greylag.common import logs
from greylag.common.git import CAUSES
from greylag.common.typed import encodable
from greylag.domain.errors import ErrorInfo, GreylagError, InvalidRequestError, TooLargeError
from greylag.web.dashboard.pages import METHODS_HINT, error_page, paths_hint
from greylag.web.schemas import ProblemDocument

_log = structlog.get_logger(__name__)

PROBLEM_MEDIA_TYPE = "application/problem+json"

STATUS: Mapping[str, int] = {
    "unauthorized": 401,
    "sign_in_failed": 401,
    "forbidden": 403,
    "terminal_off": 403,
    "sign_in_refused": 403,
    "not_found": 404,
    "user_not_found": 404,
    "project_not_found": 404,
    "session_not_found": 404,
    "turn_not_found": 404,
    "confirmation_not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "preview_off": 409,
    "secrets_off": 409,
    "notifications_off": 409,
    **dict.fromkeys(CAUSES, 409),
    "project_exists": 409,
    "project_deleting": 409,
    "idempotency_conflict": 409,
    "environment_not_active": 409,
    "environment_stopping": 409,
    "session_busy": 409,
    "turn_running": 409,
    "history_not_cut": 409,
    "confirmation_settled": 409,
    "lease_lost": 409,
    "claim_overtaken": 409,
    "namespace_terminating": 409,
    "namespace_foreign": 409,
    "environment_foreign": 409,
    "snapshot_gone": 410,
    "precondition_failed": 412,
    "too_large": 413,
    "unsupported_media_type": 415,
    "range_not_satisfiable": 416,
    "invalid_request": 422,
    "template_not_found": 422,
    "limit_exceeded": 429,
    "quota_exceeded": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "config_error": 500,
    "agent_unreachable": 502,
    "agent_failed": 502,
    "port_silent": 502,
    "stream_cut": 502,
    "cluster_unavailable": 503,
    "cluster_conflict": 503,
    "drained": 503,
    "endpoint_unreachable": 503,
    "environment_drifted": 503,
    "evicted": 503,
    "identity_provider_unavailable": 503,
    "no_address": 503,
    "node_lost": 503,
    "node_not_ready": 503,
    "part_deleted": 503,
    "pod_deleted": 503,
    "pod_failed": 503,
    "preempted": 503,
    "removal_stuck": 503,
    "store_incomplete": 503,
    "store_unavailable": 503,
    "unschedulable": 503,
    "volume_elsewhere": 503,
    "volume_held": 503,
    "volume_not_bound": 503,
    "webhook_slow": 503,
    "webhook_unavailable": 503,
    "wait_timeout": 504,
    "activation_timeout": 504,
}
"""The HTTP status of each code. Any other code is a cluster's own name for a failure: 502."""

_RETRY_AFTER: Mapping[str, str] = {"store_unavailable": "2", "cluster_unavailable": "5"}
"""Seconds after which what is away by itself may be back (RFC 9110, section 10.2.3)."""

_FAULT = GreylagError("Something went wrong inside Greylag.").info
_NO_FORM = "The request is not of the form it must have."
_UNREADABLE = "The body cannot be read: it is malformed, or compressed, which is not taken."
_NOT_ALLOWED = ErrorInfo(
    "method_not_allowed",
    "This path does not take this method.",
    METHODS_HINT,
)


def status_of(error: ErrorInfo) -> int:
    """Return the HTTP status of an error."""
    return STATUS.get(error.code, 502)


def problem_response(
    error: ErrorInfo,
    headers: Mapping[str, str] | None = None,
    status: int | None = None,
) -> Response:
    """Return the answer that tells ``error`` as a problem document, with the status of its code
    unless ``status`` is another.
    """
    problem = problem_of(error, status or status_of(error))
    return Response(
        problem.model_dump_json(),
        status_code=problem.status,
        headers={**_retry_after(problem.code), **(headers or {})},
        media_type=PROBLEM_MEDIA_TYPE,
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
    response.headers.update({**_retry_after(error.code), **(headers or {})})
    return response


def unexpected(error: Exception) -> ErrorInfo:
    """Log a fault of ours with its stack, and return what may be told of it: nothing but that."""
    _log.error("fault", exc_info=error)
    return _FAULT


def translated(error: Exception) -> ErrorInfo:
    """Return what a client may read of any error; faults of ours are logged on the way."""
    return error.info if isinstance(error, GreylagError) else unexpected(error)


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
        return page_or_problem(request, _FAULT)

    app.add_exception_handler(GreylagError, on_greylag_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_fault)


def problem_of(error: ErrorInfo, status: int) -> ProblemDocument:
    """Return ``error`` as a problem document of this request. Its words may quote JSON of others,
    which can spell half a character: no answer can hold that.
    """
    return ProblemDocument(
        type=f"urn:greylag:error:{error.code}",
        title=error.code.replace("_", " ").capitalize(),
        status=status,
        code=error.code,
        detail=encodable(error.message),
        hint=encodable(error.hint),
        request_id=logs.request_id.get(),
    )


def _retry_after(code: str) -> Mapping[str, str]:
    return {"retry-after": _RETRY_AFTER[code]} if code in _RETRY_AFTER else {}


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
