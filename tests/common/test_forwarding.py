"""Which headers pass from one connection to another, and by what server WebSockets do."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import pytest
import uvloop
from starlette.types import Message
from starlette.websockets import WebSocket

from greylag.common import forwarding
from greylag.common.forwarding import end_to_end, hand_on, put_back, set_apart


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


def test_headers_set_apart_come_back_as_they_were_without_those_of_what_is_between() -> None:
    own = [
        (b"content-type", b"text/html"),
        (b"location", b"/a"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"x-greylag-theirs-x", b"its own"),
        (b"x-greylag-apart", b"its own"),
    ]
    body = [(b"content-encoding", b"gzip"), (b"content-length", b"5")]
    apart = set_apart([*own, *body])
    kept = {b"content-encoding", b"content-length", b"content-type", b"x-greylag-apart"}
    assert {n for n, _ in apart if not n.startswith(b"x-greylag-theirs-")} == kept
    between = [(b"audit-id", b"1"), (b"location", b"/proxy/a")]
    assert put_back([*apart, *between]) == [*body, *own]


def test_what_an_agent_says_of_connection_and_length_under_another_name_does_not_count() -> None:
    said = [(b"x-greylag-apart", b"1"), (b"content-length", b"5")]
    more = ("transfer-encoding", "content-length", "connection", "a: b", "")
    said += [(f"x-greylag-theirs-{name}".encode(), b"9") for name in more]
    assert put_back(said) == [(b"content-length", b"5")]


def test_an_older_agent_s_headers_stay_as_they_came() -> None:
    came = [(b"content-type", b"text/html"), (b"x-greylag-theirs-location", b"/a")]
    assert put_back(came) == came


async def test_a_websocket_that_a_server_cannot_give_away_is_refused() -> None:
    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message["type"])

    sent: list[str] = []
    client = WebSocket({"type": "websocket"}, receive, send)
    await hand_on(client, cast("Any", nullcontext()))
    assert sent == ["websocket.close"]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_is_said_to_a_side_that_has_gone_ends_the_other_on_each_loop(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def carried() -> None:
        near, far = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=near)
        far.close()
        source = asyncio.StreamReader()
        writer.write(b"it learns of it by this")
        while not writer.is_closing():  # noqa: ASYNC110 - a turn of the loop or two
            await asyncio.sleep(0)
        for _ in range(9):
            await asyncio.sleep(0)
        source.feed_data(b"more")
        await forwarding._carried(source, writer, lambda _size: None)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(carried(), 20))
