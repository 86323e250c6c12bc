"""Previews through the whole way: browser's request, web, agentd, execd, an application."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from pydantic import SecretStr
from tests.agentd.api.test_preview_routes import (
    application,
    check_that_a_slow_reader_holds_the_application_back,
    exchange_large_messages,
)
from tests.harness import BEARER, TOKEN, served, settings
from tests.services.house import House
from tests.web.server import ADA, Site, site
from tests.web.test_people_api import signed_in
from tests.web.test_relay_api import Elsewhere
from yarl import URL

from greylag.agent.http import HttpAgents
from greylag.agentd.api import preview as agentd_preview
from greylag.agentd.config import Secret
from greylag.common.agent_api import ForwardedAnswer
from greylag.domain.project import ProjectRef
from greylag.domain.users import OPERATOR, MemberRole, Role
from greylag.ports import AgentAddress
from greylag.services.agents import Agents
from greylag.services.tokens import new_token
from greylag.web import stream
from greylag.web.app import create_app
from greylag.web.auth import COOKIE, Signatures
from greylag.web.preview import _answer_headers, _nothing, _own_cookie
from greylag.web.preview_links import Preview

AT_ONCE = aiohttp.ClientWSTimeout(ws_close=0.2)
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
async def _web(agentd: str, **chosen: Any) -> AsyncIterator[Site]:
    house, gateway = House(), HttpAgents()
    cluster = Elsewhere(AgentAddress(agentd, AGENT_TOKEN))
    agents = Agents(house.use_cases.projects, cluster, gateway)
    app = create_app(replace(house.use_cases, agents=agents), settings(**chosen))
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
    _, told = await shown.running.ask("GET", "/api/audit?result=refused")
    assert "1--notes--ada/" in {one["object"] for one in told["entries"]}
    status, _, body = await shown.ask(home.with_path("/api/users"), jar=jar)
    assert (status, json.loads(body)["target"]) == (200, "/api/users")  # the application's own
    dashboard = URL(f"http://localhost:{shown.running.port}/api/users")
    assert (await shown.ask(dashboard, jar=jar))[0] == 401  # the cookie opens nothing else


async def test_a_link_from_before_an_import_opens_nothing(shown: Shown) -> None:
    link = await shown.link()
    async with shown.running.house.store.replacing(at=datetime.now(UTC) + timedelta(seconds=5)):
        pass
    assert (await shown.ask(link))[0] == 401


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
    shares = f"{shown.path}/shares"
    _, listed = await shown.running.ask("GET", shares)
    (share,) = listed["shares"]
    assert share["url"] == str(link)
    assert (share["port"], share["path"]) == (shown.port, "/docs?x=1")
    other = await shown.link(share_seconds=60)
    ended: dict[str, str] = {}
    await shown.ask(other, jar=ended)
    async with _socket(shown, home, ended) as opened:
        _, listed = await shown.running.ask("GET", shares)
        assert len(listed["shares"]) == 2
        name = listed["shares"][0]["share"]
        assert (await shown.running.ask("DELETE", f"{shares}/{name}"))[0] == 204
        assert (await shown.running.ask("DELETE", f"{shares}/{name}"))[0] == 404
        async with asyncio.timeout(20):
            # What was open ends too.
            assert (await opened.receive()).type is aiohttp.WSMsgType.CLOSED
    _, told = await shown.running.ask("GET", "/api/audit?action=previews.end")
    assert [one["object"].rpartition("/")[2] for one in told["entries"]] == [str(shown.port)]
    for action, expected in (
        ("previews.link", [share["share"], name]),
        ("previews.open", [share["share"], name]),
        ("previews.end", [name]),
    ):
        _, told = await shown.running.ask("GET", f"/api/audit?action={action}")
        assert [one["changed"]["share"] for one in reversed(told["entries"])] == expected
    assert (await shown.ask(other))[0] == 401
    assert (await shown.ask(home, jar=ended))[0] == 401
    assert (await shown.ask(home, jar=jars[1]))[0] == 200
    later = int(asyncio.get_running_loop().time()) + 10**10
    async with _socket(shown, home, jars[0]) as opened:
        with monkeypatch.context() as looks:
            looks.setattr("greylag.web.preview.time", SimpleNamespace(time=lambda: later))
            async with asyncio.timeout(20):
                assert (await opened.receive()).type is aiohttp.WSMsgType.CLOSED
    monkeypatch.setattr("greylag.web.preview_links._now", lambda: later)
    assert (await shown.ask(link))[0] == 401
    assert (await shown.ask(home, jar=jars[1]))[0] == 401


async def test_the_application_is_told_nothing_of_ours_and_can_say_nothing_for_others(
    shown: Shown,
) -> None:
    home, jar = await shown.opened()
    own = str(home.origin())
    more = {"cookie": "theirs=1", "authorization": "Basic eDp5", "forwarded": "host=evil"}
    # Some compare these with Origin, and refuse what does not match (Rails, Next.js).
    others = ("host", "port", "proto", "scheme", "ssl")
    more |= {f"x_forwarded_{one}": "https" for one in others}
    more |= {"x_greylag_agent_token": "x", "origin": own, "connection": "x-hop", "x_hop": "1"}
    status, answer, body = await shown.ask(home.with_path("/a"), "POST", jar, **more)
    assert status == 200
    told = json.loads(body)
    headers = dict(told["headers"])
    assert headers["cookie"] == "theirs=1"
    assert headers["host"] == f"localhost:{shown.port}"
    assert headers["origin"] == f"http://localhost:{shown.port}"
    assert headers["authorization"] == "Basic eDp5"
    assert [one for one in headers if "forwarded" in one] == ["x-forwarded-for"]
    assert "x-hop" not in headers
    everything = json.dumps(told)
    assert all(one not in everything for one in (TOKEN, AGENT_TOKEN, jar["greylag_preview"]))
    assert answer.headers.getall("set-cookie") == ["one=1; Path=/"]
    assert answer.headers["content-security-policy"] == "default-src *"  # its own, not ours
    far = ("alt-svc", "strict-transport-security", "clear-site-data", "nel", "report-to")
    assert [one for one in far if one in answer.headers] == []
    assert answer.headers["reporting-endpoints"] == 'own="/reports"'  # of its own pages alone
    _, away, _ = await shown.ask(home.with_path("/away"), jar=jar)
    assert away.headers["location"] == "http://localhost:1/elsewhere"


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("http://localhost:80/x?y", "/x?y"),
        ("http://localhost:80", "/"),
        ("http://localhost:8080/x", None),
        ("http://localhost:80.evil.example/", None),
        ("x", None),
    ],
)
def test_where_an_application_leads_within_itself_it_leads_within_the_preview(
    location: str, told: str | None
) -> None:
    answer = ForwardedAnswer(302, [(b"location", location.encode())], _nothing())
    given = dict(_answer_headers(answer, Preview("ada", "notes", 80, 0, shared=False, id="")))
    assert given[b"location"].decode() == (told or location)


@pytest.mark.parametrize(
    ("framed", "more"),
    [(False, "; SameSite=Lax; secure"), (True, "; Secure; SameSite=None; Partitioned")],
)
def test_an_application_s_cookie_is_of_its_host_and_where_it_is_framed_for_that(
    framed: bool,  # noqa: FBT001 - of the table
    more: str,
) -> None:
    cookie = b"a=1; Path=/; Domain=x.example; SameSite=Lax; secure"
    assert _own_cookie(cookie, framed=framed).decode() == f"a=1; Path=/{more}"


async def test_behind_tls_its_cookie_and_its_origin_are_of_tls(tmp_path: Path) -> None:
    async with (
        application(tmp_path, token=Secret(AGENT_TOKEN)) as (api, port),
        _web(api.base, trusted_proxies="127.0.0.1") as running,
    ):
        shown = Shown(running, await running.project(active=True), port)
        link, jar = await shown.link(), dict[str, str]()
        status, answer, _ = await shown.ask(link, jar=jar, x_forwarded_proto="https")
        assert (status, list(jar)) == (303, ["__Host-greylag_preview"])
        assert "; secure" in answer.headers["set-cookie"].lower()
        home = link.with_path("/").with_query(None)
        for scheme, status in (("https", 200), ("http", 403)):
            asked = {"origin": f"{scheme}://{home.authority}", "x_forwarded_proto": "https"}
            assert (await shown.ask(home, "POST", jar, **asked))[0] == status
        headers = {"origin": f"https://{home.authority}", "x-forwarded-proto": "https"}
        async with _socket(shown, home, jar, **headers) as opened:
            await opened.send_str("words")
            assert await opened.receive_str() == "words"


async def test_what_lets_in_here_never_reaches_the_application_though_a_client_sends_it_along(
    shown: Shown,
) -> None:
    home, jar = await shown.opened()
    operator = f"{COOKIE}={Signatures(SecretStr(TOKEN)).cookie()}"
    person = (await signed_in(shown.running, "eve"))["cookie"]
    of_another_greylag = f"{COOKIE}={Signatures(SecretStr('another'.center(32))).cookie()}"
    quoted = '"{1}"'.format(*person.split("="))
    sent = f"{operator}; __Host-{operator}; {person}; a={quoted}; {of_another_greylag}; theirs=1"
    for ours in (f"Bearer {TOKEN}", f"bearer  {TOKEN} ", f"Bearer {new_token()}"):
        status, _, body = await shown.ask(home, jar=dict(jar), cookie=sent, authorization=ours)
        headers = dict(json.loads(body)["headers"])
        assert (status, headers["cookie"]) == (200, f"{of_another_greylag}; theirs=1")
        assert "authorization" not in headers
    theirs = "Bearer of the application"
    _, _, body = await shown.ask(home, jar=jar, authorization=theirs)
    assert dict(json.loads(body)["headers"])["authorization"] == theirs


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


def _socket(
    shown: Shown, home: URL, jar: dict[str, str], path: str = "/socket", **more: str
) -> Any:
    """Open the application's WebSocket, as a page of the preview does."""
    cookie = "; ".join(f"{name}={value}" for name, value in jar.items())
    headers = {"host": home.authority, "cookie": cookie, "origin": str(home.origin()), **more}
    where = home.with_path(path).with_host("127.0.0.1")

    @asynccontextmanager
    async def opened() -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        async with (
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
            http.ws_connect(where, headers=headers, max_msg_size=0, timeout=AT_ONCE) as socket,
        ):
            yield socket

    return opened()


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


async def test_messages_of_any_size_pass_and_a_slow_reader_costs_no_memory(shown: Shown) -> None:
    home, jar = await shown.opened()
    async with asyncio.timeout(120), _socket(shown, home, jar) as opened:
        await exchange_large_messages(opened)
        await opened.send_str("bye")
        assert await opened.receive_str() == "bye"
        await opened.receive()
        assert opened.close_code == 4321

    async def said() -> int:
        return int((await shown.ask(home.with_path("/said"), jar=jar))[2])

    async with asyncio.timeout(120), _socket(shown, home, jar, "/talking") as opened:
        await check_that_a_slow_reader_holds_the_application_back(opened, said)


@asynccontextmanager
async def _one_place(
    tmp_path: Path,
) -> AsyncIterator[tuple[Shown, URL, list[dict[str, str]]]]:
    """Show an application where one of each may be open: to two by links of their own, and to the
    project's owner.
    """
    async with (
        application(tmp_path, token=Secret(AGENT_TOKEN)) as (api, port),
        _web(api.base, streams_per_project=1) as running,
    ):
        shown = Shown(running, await running.project(active=True), port)
        home, stranger = await shown.opened(share_seconds=3600)
        _, another = await shown.opened(share_seconds=3600)
        _, owner = await shown.opened()
        yield shown, home, [stranger, another, owner]


async def test_who_a_preview_is_shared_with_takes_no_place_of_its_project_s(tmp_path: Path) -> None:
    async with (
        _one_place(tmp_path) as (shown, home, (stranger, another, owner)),
        _socket(shown, home, stranger),
    ):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await _socket(shown, home, stranger).__aenter__()
        assert refused.value.status == 429
        async with (
            shown.running.http.get(f"{shown.path}/events") as events,
            _socket(shown, home, another),
            _socket(shown, home, owner),
        ):
            assert events.status == 200


async def test_what_a_member_has_open_takes_no_place_of_another_s(tmp_path: Path) -> None:
    async with _one_place(tmp_path) as (shown, home, (_, _, owner)):
        made = {"name": "t", "scopes": ["files"], "expires_in_days": 1, "user": "Zo\u00eb"}
        token = (await shown.running.ask("POST", "/api/tokens", json=made))[1]["token"]
        member = f"{shown.path}/members/Zo%C3%AB"
        assert (await shown.running.ask("PUT", member, json={"role": "editor"}))[0] == 200
        _, own = await shown.opened(by={"authorization": f"Bearer {token}"})
        async with _socket(shown, home, own), _socket(shown, home, owner):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await _socket(shown, home, own).__aenter__()
            assert refused.value.status == 429


async def test_a_limit_of_the_environment_is_told_to_a_stranger_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _one_place(tmp_path) as (shown, home, (stranger, _, owner)):
        monkeypatch.setattr(agentd_preview, "_MOST_STRANGERS", 0)
        assert (await shown.ask(home, jar=stranger))[0] == 429
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await _socket(shown, home, stranger).__aenter__()
        assert refused.value.status == 429
        async with _socket(shown, home, owner):
            pass


@pytest.mark.parametrize("kind", ["file", "port"])
async def test_who_waits_for_a_place_is_refused_once_their_link_has_ended(
    kind: str, tmp_path: Path
) -> None:
    async with _one_place(tmp_path) as (shown, home, (stranger, other, _)):
        (tmp_path / "workspace" / "small.txt").write_text("small")
        wanted, waiting = home, other
        if kind == "file":
            where, waiting = f"{shown.path}/files/preview", dict[str, str]()
            new = {"path": "small.txt", "share_seconds": 3600}
            _, made = await shown.running.ask("POST", where, json=new)
            link = URL(made["url"], encoded=True)
            assert (await shown.ask(link, jar=waiting))[0] == 303
            wanted = link.with_path("/small.txt").with_query(None)
        async with _streaming(shown, home, stranger):
            asking = asyncio.create_task(shown.ask(wanted, jar=waiting), name="waiting")
            _, listed = await shown.running.ask("GET", f"{shown.path}/shares")
            newest = listed["shares"][0]["share"]
            await shown.running.ask("DELETE", f"{shown.path}/shares/{newest}")
            assert (await asking)[0] == 401


async def test_strangers_whose_answers_last_leave_the_owner_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PLACE_SECONDS", 0)
    async with _one_place(tmp_path) as (shown, home, (stranger, another, owner)):
        async with _streaming(shown, home, stranger):
            status, _, words = await shown.ask(home, jar=stranger)
            assert (status, b"already have 1 open requests" in words) == (429, True)
            assert (await shown.ask(home, jar=another))[0] == 429
            async with _streaming(shown, home, owner):
                assert (await shown.ask(home, jar=owner))[0] == 200
        async with asyncio.timeout(20):
            while (await shown.ask(home, jar=stranger))[0] == 429:
                pass


async def test_strangers_leave_the_owner_connections_however_many_processes_hand_them_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agentd_preview, "_MOST_SHARED", 1)
    monkeypatch.setattr(agentd_preview, "_PLACE_SECONDS", 0)
    async with (
        application(tmp_path, token=Secret(AGENT_TOKEN)) as (api, port),
        _web(api.base) as running,  # by itself it would hand on many more
    ):
        shown = Shown(running, await running.project(active=True), port)
        home, stranger = await shown.opened(share_seconds=3600)
        _, owner = await shown.opened()
        async with _streaming(shown, home, stranger):
            assert (await shown.ask(home, jar=stranger))[0] == 429
            assert (await shown.ask(home, jar=owner, x_greylag_shared="1"))[0] == 200
        monkeypatch.setattr(agentd_preview, "_PLACE_SECONDS", 20)
        status, _, told = await shown.ask(home, jar=stranger)
        assert status == 200
        assert "x-greylag-shared" not in dict(json.loads(told)["headers"])


async def test_strangers_who_are_slow_to_take_a_file_leave_others_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PLACE_SECONDS", 0)
    async with _one_place(tmp_path) as (shown, _, _):
        with (tmp_path / "workspace" / "large.bin").open("wb") as file:
            file.truncate(100_000_000)
        (tmp_path / "workspace" / "small.txt").write_text("small")

        async def opened(**share: int) -> tuple[URL, dict[str, str]]:
            where, jar = f"{shown.path}/files/preview", dict[str, str]()
            _, made = await shown.running.ask("POST", where, json={"path": "small.txt", **share})
            link = URL(made["url"], encoded=True)
            assert (await shown.ask(link, jar=jar))[0] == 303
            return link.with_path("/small.txt").with_query(None), jar

        small, stranger = await opened(share_seconds=3600)
        _, owner = await opened()
        cookie = "; ".join(f"{name}={value}" for name, value in stranger.items())
        headers = {"host": small.authority, "cookie": cookie}
        async with (
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
            http.get(
                small.with_path("/large.bin").with_host("127.0.0.1"), headers=headers
            ) as answer,
        ):
            assert answer.status == 200
            assert (await shown.ask(small, jar=stranger))[0] == 429
            assert (await shown.ask(small, jar=owner))[0] == 200


@asynccontextmanager
async def _streaming(shown: Shown, home: URL, jar: dict[str, str]) -> AsyncIterator[None]:
    """Hold an answer of the application's that does not end."""
    cookie = "; ".join(f"{name}={value}" for name, value in jar.items())
    headers = {"host": home.authority, "cookie": cookie}
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
        http.get(home.with_path("/stream").with_host("127.0.0.1"), headers=headers) as answer,
    ):
        assert await answer.content.readline() == b"data: begun\n"
        yield


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
            assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSED
            with pytest.raises(aiohttp.ClientPayloadError):
                await stream.read()
        assert (await shown.ask(home, jar=private))[0] == 401
        await shared_socket.send_str("words")
        assert await shared_socket.receive_str() == "words"
        assert (await running.ask("DELETE", member))[0] == 204
        assert (await shared_socket.receive()).type is aiohttp.WSMsgType.CLOSED
        assert (await shown.ask(home, jar=shared))[0] == 404


async def test_a_preview_of_the_operator_s_browser_ends_with_its_sign_in(shown: Shown) -> None:
    running, where = shown.running, f"{shown.path}/ports/{shown.port}/preview"
    async with aiohttp.ClientSession(f"http://localhost:{running.port}") as browser:
        async with browser.post("/sign-in", data={"token": TOKEN}, allow_redirects=False) as answer:
            assert answer.status == 303
        async with browser.post(where, json={}) as answer:
            link, jar = URL((await answer.json())["url"], encoded=True), dict[str, str]()
        assert (await shown.ask(link, jar=jar))[0] == 303
        home = link.with_path("/").with_query(None)
        _, of_the_token = await shown.opened()
        assert (await shown.ask(home, jar=jar))[0] == 200
        async with browser.post("/sign-out", allow_redirects=False) as answer:
            assert answer.status == 303
        assert (await shown.ask(home, jar=jar))[0] == 401
        assert (await shown.ask(home, jar=of_the_token))[0] == 200


async def test_a_port_that_is_no_application_s_is_not_shown(shown: Shown) -> None:
    for port in (shown.running.port, 1):
        link, jar = await shown.link(port), dict[str, str]()
        await shown.ask(link, jar=jar)
        status, _, body = await shown.ask(link.with_path("/").with_query(None), jar=jar)
        assert (status, b"answers on port" in body) == (502, True)


async def test_in_a_frame_cookies_are_of_that_page_alone(shown: Shown) -> None:
    link, jar = await shown.link(), dict[str, str]()
    _, answer, _ = await shown.ask(link, jar=jar, sec_fetch_dest="iframe")
    said = answer.headers["set-cookie"].lower()
    assert all(word in said for word in ("partitioned", "secure", "samesite=none"))
    framing = f"frame-ancestors 'self' http://localhost:{shown.running.port}"
    assert answer.headers["content-security-policy"] == framing
    _, answer, _ = await shown.ask(link.with_path("/").with_query(None), jar=jar)
    its_own = ["one=1; Path=/; Secure; SameSite=None; Partitioned"]
    assert answer.headers.getall("set-cookie") == its_own
    assert answer.headers.getall("content-security-policy") == ["default-src *", framing]


HTML = b"<!doctype html><script src=../lib.js></script>"
FILES = {
    "site/index.html": HTML,
    "site/a b/\u00fc\\x.html": HTML,
    "site/style.css": b"p {}",
    "site/notes.md": b"# Notes",
    "site/.env": b"SECRET=1",
    "lib.js": b"1",
    "data.bin": b"0123456789",
}


@pytest.fixture
async def files(shown: Shown) -> Shown:
    for path, content in FILES.items():
        where = {"path": path.replace("\\", "\\\\")}
        put = await shown.running.ask(
            "PUT", f"{shown.path}/files/content", params=where, data=content
        )
        assert put[0] == 200, put
    return shown


async def _file(shown: Shown, path: str, **body: Any) -> tuple[URL, dict[str, str], str]:
    """Open a file's link; return the origin, the browser's cookies, and where it led."""
    given = {"path": path, **body}
    status, made = await shown.running.ask("POST", f"{shown.path}/files/preview", json=given)
    assert status == 201, made
    link, jar = URL(made["url"], encoded=True), dict[str, str]()
    status, answer, _ = await shown.ask(link, jar=jar)
    assert status == 303
    return link.origin(), jar, answer.headers["location"]


async def test_files_are_shown_as_what_they_are_at_an_origin_of_their_own(
    files: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, jar, where = await _file(files, "site/a b/\u00fc\\\\x.html")
    assert own.authority == f"files--notes--ada.localhost:{files.running.port}"
    assert where == "/site/a%20b/%C3%BC%5Cx.html"

    async def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
        return await files.ask(URL(str(own) + path, encoded=True), method, jar, **headers)

    status, answer, body = await ask(where)
    assert (status, body) == (200, HTML)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "content-disposition" not in answer.headers
    for path, kind in (
        ("/site/style.css?v=1", "text/css; charset=utf-8"),
        ("/site/notes.md", "text/plain; charset=utf-8"),
        ("/lib.js", "text/javascript; charset=utf-8"),
        ("/data.bin", "application/octet-stream"),
        ("/site/", "text/html; charset=utf-8"),
    ):
        status, answer, _ = await ask(path)
        assert (status, answer.headers["content-type"]) == (200, kind)
    status, answer, body = await ask("/data.bin", range="bytes=2-4")
    assert (status, body) == (206, b"234")
    status, answer, _ = await ask("/data.bin", "HEAD")
    assert (status, answer.headers["content-length"]) == (200, "10")
    status, answer, _ = await ask("//site")
    assert (status, answer.headers["location"]) == (307, "/site/")
    status, _, _ = await ask("/data.bin", if_none_match=answer.headers.get("etag", "*"))
    assert status == 304
    for method in ("POST", "PUT", "DELETE"):
        assert (await ask("/data.bin", method))[0] == 422
    assert (await files.ask(own.with_path("/lib.js")))[0] == 401
    port = own.with_host(f"{files.port}--notes--ada.localhost")
    assert (await files.ask(port, jar=jar))[0] == 401
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await _socket(files, own, jar).__aenter__()
    assert refused.value.status == 422
    monkeypatch.setattr("greylag.web.preview._MOST_FILE", 9)
    assert (await ask("/data.bin"))[0] == 413


async def test_no_path_leads_out_of_what_is_shown(files: Shown, tmp_path: Path) -> None:
    (secret := tmp_path / "outside.txt").write_text("outside")
    (site,) = await asyncio.to_thread(lambda: list(tmp_path.rglob("site")))
    (site / "out.txt").symlink_to(secret)
    os.mkfifo(site / "pipe")
    odd = [
        "/../outside.txt",
        "/%2e%2e/outside.txt",
        "/..%2foutside.txt",
        "/site/out.txt",
        "/site/pipe",
    ]
    odd += ["/%00", "/site%2findex.html", "//etc/passwd", f"/{'a' * 5000}", "/none", "/none/"]
    odd += ["/%5C..%5Coutside.txt", "/site/index.html/"]
    own, jar, _ = await _file(files, "site/index.html")
    shared, theirs, _ = await _file(files, "site/index.html", share_seconds=60)
    allowed = {"/site/", "/site/a%20b/%C3%BC%5Cx.html", "/site/style.css"}
    for path in [*odd, "/lib.js", "/", "/site/../lib.js", "/site/.env", "/.git/config", *allowed]:
        for jar_of, within in (
            (jar, path in {*allowed, "/lib.js", "/site/.env"}),
            (theirs, path in allowed),
        ):
            status, _, body = await files.ask(URL(str(own) + path, encoded=True), jar=jar_of)
            assert (status == 200) == within, (path, status)
            assert status in {200, 404, 409, 422}, (path, status)
            assert b"outside\n" not in body
    assert shared == own
    for path in ("../x", "", "/", "a/../../b", "\\x41", "\\q", "a\0b"):
        given = {"path": path}
        asked = await files.running.ask("POST", f"{files.path}/files/preview", json=given)
        assert asked[0] == 422, path


async def test_members_preview_as_far_as_their_role_goes_and_no_longer(files: Shown) -> None:
    made = {"name": "t", "scopes": ["files"], "expires_in_days": 1, "user": "Zo\u00eb"}
    token = (await files.running.ask("POST", "/api/tokens", json=made))[1]["token"]
    zoe = {"authorization": f"Bearer {token}"}
    member = f"{files.path}/members/Zo%C3%AB"

    async def role(name: str) -> None:
        assert (await files.running.ask("PUT", member, json={"role": name}))[0] == 200

    async def ask(under: str, **body: Any) -> tuple[int, Any]:
        where = f"{files.path}/{under}"
        return await files.running.ask("POST", where, json=body, headers=zoe)

    await role("viewer")
    port = f"ports/{files.port}/preview"
    for under, body in ((port, {}), ("files/preview", {"path": "lib.js", "share_seconds": 60})):
        assert (await ask(under, **body))[0] == 403
    assert (await files.running.ask("GET", f"{files.path}/shares", headers=zoe))[0] == 403
    links, jars = [], [dict[str, str]() for _ in range(3)]
    links.append(URL((await ask("files/preview", path="lib.js"))[1]["url"], encoded=True))
    await role("editor")
    for kind, path in ((port, "/"), ("files/preview", "lib.js")):
        links.append(URL((await ask(kind, path=path, share_seconds=60))[1]["url"], encoded=True))
    for link, jar in zip(links, jars, strict=True):
        assert (await files.ask(link, jar=jar))[0] == 303
    file, shared = links[0].with_path("/lib.js"), links[1].with_path("/")
    for name, statuses in (("editor", [200, 200, 200]), ("viewer", [200, 403, 403])):
        await role(name)
        shown = zip((file, shared, file), jars, strict=True)
        assert [(await files.ask(url, jar=jar))[0] for url, jar in shown] == statuses
    await role("editor")
    async with _socket(files, shared, jars[1]) as opened:
        assert (await files.running.ask("DELETE", member))[0] == 204
        async with asyncio.timeout(20):
            assert (await opened.receive()).type is aiohttp.WSMsgType.CLOSED
    assert (await files.ask(file, jar=jars[0]))[0] == 404


async def test_an_administrator_s_reason_opens_no_preview_and_none_is_made(files: Shown) -> None:
    boss = await signed_in(files.running, "boss", Role.ADMIN)
    looks = {**boss, "x-greylag-reason": "a support case"}
    base, page = f"http://127.0.0.1:{files.running.port}", files.path.removeprefix("/api")
    sharing = files.running.house.use_cases.members
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", f"{files.path}/files/preview", {"json": {"path": "lib.js"}}),
        ("GET", f"{page}/preview", {"params": {"path": "lib.js"}}),
    ]
    async with aiohttp.ClientSession(base, headers=looks) as http:
        for method, path, given in asked:
            async with http.request(method, path, allow_redirects=False, **given) as answer:
                assert (answer.status, "owner and members" in await answer.text()) == (403, True)
        _, told = await files.running.ask("GET", "/api/audit?action=previews.link")
        assert told["entries"] == []
        await sharing.share(OPERATOR, ProjectRef("ada", "notes"), "boss", MemberRole.VIEWER)
        async with http.post(f"{files.path}/files/preview", json={"path": "lib.js"}) as answer:
            link = URL((await answer.json())["url"], encoded=True)
    assert (await files.ask(link))[0] == 303


async def test_a_tab_is_led_to_a_preview_and_a_page_may_frame_no_other_origin(
    shown: Shown,
) -> None:
    page = shown.path.removeprefix("/api")
    for under, label in (
        (f"preview/{shown.port}?path=/x", shown.port),
        ("preview?path=a", "files"),
    ):
        async with shown.running.http.get(f"{page}/{under}", allow_redirects=False) as answer:
            assert answer.status == 303
            assert URL(answer.headers["location"]).host == f"{label}--notes--ada.localhost"
    for under in ("preview/0", "preview/80?path=//x", "preview", "preview?path=.."):
        async with shown.running.http.get(f"{page}/{under}", allow_redirects=False) as answer:
            assert answer.status == 422
    for path, frames in ((page, f"http://*.localhost:{shown.running.port}"), ("/users/ada", None)):
        async with shown.running.http.get(path, headers={"accept": "text/html"}) as answer:
            policy = answer.headers["content-security-policy"]
        assert policy.partition("frame-src ")[2] == (frames or "")


async def test_a_link_needs_a_name_that_leads_here() -> None:
    async with site() as running:
        path = await running.project()
        assert (await running.ask("POST", f"{path}/ports/80/preview", json={}))[0] == 201
        asked = {"json": {"path": "//evil.example"}}
        assert (await running.ask("POST", f"{path}/ports/80/preview", **asked))[0] == 422
        assert (await running.ask("POST", f"{ADA}/none/ports/80/preview", json={}))[0] == 404
        here = {"host": f"[::1]:{running.port}"}
        status, made = await running.ask("POST", f"{path}/ports/80/preview", json={}, headers=here)
        below = f"localhost:{running.port}"
        assert (status, urlsplit(made["url"]).netloc) == (201, f"80--notes--ada.{below}")
        page, shown = path.removeprefix("/api"), {**here, "accept": "text/html"}
        async with running.http.get(page, headers=shown) as answer:
            policy = answer.headers["content-security-policy"]
        assert policy.endswith(f"frame-src http://*.{below}")
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
