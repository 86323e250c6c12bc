"""A proxy that cuts event streams in the middle of a frame."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

_STREAM = b"content-type: text/event-stream"
_DATA = b"data: {"


class CuttingProxy:
    """Forwards to one server. The n-th event stream is cut inside the frame whose number (from 0)
    ``cuts`` gives n-th; when ``cuts`` is at its end, nothing is cut any more.
    """

    def __init__(self, target: str, cuts: Iterator[int]) -> None:
        self._target = urlsplit(target)
        self._cuts = cuts
        self.streams = 0
        self.address = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["CuttingProxy"]:
        """Listen on a free port until the block ends."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, down: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        host, port = self._target.hostname, self._target.port
        answer, up = await asyncio.open_connection(host, port)
        asking = asyncio.create_task(_forward(down, up), name="requests")
        try:
            await self._answer(answer, back)
        finally:
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            up.close()
            back.close()

    async def _answer(self, answer: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            seen, cut = b"", -1
            while chunk := await answer.read(65536):
                seen += chunk
                if cut < 0 and _STREAM in seen.lower():
                    self.streams += 1
                    cut = next(self._cuts, 1_000_000)
                    seen = seen[seen.lower().rfind(_STREAM) :]
                parts = seen.split(_DATA)
                if cut >= 0 and len(parts) > cut + 1:
                    left = _DATA.join(parts[cut + 1 :])
                    back.write(chunk[: max(0, len(chunk) - len(left))])
                    await back.drain()
                    return
                back.write(chunk)
                await back.drain()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
