"""agentd behind a proxy that routes by path."""

import pytest
from starlette.types import Message, Receive, Scope, Send

from greylag.agentd.api.guard import Prefix


async def seen(path: str, prefix: str | None) -> str:
    """Return the path that the application gets."""
    got: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        got.append(scope)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_message: Message) -> None:
        raise AssertionError("nothing is to be sent")

    scope = {"type": "http", "path": path, "raw_path": path.encode()}
    await Prefix(app, prefix)(scope, receive, send)
    assert got[0]["raw_path"].decode() == got[0]["path"]
    return str(got[0]["path"])


@pytest.mark.parametrize(
    ("path", "prefix", "expected"),
    [
        ("/a/b/api/v1/health", "/a/b", "/api/v1/health"),
        ("/a/b/", "/a/b", "/"),
        ("/a/b", "/a/b", "/"),
        ("/a/bc/api", "/a/b", "/a/bc/api"),
        ("/api/v1/health", "/a/b", "/api/v1/health"),
        ("/a/b/api", None, "/a/b/api"),
    ],
)
async def test_the_prefix_is_taken_off_where_it_is(
    path: str, prefix: str | None, expected: str
) -> None:
    assert await seen(path, prefix) == expected
