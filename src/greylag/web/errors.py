"""Errors outward: the one table from code to HTTP status, and RFC 9457 problem documents."""

from collections.abc import Mapping

import structlog
from starlette.responses import Response

from greylag.common import logs
from greylag.common.git import CAUSES
from greylag.common.typed import encodable
from greylag.domain.errors import ErrorInfo, GreylagError
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

FAULT = GreylagError("Something went wrong inside Greylag.").info
"""All that is told of a fault of ours."""


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
        headers={**retry_after(problem.code), **(headers or {})},
        media_type=PROBLEM_MEDIA_TYPE,
    )


def unexpected(error: Exception) -> ErrorInfo:
    """Log a fault of ours with its stack, and return what may be told of it: nothing but that."""
    _log.error("fault", exc_info=error)
    return FAULT


def translated(error: Exception) -> ErrorInfo:
    """Return what a client may read of any error; faults of ours are logged on the way."""
    return error.info if isinstance(error, GreylagError) else unexpected(error)


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


def retry_after(code: str) -> Mapping[str, str]:
    """Return the header that says when to try again, for what may then be back."""
    return {"retry-after": _RETRY_AFTER[code]} if code in _RETRY_AFTER else {}
