"""What was said in an environment that cannot be asked now, from the copy that workers keep."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from greylag.common.agent_api import (
    JSON,
    KEPT_AT,
    LIST_SESSIONS,
    MOST_BEFORE,
    MOST_MESSAGES,
    SHOW_SESSION,
    History,
    SessionList,
)
from greylag.common.clock import parse_rfc3339, rfc3339
from greylag.domain.errors import InvalidRequestError
from greylag.domain.project import Project
from greylag.domain.transcript import SESSIONS, KeptSession, Transcript, unpack, unpack_messages
from greylag.ports import AgentAnswer, AgentRequest, TranscriptStore


@dataclass(frozen=True, slots=True)
class Transcripts:
    """Answers in an agent's place. Whoever asks may read the project's conversations."""

    store: TranscriptStore

    async def kept_at(self, project: Project, session_id: str) -> datetime | None:
        """Return of when the copy of a session is, ``None`` where there is none."""
        known = await self._known(project)
        one = known and known.find(session_id)
        return parse_rfc3339(one.copied_at) if one and one.copied_at else None

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
            return _answer(SessionList(sessions, known.total), rfc3339(known.kept_at))
        one = known.find(request.parts["session"])
        if one is None:
            return None
        if request.operation is SHOW_SESSION:
            return _answer(one.session, rfc3339(known.kept_at))
        return await self._messages(project, one, request.query)

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
        return _answer(history, one.copied_at)

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


def _answer(told: Any, kept_at: str) -> AgentAnswer:
    async def body() -> AsyncIterator[bytes]:
        yield json.dumps(asdict(told), ensure_ascii=False, separators=(",", ":")).encode()

    return AgentAnswer(200, {"content-type": JSON, KEPT_AT: kept_at}, body())
