"""Which sessions goose has open: those used last, each with processes of its extensions.

goose closes none by itself, and opens one that is not open with the first call that needs it. So
what is closed here is as every session is after a new start of goose, and nobody needs to know.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from greylag.agentd.agent.acp import AcpPeer
from greylag.agentd.agent.types import AgentError

ARCHIVE = "_goose/unstable/session/archive"
MOST_OPEN = 8
"""More than people go to and fro between, as a session that is opened again starts its extensions
anew; with five that are servers they are 40 processes, not 50 for each ten sessions ever made."""
_UNARCHIVE = "_goose/unstable/session/unarchive"
_CLOSE_SECONDS = 3.0
"""Less than CANCEL_PATIENCE: who waits for a close and is cancelled ends no goose for it."""

_log = structlog.get_logger(__name__)


class OpenSessions:
    """Knows who uses which session, and closes those unused for longest when there are many.

    Only ``run`` closes, one at a time, and never one that is held. Who holds one that it is closing
    waits for the end of that in ``settled``.
    """

    def __init__(self) -> None:
        self._users: dict[str, int] = {}  # the one used last is last
        self._changed = asyncio.Event()
        self._closing: str | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def held(self, session: str) -> Iterator[None]:
        """Keep a session from being closed; from now on it is the one used last."""
        self._users[session] = self._users.pop(session, 0) + 1
        try:
            yield
        finally:
            self._users[session] = self._users.pop(session) - 1
            self._changed.set()

    def opened(self, session: str) -> None:
        """Take note of a session that goose has opened."""
        with self.held(session):
            pass

    async def settled(self, session: str) -> None:
        """Return when a session, which must be held, is not being closed; within seconds."""
        while self._closing == session:
            await self._idle.wait()

    def forget(self, session: str) -> None:
        """Forget a session that was put away."""
        if self._users.get(session) == 0:
            del self._users[session]

    async def run(self, peer: AcpPeer, closing: Callable[[str], None]) -> None:
        """Close what is too many, and tell ``closing`` of each before, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while (session := self._surplus()) is not None:
                # Whether it can be closed or not: it is tried again after its next use, not before.
                del self._users[session]
                self._closing = session
                self._idle.clear()
                closing(session)
                try:
                    await _close(peer, session)
                finally:
                    self._closing = None
                    self._idle.set()

    def _surplus(self) -> str | None:
        if len(self._users) <= MOST_OPEN:
            return None
        return next((one for one, users in self._users.items() if not users), None)


async def _close(peer: AcpPeer, session: str) -> None:
    # Not by session/close: goose then refuses the session until it is told to load it, which sends
    # its whole history. An archived one works as ever, should it stay so.
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            for method in (ARCHIVE, _UNARCHIVE):
                await peer.request(method, {"sessionId": session})
    except (AgentError, TimeoutError) as error:
        reason = str(error) or "it took too long"
        _log.warning("agent_session_stays_open", agent_session_id=session, error=reason)
