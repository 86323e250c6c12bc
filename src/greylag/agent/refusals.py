"""agentd's refusals as errors of ours."""

from collections.abc import Callable, Mapping
from typing import Any

from greylag.domain.errors import (
    AgentFailedError,
    AgentUnreachableError,
    ConfirmationNotFoundError,
    ConfirmationSettledError,
    ConflictError,
    GreylagError,
    InvalidRequestError,
    LimitExceededError,
    SessionBusyError,
    SessionNotFoundError,
    TooLargeError,
    TurnNotFoundError,
)

_BY_CODE: Mapping[str, Callable[[str], GreylagError]] = {
    "session_not_found": SessionNotFoundError,
    "session_busy": SessionBusyError,
    "turn_not_found": TurnNotFoundError,
    "message_id_conflict": ConflictError,
    "confirmation_not_found": ConfirmationNotFoundError,
    "confirmation_settled": ConfirmationSettledError,
    "events_gone": TurnNotFoundError,
    "too_large": TooLargeError,
    "unknown_event": InvalidRequestError,
    "invalid_request": InvalidRequestError,
    "limit_exceeded": LimitExceededError,
}
_BY_STATUS: Mapping[int, Callable[[str], GreylagError]] = {
    400: InvalidRequestError,
    413: TooLargeError,
    429: LimitExceededError,
    503: AgentUnreachableError,
}


def refusal(status: int, body: Mapping[str, Any], missing: GreylagError | None) -> GreylagError:
    """Return the error that agentd's answer means.

    ``status`` is the HTTP status, ``body`` the JSON of agentd's errors (``error``, ``message``,
    ``code``); ``missing`` is what a 404 without a code of ours means for the call that was made.
    """
    said = body.get("message")
    message = said if isinstance(said, str) and said else f"The agent answered {status}."
    known = _BY_CODE.get(str(body.get("code"))) or _BY_STATUS.get(status)
    if known is not None:
        return known(message)
    if status == 404 and missing is not None:  # noqa: PLR2004 - HTTP's not found
        return missing
    return AgentFailedError(message)
