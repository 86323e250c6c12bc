"""Plays push services and webhooks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer


class Receiver:
    """A server that keeps what it gets, and answers as it is told to."""

    def __init__(self) -> None:
        self.got: list[tuple[web.Request, bytes]] = []
        self.status = 201
        self.news = asyncio.Event()
        app = web.Application()
        app.router.add_post("/{path:.*}", self._take)
        self._server = TestServer(app, host="127.0.0.1")

    async def _take(self, request: web.Request) -> web.Response:
        self.got.append((request, await request.read()))
        self.news.set()
        headers = {"Location": "/elsewhere"} if 300 <= self.status < 400 else {}
        return web.Response(status=self.status, text="x" * 100_000, headers=headers)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.port}"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Receiver"]:
        async with self._server:
            yield self
