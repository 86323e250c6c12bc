"""The events of a turn: made from the agent's updates (ACP), and added up to the turn's outcome."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from greylag.agentd.agent.types import PermissionRequest, PromptResult
from greylag.agentd.records import TurnOutcome, TurnStatus
from greylag.agentd.shortening import true_size
from greylag.agentd.turns.errors import EMPTY_RESPONSE, TurnError, provider_error
from greylag.common.typed import dig, encodable

_MOST_DATA = 6 * 1024 * 1024  # characters, so that it passes in one event
_MOST_NAME = 200  # characters; a name stays in memory as long as its turn runs
_WORDLESS = TurnError(EMPTY_RESPONSE, "The model ended its answer without a word.")


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """One event as it goes into the journal: its type and its content."""

    type: str
    content: dict[str, Any]


class _Said(Enum):
    """Where the agent's own words stand."""

    NOTHING = auto()
    LAST = auto()
    BEFORE_A_TOOL = auto()


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
        self._said = _Said.NOTHING
        self._heard = self._spoke = False

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

    def tool_name(self, request: PermissionRequest) -> str:
        """Return the name of the tool that a question is about."""
        return self._tool_names.get(_name(request.tool_call_id), _name(request.title))

    def confirmation(
        self, confirmation_id: str, request: PermissionRequest, seconds: float
    ) -> TurnEvent:
        """Return the event that asks the user about a tool call, who has so many seconds."""
        return self._event(
            "tool_confirmation",
            id=confirmation_id,
            tool_name=self.tool_name(request),
            arguments=request.arguments,
            needs_confirmation=True,
            tool_call_id=_name(request.tool_call_id),
            decisions=["allow_once", *["allow_session"] * request.lasting, "reject_once"],
            expires_at=round(self._now() + seconds, 3),
        )

    def finish(self, result: PromptResult) -> tuple[list[TurnEvent], TurnError | None]:
        """Return what the agent's last answer adds: late events, and the failure if it was one."""
        if self._context_error is not None:
            return self._release(), self._context_error
        ended = result.stop_reason == "end_turn"
        if self._held is not None and ended:
            return [], self._held[1]
        wordless = ended and self._heard and not self._spoke
        return self._release(), _WORDLESS if wordless else None

    def _message(self, update: dict[str, Any]) -> list[TurnEvent]:
        text = _text(update.get("content"))
        if not text:
            return []
        # Clients put the pieces together: what comes after a tool is a paragraph of its own.
        apart = self._said is _Said.BEFORE_A_TOOL and not text.startswith("\n")
        if self._said is _Said.LAST and dig(update, "_meta", "goose").get("fallbackContent"):
            apart = True  # goose's own words, after the model's
        self._said = _Said.LAST
        self._spoke = self._spoke or bool(text.strip())
        self._heard = True
        event = self._event(
            "message",
            created=_created(update),
            role="Assistant",
            content=f"\n\n{text}" if apart else text,
            content_type="text",
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
            self._heard = True
            yield self._event("thinking", created=_created(update), message=text, signature="")

    def _tool_request(self, update: dict[str, Any]) -> TurnEvent:
        if self._said is _Said.LAST:
            self._said = _Said.BEFORE_A_TOOL
        self._spoke = True
        call_id = _name(update.get("toolCallId", ""))
        call = dig(update, "_meta", "goose", "toolCall")
        name = _name(call.get("toolName") or update.get("title") or "tool")
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
                yield self._tool_response(update, _tool_result(update), is_error=False)
            case "failed":
                yield self._tool_response(update, _tool_failure(update), is_error=True)
            case "in_progress":
                note = dig(update, "_meta", "toolNotification")
                if note.get("type"):
                    yield self._notification(update, note)

    def _tool_response(
        self, update: dict[str, Any], result: dict[str, Any], *, is_error: bool
    ) -> TurnEvent:
        call_id = _name(update.get("toolCallId", ""))
        return self._event("tool_response", id=call_id, result=result, is_error=is_error)

    def _notification(self, update: dict[str, Any], note: dict[str, Any]) -> TurnEvent:
        content = {
            "method": f"notifications/{note['type']}",
            "params": note.get("params") or {},
            "tool_call_id": _name(update.get("toolCallId", "")),
        }
        return TurnEvent("tool_notification", content)

    def _status(self, update: dict[str, Any]) -> list[TurnEvent]:
        status = update.get("status")
        message = status.get("message") if isinstance(status, dict) else None
        if not isinstance(message, str) or not isinstance(status, dict):
            return []
        if message.startswith("Unable to continue: Context limit"):
            self._context_error = TurnError("context_exceeded", message.partition(" Try ")[0])
            return []  # the turn's error tells it
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
        count = dig(update, "_meta").get("messageCount")
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


def _name(value: Any) -> str:
    """Return an id or a name, cut when it is too long: two that differ stay two, for an answer may
    hold for all calls of a tool by its name.
    """
    name = str(value)
    if len(name) <= _MOST_NAME:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name[: _MOST_NAME - len(digest) - 1]}\u2026{digest}"


def _created(update: dict[str, Any]) -> int | None:
    created = dig(update, "_meta", "goose").get("created")
    return created if isinstance(created, int) else None


def _text(content: Any) -> str:
    if not isinstance(content, dict) or content.get("type") != "text":
        return ""
    text = content.get("text")
    return text if isinstance(text, str) else ""


def _blocks(update: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a tool gave: blocks of MCP's content types, and of ACP's own (diff, terminal)."""
    parts = update.get("content")
    parts = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return [dig(part, "content") if part.get("type") == "content" else part for part in parts]


# What else a block is told by, beside its type (MCP 2025-06-18, "Tool Result"; ACP, "Content").
_MEMBERS: Mapping[str, tuple[str, ...]] = {
    "image": ("data", "mimeType", "uri"),
    "audio": ("data", "mimeType"),
    "resource_link": ("uri", "name", "title", "description", "mimeType", "size"),
    "resource": ("resource",),
    "diff": ("path", "oldText", "newText"),
    "terminal": ("terminalId",),
}


def _tool_result(update: dict[str, Any]) -> dict[str, Any]:
    """Return a result as events have it: blocks in ``Ok``, and data where there is no block."""
    blocks = [told for told in map(_block, _blocks(update)) if told is not None]
    data = update.get("rawOutput")
    return {"Ok": blocks} if blocks or data is None else {"Ok": [], "data": data}


def _tool_failure(update: dict[str, Any]) -> dict[str, Any]:
    """Return a failure as events have it: its words, and beside them what is no text."""
    told = _tool_result(update)
    words = [block["text"] for block in told["Ok"] if block["type"] == "text"]
    found: dict[str, Any] = {"Err": "\n".join(words) or "The tool failed."}
    if rest := [block for block in told["Ok"] if block["type"] != "text"]:
        found["content"] = rest
    return found | ({"data": told["data"]} if "data" in told else {})


def _block(block: dict[str, Any]) -> dict[str, Any] | None:
    kind = str(block.get("type", ""))
    if kind == "text":
        text = _text(block)
        return {"type": "text", "text": text} if text else None
    if kind not in _MEMBERS:
        return {"type": "text", "text": f"[{kind[:40] or 'nothing'} that cannot be shown]"}
    found = {name: block[name] for name in _MEMBERS[kind] if block.get(name) is not None}
    inside = dig(found, "resource") or found
    size = _cut_off(inside.get("data") or inside.get("blob"))
    if size is not None:
        what = str(inside.get("mimeType") or kind)[:100]
        return {"type": "text", "text": f"[{what} of {size} bytes, which is too large to keep]"}
    return {"type": kind, **found}


def _cut_off(data: Any) -> int | None:
    """Return how many bytes there were of data (in base64) that is not whole, or too large."""
    if not isinstance(data, str):
        return None
    size = true_size(data)
    if size is None and len(data) <= _MOST_DATA:
        return None
    return (size or len(data)) * 3 // 4


class TurnSummary:
    """Adds up events, live or from a journal; the same events give the same outcome.

    Attributes:
        complete: whether the last event of the turn was among them.
    """

    def __init__(self) -> None:
        self._answer = bytearray()
        self._tool_calls = 0
        self._error: TurnError | None = None
        self._stop_reason: str | None = None
        self.complete = False

    def take(self, kind: str, content: Mapping[str, Any]) -> None:
        """Add one event.

        Raises:
            KeyError: it is none of ours; nothing was added.
        """
        match kind:
            case "message":
                self._answer += str(content["content"]).encode("utf-8", "replace")
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
        """Return what the turn's record says from now on, in texts that can be kept."""
        error, reason = self._error, self._stop_reason
        return TurnOutcome(
            status=self._status(),
            answer=self._answer.decode(),
            tool_calls_count=self._tool_calls,
            error=None if error is None else encodable(error.text),
            error_code=None if error is None else encodable(error.code),
            stop_reason=None if reason is None else encodable(reason),
        )

    def _status(self) -> TurnStatus:
        if self._error is not None:
            return "error"
        return "cancelled" if self._stop_reason == "cancelled" else "completed"
