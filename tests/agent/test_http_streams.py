"""What the gateway makes of streams that break, fall silent or end too early."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import Any

import pytest

from greylag.agent import answers
from greylag.agent.http import HttpAgents
from greylag.common import sse
from greylag.domain.errors import StreamCutError
from greylag.ports import AgentAddress

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
FRAME = b'id: t-0\ndata: {"type":"message"}\n\n'
COMPLETE = b'id: t-1\ndata: {"type":"complete"}\n\n'
Answer = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def agent(answer: Answer) -> AsyncIterator[AgentAddress]:
    """Serve every request by ``answer`` after the head of a stream."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        await answer(writer)
        writer.close()

    # Not as its own context, which from Python 3.12 on waits until all answers have ended.
    with closing(await asyncio.start_server(serve, "127.0.0.1", 0)) as server:
        yield AgentAddress(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "t")


async def read(answer: Answer) -> bytes:
    """Return all that the gateway gives of one turn's stream."""
    gateway = HttpAgents()
    got = b""
    try:
        async with agent(answer) as at, gateway.stream_turn(at, "t", None) as runs:
            async for run in runs:
                assert run.endswith(b"\n\n")
                got += run
    finally:
        await gateway.close()
    return got


async def test_a_stream_that_ends_with_complete_is_whole() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(FRAME + COMPLETE[:10])
        await writer.drain()
        await asyncio.sleep(0)
        writer.write(COMPLETE[10:])

    assert await read(answer) == FRAME + COMPLETE


async def test_a_stream_that_ends_before_complete_was_cut() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(FRAME + COMPLETE[:10])

    with pytest.raises(StreamCutError):
        await read(answer)


async def test_a_frame_that_has_no_end_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "FrameSplitter", partial(sse.FrameSplitter, 2 * len(FRAME)))

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(FRAME + b"data: " + b"x" * 3 * len(FRAME))

    with pytest.raises(StreamCutError):
        await read(answer)


async def test_an_empty_stream_has_ended() -> None:
    async def answer(_: asyncio.StreamWriter) -> None:
        return

    assert await read(answer) == b""


async def test_a_silent_stream_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "SILENCE_SECONDS", 0.05)
    over = asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(FRAME)
        await over.wait()

    async with asyncio.timeout(10):
        with pytest.raises(StreamCutError):
            await read(answer)
    over.set()
