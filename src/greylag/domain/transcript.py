"""The copy of an environment's conversations that is kept to be read while it sleeps.

It is in parts, each a few bytes that a store need not understand: one names the sessions, and there
is one for each session's messages, one for the list of its turns and one for each turn's events.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from heapq import nlargest
from typing import Any, TypeVar

from greylag.common.agent_api import ChatMessage, Session, Turn
from greylag.common.clock import parse_rfc3339, rfc3339
from greylag.common.sse import FrameSplitter
from greylag.common.typed import parse_json, shaped

SESSIONS = ""
"""The part that names the sessions; those of messages are called as their sessions."""
_RUN = 64 * 1024
MOST_SESSIONS = 200
MOST_PART = 1024 * 1024
MOST_BYTES = 8 * MOST_PART
"""How many sessions are kept of a project, those used last; how many bytes one's messages have, or
one turn's events, and all together.
"""
LEAST = 8 * 1024
"""How many bytes a turn counts for at least: so there are not too many of them."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeptSession:
    """A session as its agent told of it.

    Attributes:
        session: it.
        copied_at: when its messages were as they are kept; ``None``: they are not kept.
        copied: what told that session from any other state of it then.
        size: bytes of its part.
        steps_copied: the same as ``copied``, of when its turns were looked at.
        turns: bytes of each turn's events, the newest turn first, by its id; 0: there are none to
            be had. Those of the list of its turns come before them, by "".
    """

    session: Session
    copied_at: str | None = None
    copied: str = ""
    size: int = 0
    steps_copied: str = ""
    turns: Mapping[str, int] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """What tells the session from one in which more was said."""
        return f"{self.session.message_count} {self.session.updated_at}"

    @property
    def is_current(self) -> bool:
        """Whether its messages are kept as they are now."""
        return self.copied_at is not None and self.copied == self.state

    @property
    def steps_size(self) -> int:
        """For how many bytes its turns count."""
        return sum(weight_of(size) for size in self.turns.values())

    @property
    def parts(self) -> list[str]:
        """The names of its parts that are kept."""
        if self.copied_at is None:
            return []
        own = self.session.session_id
        return [own, *(part_of(own, turn_id) for turn_id, size in self.turns.items() if size)]


@dataclass(frozen=True, slots=True)
class Transcript:
    """What the sessions of a project were when they were last looked at; ``total``: how many."""

    kept_at: datetime
    sessions: Sequence[KeptSession] = field(default=())
    total: int = 0

    def find(self, session_id: str) -> KeptSession | None:
        """Return the session with this id."""
        return next((one for one in self.sessions if one.session.session_id == session_id), None)

    def find_turn(self, turn_id: str) -> KeptSession | None:
        """Return the session of a turn whose events are kept."""
        return next((one for one in self.sessions if one.turns.get(turn_id)), None)


def part_of(session_id: str, turn_id: str = "") -> str:
    """Return the name of the part that holds a turn's events, or the list of a session's turns. No
    session's own part is called so, as no id holds a slash.
    """
    return f"{session_id}/{turn_id}"


def weight_of(size: int) -> int:
    """Return for how many bytes of a project's a turn counts of which ``size`` are kept."""
    return max(size, LEAST)


def last_used(sessions: Sequence[T], most: int, at: Callable[[T], str]) -> list[T]:
    """Return of these sessions the ``most`` that were used last, in the order in which they come;
    ``at`` returns when one was.
    """
    places = nlargest(most, range(len(sessions)), key=lambda place: at(sessions[place]))
    return [sessions[place] for place in sorted(places)]


def fitting(sessions: Sequence[KeptSession]) -> list[KeptSession]:
    """Return the sessions with those turns that there is room for beside all messages: the first
    ones.
    """
    room = MOST_BYTES - sum(one.size for one in sessions)
    found = []
    for one in sessions:
        turns: dict[str, int] = {}
        for turn_id, size in one.turns.items():
            room -= weight_of(size)
            if room < 0:
                break
            turns[turn_id] = size
        found.append(replace(one, turns=turns))
    return found


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
    return _pack_last(messages)


def unpack_messages(part: bytes) -> Sequence[ChatMessage]:
    """Return the messages that ``pack_messages`` has kept, oldest first."""
    return [shaped(ChatMessage, one) for one in _unpacked(part)]


def pack_turns(turns: Sequence[Turn]) -> bytes:
    """Return the part that lists a session's turns, which come newest first; as ``pack_messages``
    does.
    """
    return _pack_last(turns[::-1])


def unpack_turns(part: bytes) -> Sequence[Turn]:
    """Return the turns that ``pack_turns`` has kept, newest first."""
    return [shaped(Turn, one) for one in reversed(_unpacked(part))]


def pack_events(frames: bytes) -> bytes:
    """Return the part of a turn: the frames of its events."""
    return zlib.compress(frames)


def unpack_events(part: bytes) -> Iterator[bytes]:
    """Yield what ``pack_events`` has kept, as runs of whole frames, each some 64 KiB or one frame
    that is longer.
    """
    unpacking, frames = zlib.decompressobj(), FrameSplitter()
    while not unpacking.eof:
        told = unpacking.decompress(part, _RUN)
        part = unpacking.unconsumed_tail
        if not told and not part:
            return  # it is not whole
        if run := frames.feed_whole(told):
            yield run


def _pack_last(items: Sequence[ChatMessage] | Sequence[Turn]) -> bytes:
    part = _packed([asdict(one) for one in items])
    while len(part) > MOST_PART:
        items = items[(len(items) + 1) // 2 :]
        part = _packed([asdict(one) for one in items])
    return part


def _packed(value: object) -> bytes:
    return zlib.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def _unpacked(part: bytes) -> Any:
    return parse_json(zlib.decompress(part))
