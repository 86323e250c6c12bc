"""What all clusters share: the feed of unasked changes, and foreign words made plain."""

import asyncio
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from greylag.domain.project import ProjectRef

_ROUTINE = '"level": "info"'


@dataclass(slots=True, eq=False)
class _Listener:
    pending: dict[ProjectRef, None] = field(default_factory=dict)  # an ordered set
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class ChangeFeed:
    """Which environments changed unasked, for any number of listeners. For one event loop.

    A listener hears of each once until it has heard it, so a slow one cannot grow memory.
    """

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()
        self._closed = False

    def tell(self, ref: ProjectRef) -> None:
        """Let every listener hear of ``ref``."""
        for listener in self._listeners:
            listener.pending[ref] = None
            listener.woken.set()

    def listen(self) -> AsyncIterator[ProjectRef]:
        """Return what is told from now on, until ``close``."""
        listener = _Listener()
        self._listeners.add(listener)
        return self._hear(listener)

    def close(self) -> None:
        """End every listener's iteration. Again: nothing."""
        self._closed = True
        for listener in self._listeners:
            listener.woken.set()

    async def _hear(self, listener: _Listener) -> AsyncIterator[ProjectRef]:
        try:
            while not self._closed:
                await listener.woken.wait()
                listener.woken.clear()
                while listener.pending:
                    ref = next(iter(listener.pending))
                    del listener.pending[ref]
                    yield ref
        finally:
            self._listeners.discard(listener)


def end_of_log(said: bytes, lines: int, most: int) -> str:
    """Return the last ``lines`` of a log as one line of at most ``most`` characters, without
    agentd's records of what goes as it should: they say nothing of an end.
    """
    kept = [line.strip() for line in said.decode("utf-8", "replace").splitlines()]
    telling = [line for line in kept if line and _ROUTINE not in line]
    return plain(" | ".join(telling[-lines:]))[-most:]


def plain(text: str) -> str:
    """Return ``text`` with a space for each control or other unprintable character."""
    return "".join(" " if unicodedata.category(char)[0] == "C" else char for char in text)
