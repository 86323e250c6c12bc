"""What is kept of an environment's conversations, so that they can be read while it sleeps.

What its agent tells is not trusted: bounded as it comes, and checked. What is not known, or came
too late, leaves what was kept as it was, and never holds up the environment's end.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, TypeVar

import structlog

from greylag.common.agent_api import (
    LIST_MESSAGES,
    LIST_SESSIONS,
    MEBIBYTE,
    MOST_AUTHOR,
    MOST_MESSAGES,
    MOST_TITLE,
    PAGE_CHARACTERS,
    ChatMessage,
    Operation,
    Session,
)
from greylag.common.clock import parse_rfc3339, rfc3339
from greylag.common.typed import encodable, parse_json, shaped
from greylag.domain.errors import (
    AgentFailedError,
    GreylagError,
    LeaseLostError,
    ProjectNotFoundError,
    SessionNotFoundError,
    StoreUnavailableError,
)
from greylag.domain.names import path_segment
from greylag.domain.transcript import (
    MOST_BYTES,
    MOST_PART,
    MOST_SESSIONS,
    SESSIONS,
    KeptSession,
    Transcript,
    pack,
    pack_messages,
    unpack,
)
from greylag.ports import (
    AgentAddress,
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
            async with asyncio.timeout(min(LONGEST, self._left(claim) / 2)):
                at = await self.cluster.reach(claim.project.environment)
                await self._update(claim, at, last=last)
        except LeaseLostError:
            raise
        except (GreylagError, TimeoutError) as error:
            _log.warning("conversations_not_copied", error=str(error) or "it took too long")

    def _left(self, claim: Claim) -> float:
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
        """Make the copy what is told, session by session, the newest first.

        Whatever cuts it off leaves a copy that says of each session when it was so; the next look
        makes up for the rest.
        """
        told, total = await self._ask(at, LIST_SESSIONS, _sessions)
        kept = unpack(await self._kept(claim)) or Transcript(self.clock.now(), total=-1)
        now = self.clock.now()
        found = [
            replace(kept.find(one.session_id) or KeptSession(one), session=one) for one in told
        ]
        same = kept.total == total and [one.session for one in kept.sessions] == told
        changed, spent = last or not same, 0
        for place, one in enumerate(found):
            if spent + (one.size if one.is_current else MOST_PART) > MOST_BYTES:
                found[place] = KeptSession(one.session)
            elif one.is_current:
                found[place] = replace(one, copied_at=rfc3339(now))
            elif (part := await self._messages(at, one.session.session_id)) is not None:
                found[place] = KeptSession(one.session, rfc3339(now), one.state, len(part))
                parts = {
                    one.session.session_id: part,
                    SESSIONS: pack(Transcript(now, found, total)),
                }
                await self.store.keep_transcript(claim, parts)
                changed = True
            spent += found[place].size
        if changed:
            names = [one.session.session_id for one in found if one.copied_at is not None]
            parts = {SESSIONS: pack(Transcript(now, found, total))}
            await self.store.keep_transcript(claim, parts, only=[SESSIONS, *names])

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


# What an agent, which may tell anything, tells.


def _sessions(told: Any) -> tuple[list[Session], int]:
    """Return the newest sessions, and how many there are."""
    listed = told["sessions"]
    found = {one.session_id: one for one in map(_session, listed[:MOST_SESSIONS])}
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


def _text(text: str, most: int) -> str:
    """Return a text's beginning, as it can be sent."""
    return encodable(text[:most])
