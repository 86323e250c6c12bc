"""What was said and done in an environment that cannot be asked, told from the copy that workers
keep of it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from greylag.common.agent_api import (
    JSON,
    KEPT_AT,
    LIST_SESSIONS,
    LIST_TURNS,
    MOST_BEFORE,
    MOST_MESSAGES,
    MOST_TURNS,
    SHOW_SESSION,
    TURNS,
    History,
    SessionList,
    TurnList,
)
from greylag.common.clock import rfc3339
from greylag.domain.errors import InvalidRequestError, TurnOverError
from greylag.domain.project import Project
from greylag.domain.transcript import (
    SESSIONS,
    KeptSession,
    Transcript,
    part_of,
    unpack,
    unpack_events,
    unpack_messages,
    unpack_turns,
)
from greylag.ports import AgentAnswer, AgentRequest, TranscriptStore


@dataclass(frozen=True, slots=True)
class Transcripts:
    """Answers in an agent's place. Whoever asks may read the project's conversations."""

    store: TranscriptStore

    async def kept(self, project: Project, session_id: str) -> KeptSession | None:
        """Return what there is of a session, ``None`` where that is nothing."""
        known = await self._known(project)
        return None if known is None else known.find(session_id)

    async def answer(self, project: Project, request: AgentRequest) -> AgentAnswer | None:
        """Return what is kept of what is asked for, marked as a copy; ``None`` where that is
        nothing, which does not mean that there is nothing.

        Raises:
            InvalidRequestError: no agent would take this query.
        """
        known = await self._known(project) if request.operation.kept else None
        if known is None:
            return None
        if request.operation is LIST_SESSIONS:
            sessions = [one.session for one in known.sessions]
            return _copied(SessionList(sessions, known.total), rfc3339(known.kept_at))
        one = known.find(request.parts["session"])
        if one is None:
            return None
        if request.operation is SHOW_SESSION:
            return _copied(one.session, rfc3339(known.kept_at))
        if request.operation is LIST_TURNS:
            return await self._turns(project, one, request.query)
        return await self._messages(project, one, request.query)

    async def events(
        self, project: Project, turn_id: str, after: str | None
    ) -> tuple[AbstractAsyncContextManager[AsyncIterator[bytes]], str | None] | None:
        """Return a turn's events from the one after id ``after``, to be opened, and of when they
        are; ``None`` where they are not kept.
        """
        known = await self._known(project)
        one = None if known is None else known.find_turn(turn_id)
        if one is None:
            return None
        part = await self._part(project, part_of(one.session.session_id, turn_id))
        return None if part is None else (_opened(part, after), one.copied_at)

    async def _messages(
        self, project: Project, one: KeptSession, query: Mapping[str, str]
    ) -> AgentAnswer | None:
        limit = _whole_number(query, "limit", MOST_MESSAGES)
        before = _whole_number(query, "before", MOST_BEFORE)
        part = await self._part(project, one.session.session_id)
        if part is None or one.copied_at is None:
            return None
        said = await asyncio.to_thread(unpack_messages, part)
        if limit is not None:
            end = before or MOST_BEFORE
            said = [message for message in said if message.message_index < end][-limit:]
        history = History(one.session.session_id, list(said), one.session.message_count)
        return _copied(history, one.copied_at)

    async def _turns(
        self, project: Project, one: KeptSession, query: Mapping[str, str]
    ) -> AgentAnswer | None:
        limit = _whole_number(query, "limit", MOST_TURNS) or TURNS
        part = await self._part(project, part_of(one.session.session_id))
        if part is None or one.copied_at is None:
            return None
        turns = await asyncio.to_thread(unpack_turns, part)
        return _copied(TurnList(list(turns[:limit])), one.copied_at)

    async def _known(self, project: Project) -> Transcript | None:
        return unpack(await self._part(project, SESSIONS))

    async def _part(self, project: Project, part: str) -> bytes | None:
        return await self.store.transcript(project.user_id, project.project_id, part)


def _whole_number(query: Mapping[str, str], name: str, most: int) -> int | None:
    """Return a number of a query as agents take it, ``None`` where it is not given."""
    value = query.get(name)
    if value is None:
        return None
    digits = value.isascii() and value.isdigit() and len(value) <= len(str(most))
    if not digits or not 1 <= int(value) <= most:
        raise InvalidRequestError(f"{name} must be a whole number from 1 to {most}.")
    return int(value)


def _copied(told: Any, kept_at: str) -> AgentAnswer:
    async def body() -> AsyncIterator[bytes]:
        yield json.dumps(asdict(told), ensure_ascii=False, separators=(",", ":")).encode()

    return AgentAnswer(200, {"content-type": JSON, KEPT_AT: kept_at}, body())


@asynccontextmanager
async def _opened(part: bytes, after: str | None) -> AsyncIterator[AsyncIterator[bytes]]:
    frames = unpack_events(part)
    first = b"" if after is None else await asyncio.to_thread(_behind, frames, after)
    first = first or next(frames, b"")
    if not first:
        raise TurnOverError("Nothing follows that event: the turn is over.")

    async def runs() -> AsyncIterator[bytes]:
        yield first
        for run in frames:
            yield run

    yield runs()


def _behind(frames: Iterator[bytes], event: str) -> bytes:
    """Return what follows the event in the same run of frames; the next is what comes after."""
    # What is told in a frame holds no line end.
    mark = f"id: {event}\n".encode()
    for run in frames:
        _, found, rest = run.partition(mark)
        if found:
            return rest.partition(b"\n\n")[2]
    raise InvalidRequestError("The turn has no such event.")
