"""A proxy whose connections a test drops, as a network does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from greylag.common.concurrent import cancel_all


class DroppingProxy:
    """Forwards bytes to a port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: set[asyncio.StreamWriter] = set()
        self._dead: set[asyncio.StreamWriter] = set()
        self.address = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["DroppingProxy"]:
        """Listen on a free port until the block ends."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self.drop()

    def drop(self) -> None:
        """Break every connection that is open now, in the middle of whatever it carries."""
        for writer in self._open:
            writer.transport.abort()

    def forget(self) -> None:
        """Carry nothing more on the connections that are open now, and tell neither side."""
        self._dead |= self._open

    def end_forgotten(self) -> None:
        """Have both sides hear that what was forgotten has ended."""
        for writer in self._dead:
            writer.transport.abort()
        self._dead.clear()

    async def _serve(self, down: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        answers, up = await asyncio.open_connection("127.0.0.1", self._port)
        writers = {back, up}
        self._open |= writers
        ways = [
            asyncio.create_task(self._forward(down, up), name="requests"),
            asyncio.create_task(self._forward(answers, back), name="answers"),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_all(ways)
            if back not in self._dead:
                self._open -= writers
                for writer in writers:
                    writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                if writer not in self._dead:
                    writer.write(chunk)
                    await writer.drain()
