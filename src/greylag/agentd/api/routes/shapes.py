"""How records look in JSON."""

from datetime import UTC, datetime
from typing import Any

from greylag.agentd.records.database import SessionRecord, TurnRecord

_LIST_TEXT = 1000


def rfc3339(seconds: float) -> str:
    """Return Unix seconds as an RFC 3339 time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def session_object(session: SessionRecord) -> dict[str, Any]:
    """Return a session as the older contract shows it."""
    return {
        "session_id": session.session_id,
        "created_at": rfc3339(session.created_at),
        "updated_at": rfc3339(session.updated_at),
        "message_count": session.message_count,
    }


def turn_object(turn: TurnRecord) -> dict[str, Any]:
    """Return a whole turn."""
    return {
        "turn_id": turn.turn_id,
        "session_id": turn.session_id,
        "message_id": turn.message_id,
        "status": turn.status,
        "message": turn.message,
        "answer": turn.answer,
        "tool_calls_count": turn.tool_calls_count,
        "stop_reason": turn.stop_reason,
        "error": turn.error,
        "error_code": turn.error_code,
        "started_at": rfc3339(turn.started_at),
        "ended_at": None if turn.ended_at is None else rfc3339(turn.ended_at),
    }


def turn_summary(turn: TurnRecord) -> dict[str, Any]:
    """Return a turn as lists show it: no more than the first 1,000 characters of each text."""
    whole = turn_object(turn)
    return {
        **whole,
        "message": turn.message[:_LIST_TEXT],
        "answer": turn.answer[:_LIST_TEXT],
        "shortened": max(len(turn.message), len(turn.answer)) > _LIST_TEXT,
    }


def messages_of(turn: TurnRecord) -> list[dict[str, Any]]:
    """Return a turn's texts as the older contract's messages (without `message_index`)."""
    asked = {"role": "User", "content": turn.message, "timestamp": int(turn.started_at)}
    messages = [{**asked, "turn_id": turn.turn_id}]
    if turn.answer:
        ended = None if turn.ended_at is None else int(turn.ended_at)
        answered = {"role": "Assistant", "content": turn.answer, "timestamp": ended}
        messages.append({**answered, "turn_id": turn.turn_id})
    return messages
