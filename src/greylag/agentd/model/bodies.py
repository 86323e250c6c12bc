"""The bodies of model calls: held in memory until they have been sent, and bounded together.

A call's bytes count as they come, not as they are announced. When there is no room all wait but the
call that has been reading for longest: it may go on, and no other until that one has been sent. So
those that are half there cannot keep each other waiting for ever, nor many small ones a large one.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Bodies:
    """All that are held.

    Args:
        most: how many bytes, beside those of the one that may go on all the same.

    Attributes:
        held: how many bytes there are now.
    """

    def __init__(self, most: int) -> None:
        self.held = 0
        self._most = most
        self._reading: dict[Body, None] = {}
        self._beyond: Body | None = None
        self._changed = asyncio.Event()

    @contextmanager
    def begun(self) -> Iterator["Body"]:
        """Yield the body of a new call, still empty; it is dropped when the block ends."""
        body = Body(self)
        self._reading[body] = None
        try:
            yield body
        finally:
            body.finish()
            body.drop()

    def may_hold(self, body: "Body", size: int) -> bool:
        """Tell whether ``size`` more bytes of ``body``, which is being read, may be held."""
        if self.held + size <= self._most:
            return True
        if self._beyond is None and body is next(iter(self._reading)):
            self._beyond = body
        return body is self._beyond

    async def room(self, body: "Body", size: int) -> None:
        """Return once there is room."""
        while not self.may_hold(body, size):
            await self._changed.wait()

    def finished(self, body: "Body") -> None:
        """Let the next one go on: this one has all come."""
        self._reading.pop(body, None)
        self._tell()

    def dropped(self, body: "Body") -> None:
        """Let others have the room of a body."""
        self.held -= len(body.data)
        if self._beyond is body:
            self._beyond = None
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Body:
    """One call's.

    Attributes:
        data: what has come; nothing once it was dropped.
    """

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.data = bytearray()

    def add(self, chunk: bytes) -> None:
        """Hold more of it."""
        self.data += chunk
        self._bodies.held += len(chunk)

    def finish(self) -> None:
        """Say that all of it has come."""
        self._bodies.finished(self)

    def drop(self) -> None:
        """Hold it no longer: it is sent to nobody again."""
        self._bodies.dropped(self)
        self.data = bytearray()  # whoever still sends the other has it
