"""A turn's events as an HTTP response, in constant memory for any reader."""

from collections.abc import AsyncIterator, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from greylag import sse

_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class EventStream(StreamingResponse):
    """A response that sends chunks as they come and ends when the client leaves.

    The server's `send` waits while the client reads slowly, so nothing piles up here.

    Args:
        chunks: the bytes to send; they are asked for one at a time.
        done: called once in the end, however it ends, even if nothing could be sent.
    """

    def __init__(self, chunks: AsyncIterator[bytes], done: Callable[[], None]) -> None:
        super().__init__(chunks, media_type=sse.MEDIA_TYPE, headers=_HEADERS)
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._done()
