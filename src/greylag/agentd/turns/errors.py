"""Why a turn failed, for programs and for people."""

from dataclasses import dataclass

_AGAIN = "Send the message again."
_HINTS = {
    "agent_failed": _AGAIN,
    "agent_restarted": "Send the message again; the session and its files are kept.",
    "agent_unavailable": "Wait a moment and send it again; the environment's log says why.",
    "context_exceeded": "Begin a new session, or send a shorter message.",
    "internal": "Send the message again; the environment's log says what happened.",
    "journal_failed": "See that the environment's volume is writable and not full.",
    "journal_full": "Ask for a shorter answer, or raise GREYLAG_TURN_JOURNAL_LIMIT.",
    "model_empty_response": "Send the message again, or choose another model.",
    "model_failed": "Check GREYLAG_MODEL and what the provider says.",
    "model_rate_limited": "Wait a while, or raise the provider's limit for your key.",
    "model_unauthorized": "Check GREYLAG_MODEL_KEY and what the key may do.",
    "model_unavailable": "Check GREYLAG_MODEL_URL and the provider's state, then send it again.",
    "session_lost": "Begin a new session; its workspace is the same.",
}


@dataclass(frozen=True, slots=True)
class TurnError:
    """Why a turn failed: a stable code for programs, a text for people."""

    code: str
    text: str

    @property
    def hint(self) -> str:
        """What a person can do about it."""
        return _HINTS.get(self.code, _AGAIN)
