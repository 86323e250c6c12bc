"""Why a turn failed, for programs and for people.

goose (1.52) tells of most failures of the model provider in an ordinary piece of the answer, and
then ends the turn as if all were well; only a refused key is a JSON-RPC error. So its own texts are
recognised here. Where the model relay knows what the provider itself said, that decides.
"""

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from greylag.agentd.agent.types import (
    SESSION_UNKNOWN,
    AgentDiedError,
    AgentError,
    AgentRefusedError,
    AgentStarvedError,
    AgentUnavailableError,
    ModelFailure,
)
from greylag.agentd.journal.journal import JournalError, JournalFullError
from greylag.agentd.records import StorageError

AUTHENTICATION_REQUIRED = -32000
EMPTY_RESPONSE = "model_empty_response"
UNWRITTEN = frozenset({"journal_failed", "storage_failed"})
"""Codes of what the environment's disk did not take."""

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
    "model_failed": "Ask in other words, choose another model, or check GREYLAG_MODEL.",
    "model_rate_limited": "Wait a while, add credit, or raise the provider's limit for your key.",
    "model_unauthorized": "Check GREYLAG_MODEL_KEY and what the key may do.",
    "model_unavailable": "Check GREYLAG_MODEL_URL and the provider's state, then send it again.",
    "session_lost": "Begin a new session; its workspace is the same.",
    "storage_failed": (
        "See that the environment's disk is writable and has room: delete files, or give it more."
        " Then send the message again."
    ),
}

_OWN_MESSAGE_ID = "msg_"
_GENERAL = ("Ran into this error: ", "Ran into this error trying to compact: ")
_NETWORK = "Network error: "
_EMPTY = "The model returned an empty response."
_ADVICE = (
    "\n\nPlease retry if you think this is a transient or recoverable error.",
    "\n\nPlease resend your message to try again.",
    "\n\nPlease try again or create a new session",
)
_RELAY = re.compile(r" at http://127\.0\.0\.1:\d+[^\s:]*")
_TWICE = re.compile(r"^([\w ]+): (?=\1\b)")
_CODES = (
    ("Rate limit exceeded", "model_rate_limited"),
    ("Credits exhausted", "model_rate_limited"),
    ("Server error", "model_unavailable"),
    ("Authentication", "model_unauthorized"),
    ("Context length exceeded", "context_exceeded"),
    ("Failed to compact", "context_exceeded"),
)
# What a compaction that the user has asked for ends with, without more words around it.
_BARE = re.compile(
    r"(Rate limit exceeded|Credits exhausted|Server error|Authentication error"
    r"|Context length exceeded|Failed to compact|Execution error): "
)
_NO_CREDITS = {"reason": "credits_exhausted"}


@dataclass(frozen=True, slots=True)
class TurnError:
    """Why a turn failed: a stable code for programs, a text for people."""

    code: str
    text: str
    advice: str = ""

    @property
    def hint(self) -> str:
        """What a person can do about it."""
        return self.advice or _HINTS.get(self.code, _AGAIN)


RESTARTED = TurnError("agent_restarted", "The agent restarted while it answered.")
STARVED = TurnError(
    RESTARTED.code,
    f"{RESTARTED.text} Most likely it took more memory than there is for it.",
    "Have its tools print less, as into a file, or give it more memory; then send it again.",
)


def failure_of(error: AgentError | JournalError | StorageError) -> TurnError:
    """Return what an error means for the turn, in the words that its user gets."""
    match error:
        case AgentRefusedError():
            return refusal(error)
        case AgentDiedError():
            return STARVED if isinstance(error, AgentStarvedError) else RESTARTED
        case AgentUnavailableError():
            return TurnError("agent_unavailable", str(error))
        case JournalError():
            full = isinstance(error, JournalFullError)
            return TurnError("journal_full" if full else "journal_failed", str(error))
        case StorageError():
            return TurnError("storage_failed", str(error))
        case _:
            return TurnError("agent_failed", str(error))


def refusal(error: AgentRefusedError) -> TurnError:
    """Return what a JSON-RPC error of the agent means for the turn."""
    if error.code == AUTHENTICATION_REQUIRED:
        return TurnError("model_unauthorized", "Authentication required")
    if error.code == SESSION_UNKNOWN:
        return TurnError("session_lost", "The agent does not know this session any more.")
    if error.data == _NO_CREDITS:
        return TurnError("model_rate_limited", error.message)
    if error.unkept:
        return TurnError("storage_failed", f"The agent could not keep its records: {error.words}")
    return TurnError("agent_failed", error.message)


def provider_error(update: dict[str, Any]) -> TurnError | None:
    """Return the failure that an ``agent_message_chunk`` tells of, None for an ordinary piece.

    It is a failure for certain only when the turn ends right after it.
    """
    if not str(update.get("messageId") or "").startswith(_OWN_MESSAGE_ID):
        return None
    content = update.get("content")
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str):
        return None
    if text.startswith(_NETWORK):
        return TurnError("model_unavailable", _without_advice(text))
    if text.startswith(_EMPTY):
        return TurnError(EMPTY_RESPONSE, _EMPTY)
    general = next(filter(text.startswith, _GENERAL), "")
    if general or _BARE.match(text):
        reason = _without_advice(text.removeprefix(general))
        known = (code for start, code in _CODES if reason.startswith(start))
        return TurnError(next(known, "model_failed"), reason)
    return None


def with_provider_code(error: TurnError, failure: ModelFailure | None) -> TurnError:
    """Return ``error`` as the provider's own answer has it, where that is known.

    Args:
        error: what goose's words mean.
        failure: what the provider told the model relay; None when it told of no failure.
    """
    if failure is None or not error.code.startswith("model_"):
        return error
    return TurnError(_code_for_status(failure.status), failure.message)


def _code_for_status(status: int | None) -> str:
    match status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return "model_unauthorized"
        case HTTPStatus.TOO_MANY_REQUESTS | HTTPStatus.PAYMENT_REQUIRED:
            return "model_rate_limited"
        case None:
            return "model_unavailable"
        case _ if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "model_unavailable"
        case _:
            return "model_failed"


def _without_advice(text: str) -> str:
    """Take away what is nobody's business: advice, the relay's address, a word said twice."""
    for advice in _ADVICE:
        text = text.removesuffix(advice)
    return _TWICE.sub("", _RELAY.sub("", text)).rstrip(".")
