"""An API server that fails: a proxy before the real one, which does what tests ask for."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
from aiohttp import web

from greylag.cluster.kubernetes.calls import Answer
from greylag.cluster.kubernetes.connection import Connection

_HOP = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})
_MEGABYTES = 16 * 1024 * 1024


class ApiProxy:
    """Passes requests on over plain HTTP, with the credentials of ``upstream``.

    Attributes:
        refused: the share of calls that are answered with 429 or 500, as chance (seeded) has it; of
            the 500, one half after the API server has done what was asked.
        cuts: whether watches break off at random moments.
        busy: whether every call is answered with 429, which asks for a second's patience.
        down: whether all connections break off.
        hangs: whether nothing is answered, and open watches say nothing more.
        counts: how often each of these happened.
    """

    def __init__(self, upstream: Connection, seed: str) -> None:
        self.refused = 0.0
        self.cuts = False
        self.busy = False
        self.down = False
        self.hangs = False
        self.counts = {"passed": 0, "429": 0, "500": 0, "cut": 0}
        self._upstream = upstream
        self._rng = random.Random(seed)  # noqa: S311 - the course of things, the same each time
        self._released = asyncio.Event()
        self._streams: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncIterator[Path]:
        """Run it; yield the path of a kubeconfig that leads to it."""
        connector = aiohttp.TCPConnector(limit=0, ssl=self._upstream.ssl or True)
        timeout = aiohttp.ClientTimeout(total=None)
        http = aiohttp.ClientSession(connector=connector, response_class=Answer, timeout=timeout)
        app = web.Application(client_max_size=_MEGABYTES)
        async with http as self._http:
            app.router.add_route("*", "/{path:.*}", self._answer)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                yield _kubeconfig(folder, runner.addresses[0][1])
            finally:
                self.release()
                for stream in self._streams:
                    stream.cancel()
                await runner.cleanup()

    def break_off(self) -> None:
        """Refuse everything and end all watches, as an API server that is stopped does."""
        self.down = True
        for stream in self._streams:
            stream.cancel()

    def hang(self) -> None:
        """Answer nothing from now on, and keep all connections open."""
        self._released.clear()
        self.hangs = True

    def release(self) -> None:
        """Be well again."""
        self.down = self.hangs = self.busy = False
        self._released.set()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.hangs:
            await self._released.wait()
        if self.down:
            return _broken(request)
        if self.busy:
            return self._too_many(1)
        if "watch" in request.query:
            return await self._watch(request)
        chance, lost = self._rng.random(), self._rng.random() < 0.5
        if chance < self.refused / 2:
            return self._too_many(self._rng.randrange(2))
        if chance < self.refused and not lost:
            return self._fault()
        answer = await self._passed(request)
        return self._fault() if chance < self.refused else answer

    def _too_many(self, seconds: int) -> web.Response:
        self.counts["429"] += 1
        pause = {"Retry-After": str(seconds)}
        return web.json_response(_status(429, "TooManyRequests"), status=429, headers=pause)

    def _fault(self) -> web.Response:
        self.counts["500"] += 1
        return web.json_response(_status(500, "InternalError"), status=500)

    async def _passed(self, request: web.Request) -> web.Response:
        self.counts["passed"] += 1
        async with self._asked(request, await request.read()) as answer:
            headers = {name: answer.headers[name] for name in ("Content-Type",)}
            return web.Response(status=answer.status, headers=headers, body=await answer.read())

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        async with self._asked(request, b"") as answer:
            response.set_status(answer.status)
            await response.prepare(request)
            stream = asyncio.create_task(self._copy(answer, response), name="watch")
            self._streams.add(stream)
            try:
                lasts = self._rng.uniform(0.2, 8.0) if self.cuts else None
                async with asyncio.timeout(lasts):
                    await stream
            except TimeoutError:
                self.counts["cut"] += 1
                return _broken(request, response)
            except (asyncio.CancelledError, aiohttp.ClientError, OSError):
                return _broken(request, response)
            finally:
                stream.cancel()
                self._streams.discard(stream)
        return response

    async def _copy(self, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        async for chunk in answer.content.iter_any():
            if self.hangs:
                await self._released.wait()
            await response.write(chunk)

    def _asked(self, request: web.Request, body: bytes) -> "aiohttp.client._RequestContextManager":
        headers = {name: text for name, text in request.headers.items() if name.lower() not in _HOP}
        url = self._upstream.server + request.raw_path
        return self._http.request(request.method, url, headers=headers, data=body or None)


def _broken(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """Let the connection end without an answer, or in the middle of it."""
    if request.transport is not None:
        with suppress(OSError):
            request.transport.abort()
    return response or web.Response(status=502)


def _status(code: int, reason: str) -> dict[str, object]:
    return {
        "kind": "Status",
        "status": "Failure",
        "reason": reason,
        "code": code,
        "message": "test",
    }


def _kubeconfig(folder: Path, port: int) -> Path:
    path = folder / "proxied.kubeconfig"
    cluster = {"name": "test", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    user = {"name": "test", "user": {}}
    context = {"name": "test", "context": {"cluster": "test", "user": "test"}}
    lists = {"clusters": [cluster], "users": [user], "contexts": [context]}
    head = {"apiVersion": "v1", "kind": "Config", "current-context": "test"}
    path.write_text(json.dumps(head | lists))
    return path
