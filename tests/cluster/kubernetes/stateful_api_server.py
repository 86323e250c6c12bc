"""An API server on loopback that keeps objects, tells of their changes, and records the writes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web
from tests.cluster.kubernetes.api_server import PATIENCE

from greylag.cluster.kubernetes.connection import Connection
from greylag.cluster.kubernetes.credentials import Token
from greylag.cluster.kubernetes.identity import KINDS

BY_PLURAL = {kind.plural: name for name, kind in KINDS.items()}
_FIXED = {"/readyz": {}, "/version": {"gitVersion": "v1.35.4"}}
Things = dict[tuple[str, str, str], dict[str, Any]]


def merged(there: Any, patch: Any) -> Any:
    """Return ``there`` with the fields of ``patch``, as RFC 7396 has it."""
    if not isinstance(patch, dict):
        return patch
    base = there if isinstance(there, dict) else {}
    return base | {key: merged(base.get(key), value) for key, value in patch.items()}


@dataclass
class StatefulServer:
    """Objects by kind, namespace and name; what was asked, as ``VERB Kind``."""

    url: str = ""
    version: int = 100
    things: Things = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    denied: dict[str, int] = field(default_factory=dict)
    """The status that such requests are answered with, as `GET Secret`."""
    refuses: dict[str, str] = field(default_factory=dict)
    """Volume claims are refused that ask for just this."""
    answers: tuple[int, str, str] | None = None
    """The status, reason and words that everything is refused with, but for ``/readyz``."""
    log: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
    """Answers who asks for a log."""
    _watches: list[tuple[str, "asyncio.Queue[dict[str, Any]]"]] = field(default_factory=list)

    @property
    def connection(self) -> Connection:
        """The way to it."""
        return Connection("KUBE_HOST", self.url, None, Token("t0ken"))

    def put(self, kind: str, namespace: str, thing: dict[str, Any]) -> dict[str, Any]:
        """Keep an object as it is now, and tell those who watch."""
        self.version += 1
        key = (kind, namespace, thing["metadata"]["name"])
        event = "MODIFIED" if key in self.things else "ADDED"
        server_side = {"uid": "/".join(key), "resourceVersion": str(self.version)}
        kept = {**thing, "metadata": {**thing["metadata"], **server_side}}
        self.things[key] = kept
        for watched, queue in self._watches:
            if watched == kind:
                queue.put_nowait({"type": event, "object": kept})
        return kept

    def forget(self, key: tuple[str, str, str], now: dict[str, Any] | None = None) -> None:
        """Tell those who watch that an object is gone; ``now`` is what they do not select of it."""
        self.version += 1
        version = {"resourceVersion": str(self.version)}
        there = self.things.pop(key)
        if now is not None:
            self.things[key] = {**now, "metadata": {**now["metadata"], **version}}
        last = {**there, "metadata": {**there["metadata"], **version}}
        for watched, queue in self._watches:
            if watched == key[0]:
                queue.put_nowait({"type": "DELETED", "object": last})

    def refuse(self, code: int, reason: str, words: str = "", *, watches: bool = True) -> None:
        """Refuse everything from now on, and end all ``watches``."""
        self.answers = (code, reason, words)
        if not watches:
            return
        for _, queue in self._watches:
            queue.put_nowait({})
        self._watches.clear()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        if request.path in _FIXED:
            return web.json_response(_FIXED[request.path])
        if self.answers is not None:
            code, reason, words = self.answers
            said = {"code": code, "reason": reason, "message": words}
            return web.json_response(said, status=code, headers={"Retry-After": "0"})
        parts = request.path.strip("/").split("/")
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = rest[1] if rest[0] == "namespaces" and len(rest) > 2 else ""
        plural, *names = rest[2:] if namespace else rest
        kind = BY_PLURAL[plural]
        if "watch" in request.query:
            return await self._watch(kind, request)
        if not names:
            return self._list(kind, namespace, request)
        self.asked.append(f"{request.method} {kind}")
        if denied := self.denied.get(self.asked[-1]):
            said = {"code": denied, "reason": HTTPStatus(denied).phrase}
            return web.json_response(said, status=denied)
        told = self.log(request) if self.log and names[1:] == ["log"] else None
        return await (told or self._one(request, (kind, namespace, names[0])))

    async def _one(self, request: web.Request, key: tuple[str, str, str]) -> web.StreamResponse:
        there = self.things.get(key)
        if request.method == "PATCH":
            patch = await request.json()
            given = patch["metadata"].pop("resourceVersion", None)
            now = None if there is None else there["metadata"]["resourceVersion"]
            if given not in {None, now}:
                return web.json_response({"code": 409, "reason": "Conflict"}, status=409)
            asks = patch.get("spec", {}).get("resources", {}).get("requests")
            if self.refuses and asks == self.refuses:
                return web.json_response({"code": 403, "reason": "Forbidden"}, status=403)
            whole = merged(there, patch)
            if key[0] == "PersistentVolumeClaim":
                whole["spec"].setdefault("storageClassName", "standard")
            return web.json_response(self.put(key[0], key[1], whole))
        if there is None:
            return web.json_response({"code": 404, "reason": "NotFound"}, status=404)
        if request.method == "DELETE":
            self.forget(key)
        return web.json_response(there)

    def _list(self, kind: str, namespace: str, request: web.Request) -> web.StreamResponse:
        if "limit" not in request.query:
            raise web.HTTPBadRequest
        field, _, named = request.query.get("fieldSelector", "").partition("=")
        items = [
            thing
            for key, thing in self.things.items()
            if key[0] == kind and namespace in {"", key[1]}
            if field != "metadata.name" or key[2] == named
        ]
        meta = {"resourceVersion": str(self.version)}
        return web.json_response({"metadata": meta, "items": items})

    async def _watch(self, kind: str, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._watches.append((kind, queue))
        for one in self.things.values():
            newer = int(one["metadata"]["resourceVersion"]) > int(request.query["resourceVersion"])
            if one.get("kind") == kind and newer:
                queue.put_nowait({"type": "MODIFIED", "object": one})
        with suppress(ConnectionResetError, TimeoutError):  # whoever watched is gone
            while True:
                event = await asyncio.wait_for(queue.get(), PATIENCE)
                if not event:
                    return response
                await response.write(json.dumps(event).encode() + b"\n")
        return response


@asynccontextmanager
async def stateful() -> AsyncIterator[StatefulServer]:
    """Run it."""
    server = StatefulServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()
