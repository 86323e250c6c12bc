"""The client against an API server on loopback that does what each test asks for."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from greylag.cluster.kubernetes import transport
from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.connection import Connection
from greylag.cluster.kubernetes.credentials import Token
from greylag.cluster.kubernetes.failures import ApiError
from greylag.cluster.kubernetes.first_contact import server_version
from greylag.cluster.kubernetes.watch import Change, Pace
from greylag.cluster.kubernetes.watches import Watches
from greylag.domain.errors import ClusterError, ClusterUnavailableError, ConfigError

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
PATIENCE = 20
QUICK = Pace(first_pause=0.01, longest_pause=0.05, probe=0.2, first_probe=0.05, silence=0.3)


@dataclass
class Server:
    """Gives the answers in order, the last one again and again; keeps what was asked."""

    answers: list[Answer]
    url: str = ""
    asked: list[web.Request] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/readyz":
            return web.Response(text="ok")
        self.asked.append(request)
        await request.read()
        return await (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])(request)


@asynccontextmanager
async def served(*answers: Answer) -> AsyncIterator[tuple[Server, Api]]:
    server = Server(list(answers))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    api = Api.open(Connection("KUBE_HOST", server.url, None, Token("t0ken")))
    try:
        yield server, api
    finally:
        await api.close()
        await runner.cleanup()


def status(code: int, reason: str = "", message: str = "", **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        body = {"kind": "Status", "code": code, "reason": reason, "message": message}
        return web.json_response(body, status=code, headers=headers)

    return answer


def says(body: object) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(body)

    return answer


async def cut(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def silent(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(PATIENCE)
    return web.Response()


def thing(name: str, version: int, **more: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "n", "uid": name, "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {}, **more}


def page(version: int, *items: dict[str, Any], more: str = "") -> Answer:
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
    return {"type": kind, "object": what}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_PAUSE", 0.001)


async def test_a_call_carries_the_token_and_is_told_to_ask_for_json() -> None:
    async with served(says(thing("a", 1))) as (server, api):
        found = await api.read("Pod", "n", "a")
    assert found == thing("a", 1)
    assert server.asked[0].path == "/api/v1/namespaces/n/pods/a"
    assert server.asked[0].headers["Authorization"] == "Bearer t0ken"


async def test_what_is_not_there_is_none_and_what_is_refused_is_told_with_its_status() -> None:
    async with served(status(404, "NotFound"), status(403, "Forbidden", "no")) as (_, api):
        assert await api.read("Pod", "n", "a") is None
        with pytest.raises(ApiError, match="403 Forbidden: no") as refused:
            await api.read("Pod", "n", "a")
    assert refused.value.is_refusal


@pytest.mark.parametrize("fault", [status(500), status(503, "x", "y"), cut])
async def test_what_may_be_done_twice_is_tried_again(fault: Answer) -> None:
    async with served(fault, fault, says(thing("a", 1))) as (server, api):
        assert await api.read("Pod", "n", "a")
        assert len(server.asked) == 3
        server.answers[:] = [fault, says(thing("a", 1))]
        assert await api.apply({"kind": "Pod", **thing("a", 1)})
        assert len(server.asked) == 5


@pytest.mark.parametrize("fault", [status(500), cut])
async def test_what_may_not_be_done_twice_is_not_tried_again(fault: Answer) -> None:
    async with served(fault, says(thing("a", 1))) as (server, api):
        with pytest.raises(ClusterUnavailableError):
            await api.create({"kind": "Pod", **thing("a", 1)})
        assert len(server.asked) == 1
        server.answers[:] = [fault, says(thing("a", 1))]
        with pytest.raises(ClusterUnavailableError):
            await api.patch_merge("Pod", "n", "a", {"spec": {}})
        assert len(server.asked) == 2


async def test_after_429_even_a_creation_is_repeated_and_not_before_retry_after() -> None:
    loop = asyncio.get_running_loop()
    async with served(status(429, **{"Retry-After": "1"}), says(thing("a", 1))) as (server, api):
        began = loop.time()
        await api.create({"kind": "Pod", **thing("a", 1)})
        assert loop.time() - began >= 1
        assert len(server.asked) == 2


async def test_a_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    loop = asyncio.get_running_loop()
    async with served(status(429, **{"Retry-After": "60"})) as (server, api):
        began = loop.time()
        with pytest.raises(ClusterUnavailableError, match="429"):
            await api.within(5).read("Pod", "n", "a")
        assert loop.time() - began < 4
        assert len(server.asked) == 1


async def test_a_silent_api_server_is_given_up_at_the_deadline() -> None:
    async with served(silent) as (_, api):
        with pytest.raises(ClusterUnavailableError, match="did not answer in time"):
            await api.within(0.3).read("Pod", "n", "a")


async def test_a_refused_token_that_cannot_be_renewed_is_told_at_once() -> None:
    async with served(status(401, "Unauthorized")) as (server, api):
        with pytest.raises(ApiError, match="401"):
            await api.read("Pod", "n", "a")
        assert len(server.asked) == 1


async def test_what_is_no_kubernetes_ends_the_start_with_a_sentence() -> None:
    async def page_of_html(_: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>hello</html>")

    async with served(says(["hello"]), status(401, "Unauthorized")) as (_, api):
        with pytest.raises(ConfigError, match=r"KUBE_HOST: what answers .* is no Kubernetes"):
            await server_version(api)
        with pytest.raises(ConfigError, match=r"KUBE_HOST does not fit .* 401 Unauthorized"):
            await server_version(api)
    async with served(page_of_html) as (_, api):
        with pytest.raises(ClusterUnavailableError, match="NotJson"):
            await server_version(api.within(0.5))


async def test_a_list_is_read_in_pages() -> None:
    pages = (page(7, thing("a", 1), more="x y"), page(7, thing("b", 2)))
    async with served(*pages) as (server, api):
        found = await api.list("Pod", selector="a=b")
    assert [one["metadata"]["name"] for one in found.items] == ["a", "b"]
    assert found.resource_version == "7"
    assert server.asked[1].query["continue"] == "x y"
    assert server.asked[1].query["labelSelector"] == "a=b"


async def test_all_calls_share_one_pool_of_limited_size() -> None:
    now = most = 0

    async def slow(_: web.Request) -> web.StreamResponse:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        await asyncio.sleep(0.01)
        now -= 1
        return web.json_response(thing("a", 1))

    async with served(slow) as (_, api):
        await asyncio.gather(*(api.within(9).read("Pod", "n", "a") for _ in range(100)))
    assert most == transport.CALLS_AT_ONCE


@asynccontextmanager
async def watching(*answers: Answer) -> AsyncIterator[tuple[Server, Watches, list[Change]]]:
    """Watch Pods; yield once the first list is known."""
    changes: list[Change] = []
    async with served(*answers) as (server, api):
        watches = Watches(api, {"Pod": ""}, QUICK)
        watches.subscribe(changes.append)
        running = asyncio.create_task(watches.run(), name="watches")
        try:
            await watches.synced(PATIENCE)
            yield server, watches, changes
        finally:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


def versions(server: Server) -> list[str]:
    return [one.query["resourceVersion"] for one in server.asked if "watch" in one.query]


@pytest.mark.parametrize("then", ["end", "cut", "silent"])
async def test_a_watch_that_ends_breaks_off_or_falls_silent_goes_on_from_where_it_was(
    then: str,
) -> None:
    first = stream(
        event("MODIFIED", thing("a", 12)),
        event("BOOKMARK", thing("", 15)),
        then=then,
    )
    second = stream(event("ADDED", thing("b", 16)), then="silent")
    async with watching(page(10, thing("a", 1)), first, second) as (server, watches, changes):
        await until(lambda: ("n", "b") in watches["Pod"].cache)
        assert versions(server)[:2] == ["10", "15"]
        assert sum("watch" not in one.query for one in server.asked) == 1
        told = [(one.name, one.gone) for one in changes]
        assert told == [("a", False), ("a", False), ("b", False)]


@pytest.mark.parametrize(
    "gone",
    [
        status(410, "Expired"),
        stream(event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})),
    ],
)
async def test_after_410_all_is_listed_anew_and_what_went_meanwhile_is_told(gone: Answer) -> None:
    parts = (
        page(10, thing("stays", 1), thing("goes", 2)),
        gone,
        page(20, thing("stays", 1), thing("comes", 18)),
        stream(then="silent"),
    )
    async with watching(*parts) as (server, watches, changes):
        await until(lambda: ("n", "comes") in watches["Pod"].cache)
        assert set(watches["Pod"].cache) == {("n", "stays"), ("n", "comes")}
        assert sorted({(one.name, one.gone) for one in changes}) == [
            ("comes", False),
            ("goes", False),
            ("goes", True),
            ("stays", False),
        ]
        assert versions(server)[-1] == "20"


async def test_a_watch_that_is_forbidden_is_told_as_that() -> None:
    async with served(status(403, "Forbidden", "pods is forbidden")) as (_, api):
        watches = Watches(api, {"Pod": ""}, QUICK)
        running = asyncio.create_task(watches.run(), name="watches")
        with pytest.raises(ClusterError, match="pods is forbidden") as refused:
            await watches.synced(0.3)
        running.cancel()
    assert refused.value.info.code == "cluster_forbidden"
    assert not watches.live


async def test_caches_are_not_live_while_a_watch_is_broken() -> None:
    parts = (page(10), stream(), status(500), stream(then="silent"))
    async with watching(*parts) as (_, watches, _changes):
        await until(lambda: not watches.live)
        assert watches.problem
        assert await watches.alive(PATIENCE)
        assert watches.problem == ""
