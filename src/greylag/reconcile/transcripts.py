"""What is kept of an environment's conversations, so that they can be read while it sleeps.

What its agent tells is not trusted: bounded as it comes, and checked. What is not known, or came
too late, leaves what was kept as it was, and never holds up the environment's end.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, TypeVar

import structlog

from greylag.common import sse
from greylag.common.agent_api import (
    LIST_MESSAGES,
    LIST_SESSIONS,
    LIST_TURNS,
    MEBIBYTE,
    MOST_AUTHOR,
    MOST_MESSAGES,
    MOST_TITLE,
    MOST_TURNS,
    PAGE_CHARACTERS,
    ChatMessage,
    Operation,
    Session,
    Turn,
)
from greylag.common.clock import parse_rfc3339, rfc3339
from greylag.common.typed import encodable, holds_more, parse_json, shaped
from greylag.domain.errors import (
    AgentFailedError,
    AgentUnreachableError,
    GreylagError,
    LeaseLostError,
    LimitExceededError,
    ProjectNotFoundError,
    SessionNotFoundError,
    StoreUnavailableError,
    StreamCutError,
)
from greylag.domain.names import path_segment
from greylag.domain.transcript import (
    MOST_BYTES,
    MOST_PART,
    MOST_SESSIONS,
    SESSIONS,
    KeptSession,
    Transcript,
    fitting,
    last_used,
    pack,
    pack_events,
    pack_messages,
    pack_turns,
    part_of,
    unpack,
    weight_of,
)
from greylag.ports import (
    AgentAddress,
    AgentAnswer,
    AgentGateway,
    AgentRequest,
    Claim,
    Clock,
    Cluster,
    ProjectStore,
)

LONGEST = 5.0
"""How many seconds a look takes at most, and no more than half of what is left of the lease."""
_MOST_ANSWER = 4 * MEBIBYTE
_MOST_ROLE = 40
_MOST_OPTION = 200
_MOST_WORDS = 1000
_MOST_VALUES = 500_000
_MOST_PICTURE = 64 * 1024
_LATER = "[What this shows can be seen once the environment is active.]"
_FRAME = re.compile(rb"id: ([^\r\n]+)-(\d{1,18})\ndata: ([^\r\n]+)")
_END = "complete"
_T = TypeVar("_T")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KeepingTranscripts:
    """Keeps what agents tell of their sessions; not ``wanted``: nothing of it, from now on."""

    store: ProjectStore
    cluster: Cluster
    agents: AgentGateway
    clock: Clock
    wanted: bool

    async def look(self, claim: Claim, *, last: bool = False) -> None:
        """Bring the copy up to what the agent of a ready environment tells, if that is new.

        Before the environment ends (``last``) how new the copy is is kept, too.

        Raises:
            LeaseLostError: another worker goes on with the project.
        """
        if not self.wanted:
            return
        try:
            async with asyncio.timeout(min(LONGEST, self.left(claim) / 2)):
                at = await self.cluster.reach(claim.project.environment)
                await self._update(claim, at, last=last)
        except LeaseLostError:
            raise
        except (GreylagError, TimeoutError) as error:
            _log.warning("conversations_not_copied", error=str(error) or "it took too long")

    def left(self, claim: Claim) -> float:
        """Return how many seconds are left of a claim's lease."""
        lease = claim.project.lease
        return 0 if lease is None else (lease.until - self.clock.now()).total_seconds()

    async def drop_unwanted(self, claim: Claim) -> None:
        """Remove what is kept of the project, where nothing is to be.

        Raises:
            LeaseLostError: another worker goes on with the project.
        """
        try:
            if not self.wanted and await self._kept(claim) is not None:
                await self.store.keep_transcript(claim, {}, only=())
        except (StoreUnavailableError, ProjectNotFoundError) as error:
            _log.warning("conversations_not_removed", error=str(error))

    async def _update(self, claim: Claim, at: AgentAddress, *, last: bool) -> None:
        """Make the copy what is told, session by session, the newest first, messages before steps.

        Whatever cuts it off leaves a copy that says of each session when it was so; the next look
        makes up for the rest.
        """
        told, total = await self._ask(at, LIST_SESSIONS, _sessions)
        kept = unpack(await self._kept(claim)) or Transcript(self.clock.now(), total=-1)
        found = [
            replace(kept.find(one.session_id) or KeptSession(one), session=one) for one in told
        ]
        look = _Look(claim, at, self.clock.now(), found, total)
        same = kept.total == total and [one.session for one in kept.sessions] == told
        changed, spent = last or not same, 0
        for place, one in enumerate(found):
            if spent + (one.size if one.is_current else MOST_PART) > MOST_BYTES:
                found[place] = KeptSession(one.session)
            elif one.is_current:
                found[place] = replace(one, copied_at=rfc3339(look.now))
            elif (part := await self._messages(at, one.session.session_id)) is not None:
                now = rfc3339(look.now)
                found[place] = replace(one, copied_at=now, copied=one.state, size=len(part))
                await self._write(look, {one.session.session_id: part})
                changed = True
            spent += found[place].size
        if changed:
            await self._write(look)
        await self._update_steps(look)

    async def _write(
        self, look: "_Look", parts: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        """Keep these parts and what is told of all, and nothing that there is no room for."""
        look.found[:] = fitting(look.found)
        names = {SESSIONS, *(name for one in look.found for name in one.parts)}
        listed = pack(Transcript(look.now, look.found, look.total))
        await self.store.keep_transcript(look.claim, {**parts, SESSIONS: listed}, only=names)

    async def _update_steps(self, look: "_Look") -> None:
        """Copy the turns of sessions that have changed, the newest first, while there is room."""
        room = MOST_BYTES - sum(one.size for one in look.found)
        for place, one in enumerate(look.found):
            if room < MOST_PART:
                break
            if one.is_current and one.steps_copied != one.state:
                await self._copy_turns(look, place, room)
            room -= look.found[place].steps_size

    async def _copy_turns(self, look: "_Look", place: int, room: int) -> None:
        """Copy those of a session's turns that have ended, of which there is no copy yet."""
        one = look.found[place]
        session_id = one.session.session_id
        query = {"limit": str(MOST_TURNS)}
        try:
            told = await self._ask(look.at, LIST_TURNS, _turns, query, session=session_id)
        except AgentUnreachableError:
            raise
        except GreylagError as error:  # also of a version that cannot be asked so
            _log.warning("steps_not_copied", session_id=session_id, error=str(error))
            look.found[place] = replace(one, steps_copied=one.state)
            await self._write(look)
            return
        turns = [replace(turn, session_id=session_id) for turn in told]
        parts = {part_of(session_id): await asyncio.to_thread(pack_turns, turns)}
        names = ["", *(turn.turn_id for turn in turns)]
        sizes = {**one.turns, "": len(parts[part_of(session_id)])}
        for turn_id in names:
            if turn_id not in sizes and room >= MOST_PART:
                part = await self._events(look.at, turn_id)
                if part is not None:
                    sizes[turn_id] = len(part)
                    look.found[place] = replace(one, turns=_ordered(sizes, names))
                    await self._write(look, {**parts, part_of(session_id, turn_id): part})
            room -= weight_of(sizes.get(turn_id, 0))
        seen = replace(one, turns=_ordered(sizes, names), steps_copied=one.state)
        look.found[place] = seen
        await self._write(look, parts)

    async def _events(self, at: AgentAddress, turn_id: str) -> bytes | None:
        """Return what is to be kept of the events of a turn that has ended; nothing where they are
        not to be had, or are no events, ``None`` where they may be later.
        """
        try:
            async with self.agents.stream_turn(at, turn_id, None) as runs:
                answer = AgentAnswer(200, {}, runs)
                return await answer.read(MOST_BYTES, partial(_events, turn_id))
        except (StreamCutError, LimitExceededError):
            return None
        except AgentUnreachableError:
            raise
        except (GreylagError, RecursionError) as error:
            _log.warning("turn_not_copied", turn_id=turn_id, error=str(error))
            return b""

    async def _messages(self, at: AgentAddress, session_id: str) -> bytes | None:
        """Return what is to be kept of a session's messages.

        ``None``: something is wrong with them, or it has just gone; that is not to hide the others.
        """
        query = {"limit": str(MOST_MESSAGES)}
        try:
            messages = await self._ask(at, LIST_MESSAGES, _messages, query, session=session_id)
        except (AgentFailedError, SessionNotFoundError) as error:
            _log.warning("conversation_not_copied", session_id=session_id, error=str(error))
            return None
        return await asyncio.to_thread(pack_messages, messages)

    async def _kept(self, claim: Claim) -> bytes | None:
        ref = claim.project.ref
        return await self.store.transcript(ref.user_id, ref.project_id, SESSIONS)

    async def _ask(
        self,
        at: AgentAddress,
        operation: Operation[Any],
        read: Callable[[Any], _T],
        query: Mapping[str, str] = MappingProxyType({}),
        **parts: str,
    ) -> _T:
        async with self.agents.relay(at, AgentRequest(operation, parts, query)) as answer:
            return await answer.read(_MOST_ANSWER, lambda body: read(parse_json(body)))


@dataclass(frozen=True, slots=True)
class _Look:
    """A look at what an agent tells; ``found``: what is kept of its sessions by then."""

    claim: Claim
    at: AgentAddress
    now: datetime
    found: list[KeptSession]
    total: int


def _ordered(sizes: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    return {name: sizes[name] for name in names if name in sizes}


# What an agent, which may tell anything, tells.


def _sessions(told: Any) -> tuple[list[Session], int]:
    """Return the sessions that were used last, in the order in which they are told, and how many
    there are.
    """
    listed = told["sessions"]
    used_last = last_used(listed, MOST_SESSIONS, lambda one: str(one["updated_at"]))
    found = {one.session_id: one for one in map(_session, used_last)}
    return list(found.values()), len(listed)


def _session(told: Any) -> Session:
    one = shaped(Session, told)
    path_segment(one.session_id, "session")
    return replace(
        one,
        created_at=rfc3339(parse_rfc3339(one.created_at)),
        updated_at=rfc3339(parse_rfc3339(one.updated_at)),
        message_count=max(0, one.message_count),
        title=_text(one.title, MOST_TITLE),
        mode=None if one.mode is None else _text(one.mode, _MOST_OPTION),
        model=None if one.model is None else _text(one.model, _MOST_OPTION),
    )


def _messages(told: Any) -> list[ChatMessage]:
    """Return the newest messages of a session, oldest first."""
    found = [_message(one) for one in told["messages"][-MOST_MESSAGES:]]
    places = [-1, *(one.message_index for one in found)]
    if any(next_one <= one for one, next_one in pairwise(places)):
        raise ValueError("the messages are not in their order")
    return found


def _message(told: Any) -> ChatMessage:
    one = shaped(ChatMessage, told)
    if one.turn_id is not None:
        path_segment(one.turn_id, "turn")
    content = _text(one.content, PAGE_CHARACTERS)
    return replace(
        one,
        role=_text(one.role, _MOST_ROLE),
        content=content,
        shortened=one.shortened or len(content) < len(one.content),
        author=None if one.author is None else _text(one.author, MOST_AUTHOR),
    )


def _turns(told: Any) -> list[Turn]:
    """Return those of the newest turns of a session that have ended, newest first."""
    found = {one.turn_id: one for one in map(_turn, told["turns"][:MOST_TURNS])}
    return [one for one in found.values() if one.status != "running"]


def _turn(told: Any) -> Turn:
    texts = {
        name: _text(one, _MOST_WORDS) if isinstance(one, str) else one
        for name, one in dict(told).items()
    }
    one = shaped(Turn, texts)
    path_segment(one.turn_id, "turn")
    changes = one.changes
    if changes is not None and changes.undo_id is not None:
        changes = replace(changes, undo_id=_text(changes.undo_id, _MOST_OPTION))
    return replace(
        one,
        started_at=rfc3339(parse_rfc3339(one.started_at)),
        ended_at=None if one.ended_at is None else rfc3339(parse_rfc3339(one.ended_at)),
        tool_calls_count=max(0, one.tool_calls_count),
        changes=changes,
        question=None,
    )


def _events(turn_id: str, told: bytes) -> bytes:
    """Return what is kept of a turn's events: as they are, but for pictures that are too large."""
    kept, last, kind = [], -1, ""
    for frame in told.split(b"\n\n"):
        if not frame.strip(b":"):
            continue  # the end, or a heartbeat
        found = _FRAME.fullmatch(frame)
        if found is None or found[1] != turn_id.encode() or int(found[2]) <= last or kind == _END:
            raise ValueError("this is no next event of the turn")
        if len(frame) > _MOST_VALUES and holds_more(found[3], _MOST_VALUES):
            raise ValueError("the event holds more than can be looked at")
        event = parse_json(found[3])
        kind, last = event["type"], int(found[2])
        if not isinstance(kind, str) or not isinstance(event["content"], dict):
            raise TypeError("the event has no type, or no content")
        if len(frame) > _MOST_PICTURE and _drop_pictures(event["content"].get("result")):
            kept.append(sse.encode(event, id=f"{turn_id}-{last}"))
        else:
            kept.append(frame + b"\n\n")
    part = pack_events(b"".join(kept))
    if kind != _END or len(part) > MOST_PART:
        raise ValueError("the turn's events have no end, or are too large")
    return part


def _drop_pictures(result: Any) -> bool:
    """Put words in the place of pictures that are too large; tell whether there are any."""
    dropped = False
    for name in ("Ok", "content") if isinstance(result, dict) else ():
        blocks = result.get(name)
        for place, block in enumerate(blocks if isinstance(blocks, list) else ()):
            inside = block.get("resource", block) if isinstance(block, dict) else None
            data = (inside.get("data") or inside.get("blob")) if isinstance(inside, dict) else None
            if isinstance(data, str) and len(data) > _MOST_PICTURE:
                blocks[place] = {"type": "text", "text": _LATER}
                dropped = True
    return dropped


def _text(text: str, most: int) -> str:
    """Return a text's beginning, as it can be sent."""
    return encodable(text[:most])
