"""What all routes share: reading a JSON body within limits, and answering errors."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from greylag.agentd.problems import RefusedError, invalid

_STATUS = {
    "invalid_request": 400,
    "unknown_event": 400,
    "setting_overridden": 400,
    "setting_invalid": 400,
    "extension_invalid": 400,
    "extension_enabled": 400,
    "session_not_found": 404,
    "turn_not_found": 404,
    "confirmation_not_found": 404,
    "setting_not_found": 404,
    "extension_not_found": 404,
    "session_busy": 409,
    "message_id_conflict": 409,
    "confirmation_settled": 409,
    "events_gone": 410,
    "too_large": 413,
    "agent_refused": 500,
    "storage_failed": 500,
    "agent_unavailable": 503,
}


async def refused(_request: Request, error: Exception) -> Response:
    """Answer a `RefusedError`; this is the one place where a code becomes a status."""
    assert isinstance(error, RefusedError)  # noqa: S101 - registered for this class alone; tells mypy so
    return refusal(error)


def refusal(error: RefusedError, **more: Any) -> JSONResponse:
    """Return the JSON answer for a refused request, with `more` members."""
    body = {"error": error.error, "message": error.message, "code": error.code}
    return JSONResponse({**body, **error.details, **more}, status_code=_STATUS[error.code])


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """Return the request's body, a JSON object.

    Args:
        request: the request.
        limit: most bytes that the body may have.

    Raises:
        RefusedError: too_large, or invalid_request for anything but a JSON object.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large(f"The request is larger than {limit} bytes.")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid("The body must be JSON.") from error
    if not isinstance(value, dict):
        raise invalid("The body must be a JSON object.")
    return value


def too_large(message: str) -> RefusedError:
    """Return the error for a body or a message past its limit."""
    return RefusedError("too_large", "Too large", message)


def text(body: dict[str, Any], name: str) -> str | None:
    """Return a text member of the body, None when it is not there (or null).

    Raises:
        RefusedError: invalid_request when it is no text, or no valid Unicode.
    """
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise invalid(f"{name} must be text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"{name} holds half of a Unicode character.") from error
    return value


def whole_number(request: Request, name: str, *, default: int, most: int) -> int:
    """Return a query parameter, a whole number from 1 to `most`.

    Raises:
        RefusedError: invalid_request.
    """
    value = request.query_params.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < len(str(most)) + 1):
        raise invalid(f"{name} must be a whole number from 1 to {most}.")
    number = int(value)
    if not 1 <= number <= most:
        raise invalid(f"{name} must be a whole number from 1 to {most}.")
    return number
