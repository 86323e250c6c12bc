"""What the client does when the API server answers, refuses, fails, or is silent."""

import asyncio

import pytest
from aiohttp import web
from tests.cluster.kubernetes.api_server import (
    Answer,
    cut,
    page,
    says,
    served,
    silent,
    status,
    thing,
)

from greylag.cluster.kubernetes import calls
from greylag.cluster.kubernetes.api import CALLS_AT_ONCE, server_version
from greylag.cluster.kubernetes.failures import ApiError
from greylag.domain.errors import ClusterUnavailableError, ConfigError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_PAUSE", 0.001)


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
            await api.patch_merge("Pod", "n", "a", {"spec": {}})
        assert len(server.asked) == 1


async def test_after_429_anything_is_repeated_and_not_before_retry_after() -> None:
    loop = asyncio.get_running_loop()
    async with served(status(429, **{"Retry-After": "1"}), says(thing("a", 1))) as (server, api):
        began = loop.time()
        await api.patch_merge("Pod", "n", "a", {})
        assert loop.time() - began >= 1
        assert len(server.asked) == 2


@pytest.mark.parametrize(("asked", "tries"), [("0", calls.TRIES), ("6", 1)])
async def test_who_waits_is_told_of_an_api_server_that_stays_too_busy(
    asked: str, tries: int
) -> None:
    async with served(*[status(429, **{"Retry-After": asked})] * calls.TRIES) as (server, api):
        with pytest.raises(ClusterUnavailableError, match="answered 429"):
            await api.read("Pod", "n", "a")
        assert len(server.asked) == tries


async def test_a_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    async with served(status(429, **{"Retry-After": "60"})) as (server, api):
        with pytest.raises(ClusterUnavailableError, match="429"):
            await api.within(5).read("Pod", "n", "a")
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
        with pytest.raises(ConfigError, match=r"KUBE_TOKEN does not fit .* 401 Unauthorized"):
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
    assert most == CALLS_AT_ONCE
