"""Previews through the whole way: browser's request, web, agentd, execd, an application."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from tests.agentd.api.test_preview_routes import application
from tests.harness import BEARER, TOKEN, served, settings
from tests.services.house import House
from tests.web.server import ADA, Site, site
from tests.web.test_relay_api import Elsewhere
from yarl import URL

from greylag.agent.http import HttpAgents
from greylag.agentd.config import Secret
from greylag.ports import AgentAddress
from greylag.services.agents import Agents
from greylag.web.app import create_app
from greylag.web.preview import Preview

AGENT_TOKEN = "a-token-of-this-agent"


@dataclass
class Shown:
    """A site whose project serves an application at a port."""

    running: Site
    path: str
    port: int

    async def link(
        self, port: int | None = None, by: dict[str, str] | None = None, **body: Any
    ) -> URL:
        """Make a link to the preview; ``by``: the headers of who does so."""
        where = f"{self.path}/ports/{port or self.port}/preview"
        status, made = await self.running.ask("POST", where, json=body, headers=by)
        assert status == 201, made
        return URL(made["url"], encoded=True)

    async def ask(
        self, url: URL, method: str = "GET", jar: dict[str, str] | None = None, **headers: str
    ) -> tuple[int, aiohttp.ClientResponse, bytes]:
        """Ask as a browser that resolves the name to this machine; cookies are kept in ``jar``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["host"] = url.authority
        cookies = [f"{name}={value}" for name, value in (jar or {}).items()]
        if "cookie" in named or cookies:
            named["cookie"] = "; ".join(
                [*cookies, *([named["cookie"]] if "cookie" in named else [])]
            )
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
            here = url.with_host("127.0.0.1")
            async with http.request(method, here, headers=named, allow_redirects=False) as answer:
                body = await answer.read()
        if jar is not None:
            jar |= {one.key: one.value for one in answer.cookies.values()}
        return answer.status, answer, body

    async def opened(
        self, by: dict[str, str] | None = None, **body: Any
    ) -> tuple[URL, dict[str, str]]:
        """Open a new link; return the preview's own address, and the browser's cookies."""
        link, jar = await self.link(by=by, **body), dict[str, str]()
        status, answer, _ = await self.ask(link, jar=jar)
        assert (status, answer.headers["location"]) == (303, body.get("path", "/"))
        return link.with_path("/").with_query(None), jar


@pytest.fixture
async def shown(tmp_path: Path) -> AsyncIterator[Shown]:
    async with (
        application(tmp_path, token=Secret(AGENT_TOKEN)) as (api, port),
        _web(api.base) as running,
    ):
        yield Shown(running, await running.project(active=True), port)


@asynccontextmanager
async def _web(agentd: str) -> AsyncIterator[Site]:
    house, gateway = House(), HttpAgents.open()
    cluster = Elsewhere(AgentAddress(agentd, AGENT_TOKEN))
    agents = Agents(house.use_cases.projects, cluster, gateway)
    app = create_app(replace(house.use_cases, agents=agents), settings())
    async with house.working(), served(app) as port:
        base = f"http://localhost:{port}"
        async with aiohttp.ClientSession(base, headers=BEARER) as http:
            yield Site(house, http, port)
    await gateway.close()


async def test_a_link_opens_one_browser_once_for_its_own_host(shown: Shown) -> None:
    link = await shown.link()
    assert link.authority == f"{shown.port}--notes--ada.localhost:{shown.running.port}"
    jar: dict[str, str] = {}
    status, answer, _ = await shown.ask(link, jar=jar)
    assert status == 303
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "domain" not in cookie
    assert (await shown.ask(link))[0] == 401  # it was used
    home = link.with_path("/").with_query(None)
    assert (await shown.ask(home))[0] == 401
    assert (await shown.ask(home, authorization=f"Bearer {TOKEN}"))[0] == 401
    assert (await shown.ask(home, jar=jar))[0] == 200
    elsewhere = home.with_host(f"{shown.port}--notes--zoe.localhost")
    assert (await shown.ask(elsewhere, jar=jar))[0] == 401
    assert (await shown.ask(home.with_host("1--notes--ada.localhost"), jar=jar))[0] == 401
    forged = {name: value[:-2] + "aa" for name, value in jar.items()}
    assert (await shown.ask(home, jar=forged))[0] == 401
    status, _, body = await shown.ask(home.with_path("/api/users"), jar=jar)
    assert (status, json.loads(body)["target"]) == (200, "/api/users")  # the application's own
    dashboard = URL(f"http://localhost:{shown.running.port}/api/users")
    assert (await shown.ask(dashboard, jar=jar))[0] == 401  # the cookie opens nothing else


async def test_a_shared_link_opens_any_browser_until_it_runs_out(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = await shown.link(share_seconds=3600, path="/docs?x=1")
    jars: list[dict[str, str]] = [{}, {}]
    for jar in jars:
        status, answer, _ = await shown.ask(link, jar=jar)
        assert (status, answer.headers["location"]) == (303, "/docs?x=1")
    home = link.with_path("/").with_query(None)
    assert (await shown.ask(home, jar=jars[1]))[0] == 200
    later = int(asyncio.get_running_loop().time()) + 10**10
    monkeypatch.setattr("greylag.web.preview._now", lambda: later)
    assert (await shown.ask(link))[0] == 401
    assert (await shown.ask(home, jar=jars[1]))[0] == 401


async def test_the_application_is_told_nothing_of_ours_and_can_say_nothing_for_others(
    shown: Shown,
) -> None:
    home, jar = await shown.opened()
    own = str(home.origin())
    more = {"cookie": "theirs=1", "authorization": "Basic eDp5", "x_forwarded_host": "evil"}
    more |= {"x_greylag_agent_token": "x", "origin": own, "connection": "x-hop", "x_hop": "1"}
    status, answer, body = await shown.ask(home.with_path("/a"), "POST", jar, **more)
    assert status == 200
    told = json.loads(body)
    headers = dict(told["headers"])
    assert headers["cookie"] == "theirs=1"
    assert headers["host"] == f"localhost:{shown.port}"
    assert headers["origin"] == f"http://localhost:{shown.port}"
    assert headers["authorization"] == "Basic eDp5"
    assert headers["x-forwarded-host"] == home.authority
    assert "x-hop" not in headers
    everything = json.dumps(told)
    assert all(one not in everything for one in (TOKEN, AGENT_TOKEN, jar["greylag_preview"]))
    assert answer.headers.getall("set-cookie") == ["one=1; Path=/"]
    assert answer.headers["content-security-policy"] == "default-src *"  # its own, not ours
    assert "alt-svc" not in answer.headers
    _, away, _ = await shown.ask(home.with_path("/away"), jar=jar)
    assert away.headers["location"] == "http://localhost:1/elsewhere"


async def test_other_sites_may_lead_here_and_do_nothing(shown: Shown) -> None:
    home, jar = await shown.opened()
    other: list[tuple[str, dict[str, str], int]] = [
        ("POST", {"origin": "http://evil.example"}, 403),
        ("POST", {"origin": "null"}, 403),
        ("POST", {"sec_fetch_site": "same-site", "sec_fetch_mode": "navigate"}, 403),
        ("GET", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, 403),
        ("GET", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 200),
        ("GET", {"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors"}, 200),
        ("TRACE", {}, 422),
    ]
    for method, headers, status in other:
        assert (await shown.ask(home, method, jar, **headers))[0] == status, headers


async def test_what_looks_like_two_requests_is_one_or_refused(shown: Shown) -> None:
    home, jar = await shown.opened()
    cookie = "; ".join(f"{name}={value}" for name, value in jar.items())
    head = f"host: {home.authority}\r\ncookie: {cookie}\r\n"
    inner = f"GET /inner HTTP/1.1\r\n{head}\r\n"

    async def told(sent: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", shown.running.port)
        writer.write(sent.encode())
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        return answer

    post = f"POST /outer HTTP/1.1\r\n{head}connection: close\r\n"
    chunked = "transfer-encoding: chunked\r\n"
    for both in (f"content-length: 4\r\n{chunked}", f"{chunked}content-length: 4\r\n"):
        answer = await told(f"{post}{both}\r\n0\r\n\r\n{inner}")
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"inner" not in answer
    answer = await told(f"{post}content-length: {len(inner)}\r\n\r\n{inner}")
    assert answer.count(b"HTTP/1.1") == 1
    assert b'"target": "/outer"' in answer
    answer = await told(f"{post}{chunked}\r\n{len(inner):x}\r\n{inner}\r\n0\r\n\r\n")
    assert f'"length": {len(inner)}'.encode() in answer
    for odd in ("transfer-encoding: xchunked", "content-length: +4", "host: localhost", "a b: c"):
        assert (await told(f"{post}{odd}\r\n\r\n"))[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 422"}
    absolute = f"GET http://localhost:1/x HTTP/1.1\r\n{head}connection: close\r\n\r\n"
    assert b'"target": "/x"' in await told(absolute)


async def test_sockets_pass_from_the_preview_s_own_pages_alone(shown: Shown) -> None:
    home, jar = await shown.opened()
    url = home.with_path("/socket").with_host("127.0.0.1")
    cookie = "; ".join(f"{name}={value}" for name, value in jar.items())
    headers = {"host": home.authority, "cookie": cookie, "origin": str(home.origin())}
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        async with http.ws_connect(url, headers=headers, protocols=("vite-hmr",)) as opened:
            assert opened.protocol == "vite-hmr"
            await opened.send_str("words")
            assert await opened.receive_str() == "words"
        for wrong, status in (({"origin": "http://a.example"}, 403), ({"cookie": "x=y"}, 401)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(url, headers={**headers, **wrong})
            assert refused.value.status == status


async def test_a_preview_ends_with_the_sign_in_or_the_share_that_it_was_opened_by(
    shown: Shown,
) -> None:
    running, member = shown.running, f"{shown.path}/members/eve"
    assert (await running.ask("POST", "/api/users", json={"id": "eve", "display_name": "E"}))[0]
    assert (await running.ask("PUT", member, json={"role": "editor"}))[0] == 200
    new = {"name": "x", "scopes": ["files"], "expires_in_days": 1, "user": "eve"}
    _, made = await running.ask("POST", "/api/tokens", json=new)
    eve = {"authorization": f"Bearer {made['token']}"}
    home, private = await shown.opened(by=eve)
    _, shared = await shown.opened(by=eve, share_seconds=3600)

    def asked(path: str, jar: dict[str, str]) -> dict[str, Any]:
        cookie = "; ".join(f"{name}={value}" for name, value in jar.items())
        headers = {"host": home.authority, "cookie": cookie}
        return {"url": home.with_path(path).with_host("127.0.0.1"), "headers": headers}

    async with (
        asyncio.timeout(60),
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
        http.ws_connect(**asked("/socket", shared)) as shared_socket,
    ):
        async with (
            http.ws_connect(**asked("/socket", private)) as socket,
            http.get(**asked("/stream", private)) as stream,
        ):
            assert (await running.ask("DELETE", f"/api/tokens/{made['id']}"))[0] == 204
            assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
            assert socket.close_code == 1008
            with pytest.raises(aiohttp.ClientPayloadError):
                await stream.read()
        assert (await shown.ask(home, jar=private))[0] == 401
        await shared_socket.send_str("words")
        assert await shared_socket.receive_str() == "words"
        assert (await running.ask("DELETE", member))[0] == 204
        assert (await shared_socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert (await shown.ask(home, jar=shared))[0] == 404


async def test_a_port_that_is_no_application_s_is_not_shown(shown: Shown) -> None:
    for port in (shown.running.port, 1):
        link, jar = await shown.link(port), dict[str, str]()
        await shown.ask(link, jar=jar)
        status, _, body = await shown.ask(link.with_path("/").with_query(None), jar=jar)
        assert (status, b"answers on port" in body) == (502, True)


async def test_in_a_frame_the_cookie_is_of_that_page_alone(shown: Shown) -> None:
    _, answer, _ = await shown.ask(await shown.link(), sec_fetch_dest="iframe")
    said = answer.headers["set-cookie"].lower()
    assert all(word in said for word in ("partitioned", "secure", "samesite=none"))


async def test_a_link_needs_a_name_that_leads_here() -> None:
    async with site() as running:
        path = await running.project()
        assert (await running.ask("POST", f"{path}/ports/80/preview", json={}))[0] == 201
        asked = {"json": {"path": "//evil.example"}}
        assert (await running.ask("POST", f"{path}/ports/80/preview", **asked))[0] == 422
        assert (await running.ask("POST", f"{ADA}/none/ports/80/preview", json={}))[0] == 404
    async with site(settings(preview_domain="shown.example", allowed_hosts="a.example")) as running:
        path = await running.project()
        status, made = await running.ask(
            "POST", f"{path}/ports/80/preview", json={}, headers={"host": "a.example:9"}
        )
        assert urlsplit(made["url"]).netloc == "80--notes--ada.shown.example:9"
    async with site(settings(allowed_hosts="a.example")) as running:
        path = await running.project()
        status, refused = await running.ask(
            "POST", f"{path}/ports/80/preview", json={}, headers={"host": "a.example"}
        )
        assert (status, refused["code"]) == (409, "preview_off")


@pytest.mark.parametrize(
    ("user", "project", "plain"),
    [
        ("ada", "notes", True),
        ("ada", "a-b", True),
        ("ada", "a--b", False),
        ("Zoë", "notes", False),
        ("ada", "n" * 70, False),
        ("ada", "-", False),
        ("a.b", "c", False),
    ],
)
def test_every_id_has_a_label_that_a_host_may_have(
    user: str,
    project: str,
    plain: bool,  # noqa: FBT001 - of the table
) -> None:
    label = Preview(user, project, 65_535, 0, shared=False, id="").label
    assert len(label) <= 63
    assert label.isascii()
    assert (label == f"65535--{project}--{user}") == plain
