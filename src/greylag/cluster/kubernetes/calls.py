"""One request to the API server, and when it may be repeated."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from greylag.cluster.kubernetes.failures import ApiError

TRIES = 5
FIRST_PAUSE = 0.1
_TOO_MANY = 429


@dataclass(frozen=True, slots=True)
class Call:
    """One request. ``repeatable``: doing it twice is the same as doing it once."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    content_type: str = "application/json"
    repeatable: bool = False


def pause_after(call: Call, error: Exception, tried: int) -> float | None:
    """Return how many seconds to wait before the next try, ``None`` when there must be none.

    ``tried`` is how often it was tried.
    """
    pause = random.uniform(0.5, 1) * FIRST_PAUSE * 2.0**tried  # noqa: S311 - spreads load, no secret
    if isinstance(error, ApiError):
        if error.status == _TOO_MANY:  # it has not begun, so any call may be repeated
            return max(error.retry_after or 0.0, pause)
        if not error.is_unavailable:
            return None
    elif isinstance(error, aiohttp.ClientSSLError):
        return None
    never_sent = isinstance(error, aiohttp.ClientConnectorError)
    if tried >= TRIES or not (call.repeatable or never_sent):
        return None
    asked = error.retry_after if isinstance(error, ApiError) else None
    return max(asked or 0.0, pause)
