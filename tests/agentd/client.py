"""A client of agentd's HTTP API, for tests."""

import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from greylag.common import sse


@dataclass
class Client:
    """Talks to a running agentd."""

    http: aiohttp.ClientSession
    base: str

    async def json(
        self, method: str, path: str, body: object = None, **more: Any
    ) -> tuple[int, Any]:
        """Send a request, bytes as they are, and return status and JSON (None for no body)."""
        content: dict[str, Any] = (
            {"data": io.BytesIO(body)} if isinstance(body, bytes) else {"json": body}
        )
        async with self.http.request(method, self.base + path, **content, **more) as answer:
            raw = await answer.read()
            return answer.status, json.loads(raw) if raw else None

    async def session(self) -> str:
        """Make a session and return its id."""
        status, body = await self.json("POST", "/api/v1/sessions")
        assert status == 201
        return str(body["session_id"])

    async def turn(self, message: str, session_id: str | None = None, **more: str) -> str:
        """Start a turn and return its id."""
        body = {"session_id": session_id, "message": message, **more}
        status, turn = await self.json("POST", "/api/v1/turns", body)
        assert status in {200, 201}, turn
        return str(turn["turn_id"])

    async def frames(
        self, method: str, path: str, body: object = None, **more: Any
    ) -> AsyncIterator[sse.Frame]:
        """Yield the frames of a stream as they come."""
        splitter = sse.FrameSplitter()
        async with self.http.request(method, self.base + path, json=body, **more) as answer:
            if answer.status == 204:
                return
            assert answer.status == 200, await answer.text()
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for data in answer.content.iter_any():
                for raw in splitter.feed(data):
                    frame = sse.parse(raw)
                    if frame is not None:
                        yield frame

    async def events(self, turn_id: str, after: str | None = None) -> list[dict[str, Any]]:
        """Return all events of a turn, with their ids, once it has ended."""
        headers = {} if after is None else {"last-event-id": after}
        path = f"/api/v1/turns/{turn_id}/events"
        return [
            {**json.loads(frame.data), "id": frame.id}
            async for frame in self.frames("GET", path, headers=headers)
        ]

    async def until(
        self, turn_id: str, kind: str, matching: Callable[[Any], bool] = lambda _: True
    ) -> dict[str, Any]:
        """Return the content of a turn's first event of a kind (that matches)."""
        async for frame in self.frames("GET", f"/api/v1/turns/{turn_id}/events"):
            event = json.loads(frame.data)
            if event["type"] == kind and matching(event["content"]):
                return dict(event["content"])
        raise AssertionError(f"the turn ended without {kind}")
