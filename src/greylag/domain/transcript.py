"""The copy of an environment's conversations that is kept to be read while it sleeps.

It is in parts, each a few bytes that a store need not understand: one names the sessions, and there
is one for each session's messages.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from greylag.common.agent_api import ChatMessage, Session
from greylag.common.clock import parse_rfc3339, rfc3339
from greylag.common.typed import parse_json, shaped

SESSIONS = ""
"""The part that names the sessions; the others are called as their sessions."""
MOST_SESSIONS = 200
MOST_PART = 1024 * 1024
MOST_BYTES = 8 * MOST_PART
"""How many sessions are kept of a project, the newest; how many bytes one's messages have, and all
together.
"""


@dataclass(frozen=True, slots=True)
class KeptSession:
    """A session as its agent told of it.

    Attributes:
        session: it.
        copied_at: when its messages were as they are kept; ``None``: they are not kept.
        copied: what told that session from any other state of it then.
        size: bytes of its part.
    """

    session: Session
    copied_at: str | None = None
    copied: str = ""
    size: int = 0

    @property
    def state(self) -> str:
        """What tells the session from one in which more was said."""
        return f"{self.session.message_count} {self.session.updated_at}"

    @property
    def is_current(self) -> bool:
        """Whether its messages are kept as they are now."""
        return self.copied_at is not None and self.copied == self.state


@dataclass(frozen=True, slots=True)
class Transcript:
    """What the sessions of a project were when they were last looked at; ``total``: how many."""

    kept_at: datetime
    sessions: Sequence[KeptSession] = field(default=())
    total: int = 0

    def find(self, session_id: str) -> KeptSession | None:
        """Return the session with this id."""
        return next((one for one in self.sessions if one.session.session_id == session_id), None)


def pack(transcript: Transcript) -> bytes:
    """Return the part that names the sessions."""
    return _packed(asdict(transcript) | {"kept_at": rfc3339(transcript.kept_at)})


def unpack(part: bytes | None) -> Transcript | None:
    """Return what ``pack`` was given; ``None`` for none, or what another version has written."""
    try:
        told = _unpacked(part) if part else {}
        sessions = [shaped(KeptSession, one) for one in told["sessions"]]
        return Transcript(parse_rfc3339(told["kept_at"]), sessions, told["total"])
    except (ValueError, TypeError, KeyError, zlib.error):
        return None


def pack_messages(messages: Sequence[ChatMessage]) -> bytes:
    """Return the part of a session: its newest messages, as many as one may hold."""
    part = _packed([asdict(one) for one in messages])
    while len(part) > MOST_PART:
        messages = messages[(len(messages) + 1) // 2 :]
        part = _packed([asdict(one) for one in messages])
    return part


def unpack_messages(part: bytes) -> Sequence[ChatMessage]:
    """Return the messages that ``pack_messages`` has kept, oldest first."""
    return [shaped(ChatMessage, one) for one in _unpacked(part)]


def _packed(value: object) -> bytes:
    return zlib.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def _unpacked(part: bytes) -> Any:
    return parse_json(zlib.decompress(part))
