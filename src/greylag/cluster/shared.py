"""What all clusters share: the feed of unasked changes, and foreign words made plain."""

import asyncio
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from greylag.common.typed import parse_json
from greylag.domain.project import ProjectRef


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
    """Return the last ``lines`` of a log as one line of at most ``most`` characters. Of agentd's
    records it has what they say to people, and not those of what goes as it should.
    """
    kept = [_words(line.strip()) for line in said.decode("utf-8", "replace").splitlines()]
    return plain(" | ".join([line for line in kept if line][-lines:]))[-most:]


def _words(line: str) -> str:
    try:
        record = parse_json(line.encode())
    except ValueError:
        return line  # also a record that is cut
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return line
    if record.get("level") in ("info", "debug"):
        return ""
    why = record.get("reason") or record.get("error") or record.get("said")
    why = why or _raised(record.get("exception"))
    return f"{record['event']}: {why}" if why else str(record["event"])


def _raised(told: Any) -> str:
    """Return what a record's exception is; of a group the first in it."""
    words = ""
    while isinstance(told, list) and told:
        if isinstance(first := told[0], dict):
            words = f"{first.get('exc_type')}: {first.get('exc_value')}"
        told = first.get("exceptions") if isinstance(first, dict) else first
    return words


def plain(text: str) -> str:
    """Return ``text`` with a space for each control or other unprintable character."""
    return "".join(" " if unicodedata.category(char)[0] == "C" else char for char in text)
