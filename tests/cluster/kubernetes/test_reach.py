"""By what Greylag reaches agents: never with a token in clear beyond the cluster."""

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.agentd.api.test_preview_routes import application
from tests.agentd.conftest import serve
from tests.cluster.kubernetes.service_proxy import service_proxy
from tests.cluster.kubernetes.stateful_api_server import stateful
from tests.cluster.kubernetes.test_writes import (
    OPTIONS,
    PROJECT,
    asleep,
    environment,
    opened,
    running,
)

from greylag.agent.http import HttpAgents
from greylag.agentd.config import Secret
from greylag.cluster.kubernetes import locator
from greylag.cluster.kubernetes.connection import Connection
from greylag.cluster.kubernetes.credentials import Token
from greylag.cluster.kubernetes.isolation import shared_objects
from greylag.cluster.kubernetes.locator import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    MOST_MESSAGE,
    AddressProbe,
    Probed,
    ServiceProxy,
    endpoint_of,
)
from greylag.cluster.kubernetes.manifests import project_objects
from greylag.cluster.kubernetes.options import Options
from greylag.common import forwarding
from greylag.common.agent_api import ForwardedRequest
from greylag.domain.errors import ConfigError, NotActiveError
from greylag.ports import AgentAddress

ENVIRONMENT = PROJECT.environment
PLACES: list[dict[str, Any]] = [
    {"platform_namespace": platform, "ingress_base_domain": domain, "ingress_tls": tls, **service}
    for platform, domain, tls, service in itertools.product(
        (None, "greylag"),
        (None, "envs.test"),
        (False, True),
        ({}, {"service_type": "LoadBalancer"}, {"service_type": "ClusterIP"}),
    )
]
WAYS = ("auto", "service", "loadbalancer", "ingress", "proxy")


async def reached(options: Options) -> str | None:
    """Return where Greylag reaches an agent whose load balancer has an address."""
    async with stateful() as server, opened(server, options) as cluster:
        balancer = {"ingress": [{"ip": "203.0.113.7"}]}
        kind = {"type": options.service_type}
        spec = {**kind, "ports": [{"name": "http", "port": 3001}]}
        service = {"spec": spec, "status": {"loadBalancer": balancer}}
        return await cluster._locator.url(ENVIRONMENT, service)


@pytest.mark.parametrize("way", WAYS)
async def test_no_token_goes_over_plain_http_beyond_the_cluster(way: str) -> None:
    refused = 0
    for place in PLACES:
        try:
            options = Options(image="x", reach=way, **place)
        except ConfigError as error:
            refused += "GREYLAG_ALLOW_PLAIN_HTTP" in error.info.hint
            continue
        url = await reached(options)
        assert url is None or (
            url.startswith(("https://", "http://127.0.0.1:"))
            or (options.platform_namespace and url.startswith("http://demo-svc.user-ada.svc:"))
        ), (place, url)
    assert (refused == 0) == (way in {"auto", "proxy"})


async def test_the_api_server_is_not_told_an_agent_s_token_in_place_of_our_credentials() -> None:
    told: list[Any] = []

    async def heard(request: web.Request) -> web.Response:
        told.append(request.headers)
        return web.Response()

    app = web.Application()
    app.router.add_get("/{path:.*}", heard)
    async with serve(app) as address, aiohttp.ClientSession() as http:
        # Who comes by a client certificate sends no header of its own.
        proxy = ServiceProxy(Connection("KUBE_HOST", address, None, Token("")))
        try:
            url, asked = await proxy.url(ENVIRONMENT), {"Authorization": "Bearer of-the-agent"}
            async with http.get(f"{url}/sessions", headers=asked) as answer:
                assert answer.status == 200
        finally:
            await proxy.close()
    (headers,) = told
    assert "Authorization" not in headers
    assert headers["X-Greylag-Agent-Token"] == "of-the-agent"
    assert headers.getall("Host") == [address.removeprefix("http://")]


async def test_by_the_api_server_an_answer_s_size_is_told() -> None:
    async def sized(_request: web.Request) -> web.Response:
        return web.Response(body=b"12345")

    app = web.Application()
    app.router.add_get("/{path:.*}", sized)
    async with serve(app) as address, aiohttp.ClientSession() as http:
        proxy = ServiceProxy(Connection("KUBE_HOST", address, None, Token("t0ken")))
        try:
            for method, body in (("GET", b"12345"), ("HEAD", b"")):
                async with http.request(method, f"{await proxy.url(ENVIRONMENT)}/file") as answer:
                    assert answer.headers["content-length"] == "5"
                    assert await answer.read() == body
        finally:
            await proxy.close()


async def test_by_the_api_server_a_socket_s_messages_pass_up_to_a_limit_which_is_told() -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        assert request.path.endswith("/services/http:demo-svc:http/proxy/socket")
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        async for message in socket:
            more = bytes(MOST_MESSAGE) if message.data == b"more" else b""
            await socket.send_bytes(message.data + more)
        return socket

    told: list[int | None] = []
    app = web.Application()
    app.router.add_get("/{path:.*}", echo)
    async with serve(app) as address, aiohttp.ClientSession() as http:
        proxy = ServiceProxy(Connection("KUBE_HOST", address, None, Token("t0ken")))
        try:
            url = f"{await proxy.url(ENVIRONMENT)}/socket"
            for message in (b"more", bytes(MOST_MESSAGE)):  # too much of theirs, and of ours
                async with http.ws_connect(url, max_msg_size=0) as socket:
                    await socket.send_bytes(b"y" * 5_000_000)
                    assert await socket.receive_bytes() == b"y" * 5_000_000
                    with suppress(ConnectionError):  # whoever is still sending may be cut off
                        await socket.send_bytes(message)
                        await socket.receive()
                    told.append(socket.close_code)
        finally:
            await proxy.close()
    assert told[0] == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
    assert told[1] in {aiohttp.WSCloseCode.MESSAGE_TOO_BIG, None}


async def test_by_the_api_server_an_answer_comes_with_all_its_headers_and_is_cut_off_as_there() -> (
    None
):
    async def cut(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.headers.extend([("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
        await answer.prepare(request)
        await answer.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return answer

    app = web.Application()
    app.router.add_get("/{path:.*}", cut)
    async with serve(app) as address, aiohttp.ClientSession() as http:
        proxy = ServiceProxy(Connection("KUBE_HOST", address, None, Token("t0ken")))
        try:
            async with http.get(f"{await proxy.url(ENVIRONMENT)}/x") as answer:
                assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()
        finally:
            await proxy.close()


async def test_by_the_api_server_a_preview_comes_as_the_application_made_it(
    tmp_path: Path,
) -> None:
    async with (
        application(tmp_path, token=Secret("t0ken2")) as (api, port),
        service_proxy(api.base) as address,
        AsyncExitStack() as stack,
    ):
        proxy = ServiceProxy(Connection("KUBE_HOST", address, None, Token("t0ken")))
        stack.push_async_callback(proxy.close)
        agents = HttpAgents()
        stack.push_async_callback(agents.close)

        async def ask(method: str, target: str) -> tuple[int, dict[str, str], bytes]:
            at = AgentAddress(await proxy.url(ENVIRONMENT), "t0ken2")
            request = ForwardedRequest(method, target, [(b"x-forwarded-for", b"2001:db8::7")])
            async with agents.forward(at, port, request) as answer:
                told = {name.decode(): value.decode() for name, value in answer.headers}
                return answer.status, told, b"".join([chunk async for chunk in answer.body])

        status, headers, body = await ask("GET", "/page")
        assert status == 200
        assert b'<a href="/other">' in body
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert headers["access-control-allow-origin"] == "http://a.example"
        assert headers["cache-control"] == "max-age=5"
        assert "audit-id" not in headers
        # What the application says under our names is its own, and means nothing.
        assert "location" not in headers
        status, headers, _ = await ask("GET", "/page?away=1")
        assert (status, headers["location"]) == (303, "/login?x=%20")
        for method in sorted(forwarding.METHODS - {"HEAD"}):
            status, _, body = await ask(method, "/told")
            told = json.loads(body)
            assert (status, told["method"]) == (200, method)
            of_it = dict(told["headers"])
            assert of_it.pop("x-forwarded-for") == "2001:db8::7"
            assert of_it.keys() <= {"host", "content-length"}


async def test_a_relay_that_cannot_begin_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    real = aiohttp.ClientSession

    def session(**given: Any) -> aiohttp.ClientSession:
        made.append(real(**given))
        return made[-1]

    @asynccontextmanager
    async def no_port(_app: web.Application) -> AsyncIterator[int]:
        raise OSError("no port is free")
        yield 0

    monkeypatch.setattr(aiohttp, "ClientSession", session)
    proxy = ServiceProxy(Connection("KUBE_HOST", "http://127.0.0.1:1", None, Token("t0ken")))
    with monkeypatch.context() as patch:
        patch.setattr(locator, "on_loopback", no_port)
        for _ in range(2):
            with pytest.raises(OSError, match="no port"):
                await proxy.url(ENVIRONMENT)
    assert [one.closed for one in made] == [True, True]
    assert await proxy.url(ENVIRONMENT)
    await proxy.close()
    assert [one.closed for one in made] == [True, True, True]


async def test_auto_goes_by_the_api_server_where_the_load_balancer_speaks_plain_http() -> None:
    outside = {"platform_namespace": None, "service_type": "LoadBalancer"}
    usual = await reached(Options(image="x", **outside))
    allowed = await reached(Options(image="x", allow_plain_http=True, **outside))

    assert usual is not None
    assert usual.startswith("http://127.0.0.1:")
    assert usual.endswith("/user-ada/demo-svc")
    assert allowed == "http://203.0.113.7:3001"


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ([{"ip": "203.0.113.7"}], "203.0.113.7"),
        ([{"hostname": "lb.test"}], "lb.test"),
        ([{"ip": "203.0.113.7", "hostname": "lb.test"}], "lb.test"),
        ([{}, {"ip": "2001:db8::7"}, {"ip": "203.0.113.7"}, {"ip": "203.0.113.8"}], "203.0.113.7"),
        ([{"ip": "2001:db8::7"}], "[2001:db8::7]"),
        ([], None),
        (None, None),
    ],
)
def test_a_load_balancers_url_by_name_by_one_of_several_addresses_and_by_ipv6(
    given: list[dict[str, str]] | None, host: str | None
) -> None:
    options = Options(image="x", platform_namespace=None, service_type="LoadBalancer")
    spec = {"type": "LoadBalancer", "ports": [{"port": 4711}]}  # of before GOOSE_API_PORT changed
    service = {"spec": spec, "status": {"loadBalancer": {"ingress": given} if given else {}}}
    url = endpoint_of(ENVIRONMENT, options, service)
    assert url == (None if host is None else f"http://{host}:4711")


@pytest.mark.parametrize("way", ["auto", "loadbalancer"])
async def test_one_that_runs_without_a_load_balancer_is_reached_by_the_proxy(way: str) -> None:
    now = Options(image="x", platform_namespace=None, reach=way, allow_plain_http=True)
    service = {"spec": {"type": "ClusterIP", "ports": [{"port": 3001}]}}
    async with stateful() as server, opened(server, now) as cluster:
        url = await cluster._locator.url(ENVIRONMENT, service)
    assert url is not None
    assert url.startswith("http://127.0.0.1:")


async def test_auto_goes_by_an_ingress_that_speaks_https() -> None:
    url = await reached(Options(image="x", ingress_base_domain="envs.test", ingress_tls=True))

    assert url is not None
    assert url.startswith("https://")
    assert url.endswith(".envs.test")


@pytest.mark.parametrize("platform", [None, "greylag"])
def test_named_sources_are_let_in_by_the_load_balancer_and_by_the_policy(
    platform: str | None,
) -> None:
    sources = ("198.51.100.0/24", "203.0.113.4/32")
    options = Options(
        image="x",
        platform_namespace=platform,
        service_type="LoadBalancer",
        loadbalancer_source_ranges=sources,
    )
    own = project_objects(ENVIRONMENT, options, {}, token="t", replicas=1)
    spec = next(thing["spec"] for thing in own if thing["kind"] == "Service")
    policies = [t for t in shared_objects(ENVIRONMENT, options) if t["kind"] == "NetworkPolicy"]
    (rule,) = policies[-1]["spec"]["ingress"]
    blocks = [peer["ipBlock"]["cidr"] for peer in rule["from"] if "ipBlock" in peer]

    assert spec["loadBalancerSourceRanges"] == list(sources)
    assert spec["externalTrafficPolicy"] == "Local"
    assert blocks == list(sources)
    assert options.open_to_all is None


async def test_load_balancers_that_anybody_may_call_are_told_of() -> None:
    outside = Options(image="x", platform_namespace=None)
    inside = Options(image="x", platform_namespace="greylag")
    async with stateful() as server, opened(server, outside) as cluster:
        assert cluster.notice is not None
        assert "GREYLAG_KUBE_LOADBALANCER_SOURCE_RANGES" in cluster.notice
    async with stateful() as server, opened(server, inside) as cluster:
        assert cluster.notice is None


async def test_an_agent_whose_pod_is_watched_is_looked_up_once_until_it_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(locator, "KEPT_SECONDS", 0.0)
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        assert await cluster._informers["Pod"].reached(str(server.version), 5)
        first = await cluster.reach(environment(2))
        server.asked.clear()
        assert await cluster.reach(environment(2)) == first
        assert server.asked == []

        pod = next(key for key in server.things if key[0] == "Pod")
        meta = server.things[pod]["metadata"]
        for change in ({"name": "another"}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}):
            server.put("Pod", pod[1], {**server.things[pod], "metadata": {**meta, **change}})
        assert await cluster._informers["Pod"].reached(str(server.version), 5)
        assert await cluster.reach(environment(2)) == first
        assert "GET Secret" in server.asked


async def test_what_is_not_there_not_ready_or_going_is_not_reached() -> None:
    async with asleep() as (server, cluster), opened(server, OPTIONS) as web_process:
        for _ in range(2):
            with pytest.raises(NotActiveError):
                await web_process.reach(environment(1))
            await cluster.start(environment(2))
        running(server)
        key = next(key for key in server.things if key[0] == "Pod")
        pod = server.things[key]
        going = {**pod["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
        server.put(key[0], key[1], {**pod, "metadata": going})
        with pytest.raises(NotActiveError):
            await web_process.reach(environment(2))
        server.put(key[0], key[1], pod)
        assert (await web_process.reach(environment(2))).url
        web_process._locator.forget(environment(2))
        server.forget(next(key for key in server.things if key[0] == "Service"))
        with pytest.raises(NotActiveError):
            await web_process.reach(environment(2))


async def test_an_agent_that_nobody_watches_is_looked_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(locator, "KEPT_SECONDS", 0.0)
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        async with opened(server, OPTIONS) as web:
            first = await web.reach(environment(2))
            server.asked.clear()
            assert await web.reach(environment(2)) == first
            assert "GET Secret" in server.asked


async def test_an_address_that_fails_is_asked_ever_more_seldom_and_for_however_long() -> None:
    nowhere, probed = "http://127.0.0.1:1", Probed()
    probe = AddressProbe()
    try:
        assert probed.pause <= FIRST_PAUSE
        assert not await probe.answers(probed, "pod", nowhere)
        assert probed.pause > FIRST_PAUSE / 2
        probed.failed = 1024  # 2.0**1024 is no number any more
        assert not await probe.answers(probed, "pod", nowhere)
        assert LONGEST_PAUSE / 2 <= probed.pause <= LONGEST_PAUSE
    finally:
        await probe.close()


async def test_what_an_agent_refuses_is_found_anew_at_once_and_not_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        async with opened(server, OPTIONS) as web:
            old = await web.reach(environment(2))
            key = next(one for one in server.things if one[0] == "Secret")
            changed = {"data": {"GREYLAG_AGENT_TOKEN": "bmV3"}}
            server.put("Secret", key[1], {**server.things[key], **changed})
            server.asked.clear()

            assert old.anew is not None
            assert await old.anew() == old, "it was found a moment ago"
            assert server.asked == []
            monkeypatch.setattr(locator, "REFUSED_SECONDS", 0.0)
            new = await old.anew()
            assert (new.url, new.token) == (old.url, "new")
            assert await web.reach(environment(2)) == new
            server.asked.clear()
            assert await old.anew() == new, "another request had it found anew already"
            assert server.asked == []
