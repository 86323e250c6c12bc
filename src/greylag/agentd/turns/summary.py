"""What a turn's events add up to: its answer, its tool calls, how it ended."""

from typing import Any

from greylag.agentd.records.database import TurnOutcome, TurnStatus
from greylag.agentd.turns.errors import TurnError


class TurnSummary:
    """Adds up events, live or from a journal; the same events give the same outcome."""

    def __init__(self) -> None:
        self._answer: list[str] = []
        self._tool_calls = 0
        self._error: TurnError | None = None
        self._stop_reason: str | None = None
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether the last event of the turn was among them."""
        return self._complete

    def take(self, kind: str, content: dict[str, Any]) -> None:
        """Add one event.

        Raises:
            KeyError: it is none of ours; nothing was added.
        """
        match kind:
            case "message":
                self._answer.append(str(content["content"]))
            case "tool_request":
                self._tool_calls += 1
            case "error":
                self._error = TurnError(str(content["code"]), str(content["error"]))
            case "complete":
                self._stop_reason = str(content["stop_reason"])
                self._complete = True

    def fail(self, error: TurnError) -> None:
        """Add a failure that no event tells of, because it could not be written."""
        self._error = error

    def outcome(self) -> TurnOutcome:
        """Return what the turn's record says from now on."""
        return TurnOutcome(
            status=self._status(),
            answer="".join(self._answer),
            tool_calls_count=self._tool_calls,
            error=None if self._error is None else self._error.text,
            error_code=None if self._error is None else self._error.code,
            stop_reason=self._stop_reason,
        )

    def _status(self) -> TurnStatus:
        if self._error is not None:
            return "error"
        return "cancelled" if self._stop_reason == "cancelled" else "completed"
