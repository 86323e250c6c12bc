"""The events of a turn: made from the agent's updates (ACP), and added up to the turn's outcome."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from greylag.agentd.agent.types import PermissionRequest, PromptResult
from greylag.agentd.records import TurnOutcome, TurnStatus
from greylag.agentd.turns.errors import EMPTY_RESPONSE, TurnError, provider_error


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """One event as it goes into the journal: its type and its content."""

    type: str
    content: dict[str, Any]


class Translator:
    """Translates the updates of one turn. It keeps only what a later one needs to be understood.

    Args:
        session_id: our id of the session, put into each event.
        now: the clock, Unix seconds.
    """

    def __init__(self, session_id: str, now: Callable[[], float]) -> None:
        self._session_id = session_id
        self._now = now
        self._tool_names: dict[str, str] = {}
        self._message_count = 0
        self._held: tuple[TurnEvent, TurnError] | None = None
        self._context_error: TurnError | None = None

    def update(self, update: dict[str, Any]) -> list[TurnEvent]:
        """Return the events that one update stands for, often one, maybe none.

        Args:
            update: ``params.update`` of a ``session/update`` or ``_goose/unstable/session/update``.
        """
        events: Iterable[TurnEvent] = ()
        match update.get("sessionUpdate"):
            case "agent_message_chunk":
                events = self._message(update)
            case "agent_thought_chunk":
                events = [*self._release(), *self._thinking(update)]
            case "tool_call":
                events = [*self._release(), self._tool_request(update)]
            case "tool_call_update":
                events = [*self._release(), *self._tool_update(update)]
            case "session_info_update":
                self._count_messages(update)
            case "status_message":
                events = self._status(update)
            case "message_usage":
                events = self._usage(update)
        return list(events)

    def confirmation(self, confirmation_id: str, request: PermissionRequest) -> TurnEvent:
        """Return the event that asks the user about a tool call."""
        name = self._tool_names.get(request.tool_call_id, request.title)
        return self._event(
            "tool_confirmation",
            id=confirmation_id,
            tool_name=name,
            arguments=request.arguments,
            needs_confirmation=True,
            tool_call_id=request.tool_call_id,
        )

    def finish(self, result: PromptResult) -> tuple[list[TurnEvent], TurnError | None]:
        """Return what the agent's last answer adds: late events, and the failure if it was one."""
        if self._context_error is not None:
            return self._release(), self._context_error
        if self._held is not None and result.stop_reason == "end_turn":
            return [], self._held[1]
        return self._release(), None

    def _message(self, update: dict[str, Any]) -> list[TurnEvent]:
        text = _text(update.get("content"))
        if not text:
            return []
        event = self._event(
            "message", created=_created(update), role="Assistant", content=text, content_type="text"
        )
        before = self._release()
        error = provider_error(update)
        if error is not None:
            # Only the turn's end tells whether this is the model's own text or goose's report.
            self._held = (event, error)
            return before
        if text.startswith("Compaction complete"):
            return [*before, event, self._history()]
        return [*before, event]

    def _thinking(self, update: dict[str, Any]) -> Iterable[TurnEvent]:
        text = _text(update.get("content"))
        if text:
            yield self._event("thinking", created=_created(update), message=text, signature="")

    def _tool_request(self, update: dict[str, Any]) -> TurnEvent:
        call_id = str(update.get("toolCallId", ""))
        call = _dig(update, "_meta", "goose", "toolCall")
        name = str(call.get("toolName") or update.get("title") or "tool")
        self._tool_names[call_id] = name
        arguments = update.get("rawInput")
        return self._event(
            "tool_request",
            created=_created(update),
            id=call_id,
            tool_name=name,
            arguments=arguments if isinstance(arguments, dict) else {},
        )

    def _tool_update(self, update: dict[str, Any]) -> Iterable[TurnEvent]:
        match update.get("status"):
            case "completed":
                texts = [{"type": "text", "text": text} for text in _texts(update)]
                yield self._tool_response(update, {"Ok": texts}, is_error=False)
            case "failed":
                reason = "\n".join(_texts(update)) or "The tool failed."
                yield self._tool_response(update, {"Err": reason}, is_error=True)
            case "in_progress":
                note = _dig(update, "_meta", "toolNotification")
                if note.get("type"):
                    yield self._notification(update, note)

    def _tool_response(
        self, update: dict[str, Any], result: dict[str, Any], *, is_error: bool
    ) -> TurnEvent:
        call_id = str(update.get("toolCallId", ""))
        return self._event("tool_response", id=call_id, result=result, is_error=is_error)

    def _notification(self, update: dict[str, Any], note: dict[str, Any]) -> TurnEvent:
        content = {
            "method": f"notifications/{note['type']}",
            "params": note.get("params") or {},
            "tool_call_id": str(update.get("toolCallId", "")),
        }
        return TurnEvent("tool_notification", content)

    def _status(self, update: dict[str, Any]) -> list[TurnEvent]:
        status = update.get("status")
        message = status.get("message") if isinstance(status, dict) else None
        if not isinstance(message, str) or not isinstance(status, dict):
            return []
        if message.startswith("Unable to continue: Context limit"):
            self._context_error = TurnError("context_exceeded", message)
        if "Context limit" in message:
            return [self._event("context_exceeded", message=message)]
        if status.get("type") == "progress" and "compact" in message:
            return [self._history()]
        return [TurnEvent("status", {"message": message, "session_id": self._session_id})]

    def _usage(self, update: dict[str, Any]) -> list[TurnEvent]:
        usage = update.get("usage")
        # Usage follows what a model has written, and an empty answer too; never another failure.
        empty = self._held is not None and self._held[1].code == EMPTY_RESPONSE
        events = [] if empty else self._release()
        if isinstance(usage, dict) and usage.get("isCompaction"):
            events.append(self._history())
        return events

    def _history(self) -> TurnEvent:
        content = {"message_count": self._message_count, "session_id": self._session_id}
        return TurnEvent("history_update", content)

    def _count_messages(self, update: dict[str, Any]) -> None:
        count = _dig(update, "_meta").get("messageCount")
        if isinstance(count, int):
            self._message_count = count

    def _release(self) -> list[TurnEvent]:
        """Let a held piece go: something followed it, so it was the model's own text."""
        held, self._held = self._held, None
        return [] if held is None else [held[0]]

    def _event(self, kind: str, *, created: int | None = None, **content: Any) -> TurnEvent:
        content.setdefault("content_type", kind)
        content["timestamp"] = int(self._now()) if created is None else created
        content["session_id"] = self._session_id
        return TurnEvent(kind, content)


def _dig(value: Any, *names: str) -> dict[str, Any]:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _created(update: dict[str, Any]) -> int | None:
    created = _dig(update, "_meta", "goose").get("created")
    return created if isinstance(created, int) else None


def _text(content: Any) -> str:
    if not isinstance(content, dict) or content.get("type") != "text":
        return ""
    text = content.get("text")
    return text if isinstance(text, str) else ""


def _texts(update: dict[str, Any]) -> list[str]:
    blocks = update.get("content")
    if not isinstance(blocks, list):
        return []
    texts = (_text(_dig(block, "content")) for block in blocks)
    return [text for text in texts if text]


class TurnSummary:
    """Adds up events, live or from a journal; the same events give the same outcome.

    Attributes:
        complete: whether the last event of the turn was among them.
    """

    def __init__(self) -> None:
        self._answer: list[str] = []
        self._tool_calls = 0
        self._error: TurnError | None = None
        self._stop_reason: str | None = None
        self.complete = False

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
                self.complete = True

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
