"""What OpenAPI says of answers that are not plain JSON: problems and streams."""

from http import HTTPStatus
from typing import Any

from greylag.web.errors import PROBLEM_MEDIA_TYPE

Responses = dict[int | str, dict[str, Any]]

_PROBLEM_SCHEMA = {"$ref": "#/components/schemas/Problem"}

_REASONS = {
    401: "No token, or a wrong one.",
    403: "The host, the origin or the user is refused.",
    404: "The user, the project, or what the path names in it does not exist.",
    409: "The state of what is asked for does not allow it; the code says why.",
    413: "The body is too large.",
    422: "A part of the request is not of the form it must have; the detail names it.",
    429: "A limit is reached.",
    431: "The headers are too large.",
    500: "A fault in Greylag; the log has it under this request id.",
    502: "The cluster or the agent failed; the code says how.",
    503: "The store or the cluster cannot be reached.",
    504: "It goes on, but was not reached in the time given (`wait_timeout`).",
}
_ALWAYS = (401, 403, 422, 429, 431, 500, 503)


def problems(*statuses: int) -> Responses:
    """Return the documentation of these errors, and of those that any request may meet."""
    return {status: _problem(status) for status in sorted({*_ALWAYS, *statuses})}


def events(example: str) -> Responses:
    """Return the documentation of an answer that is a stream of server-sent events."""
    return {
        200: {
            "description": (
                "Server-sent events: each has `data`, one line of JSON with `type` and `content`;"
                " comments keep the connection alive. A client that lost it sends the last `id`"
                " as Last-Event-ID and gets what follows."
            ),
            "content": {"text/event-stream": {"schema": _EVENT, "example": example}},
        }
    }


def text(description: str) -> Responses:
    """Return the documentation of an answer that is plain text."""
    return {200: {"description": description, "content": {"text/plain": {"schema": _STRING}}}}


_STRING = {"type": "string"}
# One event of the stream: OpenAPI 3.1 has no word for "a stream of these".
_EVENT = {
    "type": "object",
    "description": "One event; the stream is a sequence of these.",
    "properties": {
        "id": _STRING,
        "data": {**_STRING, "contentMediaType": "application/json"},
    },
    "required": ["data"],
}


def _problem(status: int) -> dict[str, Any]:
    return {
        "description": _REASONS[status],
        "content": {PROBLEM_MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA, "example": _example(status)}},
    }


def _example(status: int) -> dict[str, Any]:
    code = _CODES[status]
    return {
        "type": f"urn:greylag:error:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "code": code,
        "detail": _REASONS[status],
        "hint": HTTPStatus(status).description,
        "request_id": "4f1c2d3e4b5a69788796a5b4c3d2e1f0",
    }


_CODES = {
    401: "unauthorized",
    403: "forbidden",
    404: "project_not_found",
    409: "conflict",
    413: "too_large",
    422: "invalid_request",
    429: "limit_exceeded",
    431: "headers_too_large",
    500: "internal_error",
    502: "agent_failed",
    503: "store_unavailable",
    504: "wait_timeout",
}
