"""An API server on loopback that answers as each test asks for."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.connection import Connection
from greylag.cluster.kubernetes.credentials import Token

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
PATIENCE = 20


@dataclass
class Server:
    """Gives the answers in order, the last one again and again; keeps what was asked."""

    answers: list[Answer]
    url: str = ""
    asked: list[web.Request] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Give the next answer."""
        if request.path == "/readyz":
            return web.Response(text="ok")
        self.asked.append(request)
        await request.read()
        return await (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])(request)


@asynccontextmanager
async def served(*answers: Answer) -> AsyncIterator[tuple[Server, Api]]:
    """Run it; yield it and the client that leads to it."""
    server = Server(list(answers))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    api = Api(Connection("KUBE_HOST", server.url, None, Token("t0ken")))
    try:
        yield server, api
    finally:
        await api.close()
        await runner.cleanup()


def status(code: int, reason: str = "", message: str = "", **headers: str) -> Answer:
    """Refuse with this status."""

    async def answer(_: web.Request) -> web.StreamResponse:
        body = {"kind": "Status", "code": code, "reason": reason, "message": message}
        return web.json_response(body, status=code, headers=headers)

    return answer


def says(body: object) -> Answer:
    """Answer with this JSON."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(body)

    return answer


async def cut(request: web.Request) -> web.StreamResponse:
    """Break the connection off."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def silent(_: web.Request) -> web.StreamResponse:
    """Answer nothing."""
    await asyncio.sleep(PATIENCE)
    return web.Response()


def thing(name: str, version: int, **more: Any) -> dict[str, Any]:
    """Return an object."""
    meta = {"name": name, "namespace": "n", "uid": name, "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {}, **more}


def page(version: int, *items: dict[str, Any], more: str = "") -> Answer:
    """Answer a list."""
    return says({"metadata": {"resourceVersion": str(version), "continue": more}, "items": items})


def stream(*lines: object, then: str = "end") -> Answer:
    """Answer a watch with these events, then end it, cut it within a line, or go silent."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(json.dumps(line).encode() + b"\n")
        if then == "cut":
            await response.write(b'{"type": "MODI')
        elif then == "silent":
            await asyncio.sleep(PATIENCE)
        return response

    return answer


def event(kind: str, what: dict[str, Any]) -> dict[str, Any]:
    """Return one event of a watch."""
    return {"type": kind, "object": what}
