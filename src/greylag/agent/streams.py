"""Reading a turn's stream from agentd: whole frames, and an end to those that have died."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import aiohttp

from greylag import sse
from greylag.domain.errors import StreamCutError

SILENCE_SECONDS = 60.0
"""agentd sends a heartbeat every 15 s; a stream that is silent this long is dead."""

_COMPLETE = b'"type":"complete"'
_LAST_FRAME = 4096


class Heard:
    """Whether anything has come since the last look."""

    __slots__ = ("lately",)

    def __init__(self) -> None:
        self.lately = True


@contextmanager
def silence_watched(response: aiohttp.ClientResponse) -> Iterator[Heard]:
    """Break a stream off that is silent for ``SILENCE_SECONDS``, or twice that at most."""
    heard = Heard()

    async def look() -> None:
        while heard.lately:
            heard.lately = False
            await asyncio.sleep(SILENCE_SECONDS)
        response.close()  # whoever reads gets an error

    looking = asyncio.create_task(look(), name="silence")
    try:
        yield heard
    finally:
        looking.cancel()


async def whole_frames(response: aiohttp.ClientResponse, heard: Heard) -> AsyncIterator[bytes]:
    """Yield runs of whole frames; ``StreamCutError`` for an end before the ``complete`` event."""
    splitter = sse.FrameSplitter()
    # A stream resumed after its last event is empty, and ended too.
    ended = True
    try:
        while chunk := await response.content.readany():
            heard.lately = True
            if frames := splitter.feed_whole(chunk):
                ended = frames.rfind(_COMPLETE, -_LAST_FRAME) >= 0
                yield frames
    except (aiohttp.ClientError, TimeoutError, sse.FrameTooLargeError) as error:
        raise StreamCutError("The agent's stream broke off.") from error
    if not ended:
        raise StreamCutError("The agent's stream ended before the turn did.")
