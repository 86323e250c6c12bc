"""What the API server refuses, as it says it (its ``Status`` object). Stays inside this package."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self


class ApiError(Exception):
    """The API server answered, and did not do it.

    ``status`` is HTTP's; ``reason`` one word of Kubernetes (``NotFound``, ``Forbidden``, ...);
    ``details`` and ``causes`` as in its ``Status``; ``retry_after`` seconds, if it asked for that.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}" if message else f"{status} {reason}")
        self.status = status
        self.reason = reason
        self.message = message
        self.details: Mapping[str, Any] = details or {}
        causes = self.details.get("causes")
        self.causes: Sequence[Mapping[str, Any]] = causes if isinstance(causes, list) else ()
        self.retry_after = retry_after

    @property
    def is_gone(self) -> bool:
        """Whether a resourceVersion or a list's continuation is too old to go on from."""
        return self.status == 410 or self.reason in {"Expired", "Gone"}  # noqa: PLR2004 - HTTP's Gone

    @property
    def is_refusal(self) -> bool:
        """Whether the account that asked is not known, or lacks the right to do this."""
        return self.status in {401, 403}

    @property
    def is_unavailable(self) -> bool:
        """Whether the API server could not work on it now, which says nothing of what was asked.

        An admission webhook that does not answer is told as 500 too, but is a cause of its own.
        """
        busy = self.status == 429 or self.status >= 500  # noqa: PLR2004 - HTTP's numbers
        return busy and "failed calling webhook" not in self.message

    @classmethod
    def of_status(cls, status: Mapping[str, Any], *, code: int, words: str = "") -> Self:
        """Read a ``Status`` object; ``words`` stand in for its reason.

        ``code`` is HTTP's; 0 (it came in a stream): the one that it tells itself.
        """
        details = status.get("details")
        details = details if isinstance(details, dict) else {}
        own = status.get("code")
        return cls(
            code or (own if isinstance(own, int) else _FAILED),
            str(status.get("reason") or words or "Unknown"),
            str(status.get("message") or ""),
            details=details,
            retry_after=_seconds(str(details.get("retryAfterSeconds") or "")),
        )

    @classmethod
    def of_answer(cls, code: int, words: str, body: bytes, retry_after: str | None) -> Self:
        """Read an answer that is no success. What is not a ``Status`` (a proxy's page) is left."""
        try:
            status = json.loads(body)
        except ValueError:
            status = {}
        error = cls.of_status(status if isinstance(status, dict) else {}, code=code, words=words)
        asked = _seconds(retry_after or "")
        error.retry_after = error.retry_after if asked is None else asked
        return error


def _seconds(asked: str) -> float | None:
    """Return how long ``Retry-After`` asks to wait: seconds, or a date (RFC 9110, 10.2.3)."""
    if asked.isdecimal():
        return float(asked)
    try:
        moment = parsedate_to_datetime(asked)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


_FAILED = 500
