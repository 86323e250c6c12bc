"""Which headers pass from one connection to another, and by what server WebSockets do."""

from contextlib import nullcontext
from typing import Any, cast

from starlette.types import Message
from starlette.websockets import WebSocket

from greylag.common.forwarding import end_to_end, hand_on


def test_what_is_about_one_connection_or_malformed_does_not_pass() -> None:
    given = [
        (b"Connection", b"close, X-Hop"),
        (b"x-hop", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"upgrade", b"h2c"),
        (b"te", b"trailers"),
        (b"keep-alive", b"timeout=5"),
        (b"bare", b"a\rset-cookie: b"),
        (b"nul", b"a\0"),
        (b"name with: colon", b"x"),
        (b"", b"x"),
        (b"secret", b"x"),
        (b"X-Twice", b"1"),
        (b"x-twice", b"\xff\t"),
    ]
    assert end_to_end(given, b"secret") == [(b"x-twice", b"1"), (b"x-twice", b"\xff\t")]


async def test_a_websocket_that_a_server_cannot_give_away_is_refused() -> None:
    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message["type"])

    sent: list[str] = []
    client = WebSocket({"type": "websocket"}, receive, send)
    await hand_on(client, cast("Any", nullcontext()))
    assert sent == ["websocket.close"]
