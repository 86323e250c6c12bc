"""An agent that only streams: `python relay_upstream.py`. It answers each GET of a turn's events.

The turn's name says how: `paced-N` sends N events of 200 bytes a second, `idle` one and then none,
`flood` as fast as they are taken.
"""

import asyncio
import contextlib
import json

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-cache\r\nconnection: close\r\n\r\n"
)
EVENT_BYTES = 200


def event(number: int) -> bytes:
    """Return one frame, as agentd makes them."""
    content = {"role": "Assistant", "content": "", "session_id": "s"}
    body = {"type": "message", "content": content}
    frame = f"id: t-{number}\ndata: {json.dumps(body)}\n\n"
    content["content"] = "x" * max(0, EVENT_BYTES - len(frame))
    return f"id: t-{number}\ndata: {json.dumps(body, separators=(',', ':'))}\n\n".encode()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one request until the other side leaves."""
    try:
        asked = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode()
        turn = asked.split("/turns/")[1].split("/")[0]
        writer.write(HEAD + event(0))
        gone = asyncio.create_task(reader.read(), name="gone")
        sending = asyncio.create_task(_send(writer, turn), name="send")
        await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
        for task in (gone, sending):
            task.cancel()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def _send(writer: asyncio.StreamWriter, turn: str) -> None:
    number = 0
    pace = 1 / int(turn.removeprefix("paced-")) if turn.startswith("paced-") else 0.0
    while turn != "idle":
        number += 1
        writer.write(event(number))
        await writer.drain()
        await asyncio.sleep(pace)


async def main() -> None:
    """Listen on a free port and print it."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
