"""Signing in by an identity provider, from the page to the page that was wanted, and out again."""

import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from itsdangerous import TimestampSigner, URLSafeTimedSerializer
from pydantic import SecretStr
from tests.harness import BEARER, TOKEN, served, settings
from tests.identity.people import CLIENT, SECRET, Provider, needs_provider, sign_in_at, visitor
from tests.services.house import House
from tests.web.server import Site
from yarl import URL

from greylag.domain.audit import Result
from greylag.domain.users import Role, User
from greylag.identity.oidc import OidcOptions, OidcProvider
from greylag.ports import AuditFilter
from greylag.services.use_cases import UseCases
from greylag.web.app import create_app
from greylag.web.auth import COOKIE
from greylag.web.oidc import States
from greylag.wiring import build

pytestmark = needs_provider


@dataclass(frozen=True, slots=True)
class SignInSite(Site):
    use_cases: UseCases
    root: str

    @property
    def base(self) -> str:
        return str(self.http._base_url).rstrip("/")

    async def get(self, path: str, **more: Any) -> tuple[int, str, Any]:
        """Return status, text and headers of an answer to a browser that follows nothing."""
        headers = {"accept": "text/html", **more}
        async with self.http.get(path, headers=headers, allow_redirects=False) as answer:
            return answer.status, await answer.text(), answer.headers

    async def who(self) -> Sequence[str] | int:
        """Return the names of the users for whom the browser may act, else the refusal's status."""
        status, told = await self.ask("GET", "/api/users")
        return [user["display_name"] for user in told["users"]] if status == 200 else status

    async def newcomers(self) -> Sequence[User]:
        """Return the users who have signed in by the provider."""
        return [user for user in await self.use_cases.people.users() if user.identity]

    async def begin(self, wanted: str = "/") -> str:
        """Begin to sign in, and return the provider's address."""
        async with self.http.get(
            f"{self.root}/auth/sign-in", params={"next": wanted}, allow_redirects=False
        ) as answer:
            assert answer.status == 303, await answer.text()
            return answer.headers["location"]

    async def come_back(self, login: str = "ada", wanted: str = "/") -> tuple[int, str, Any]:
        """Sign in at the provider, and bring its answer here."""
        url = await sign_in_at(self.http, await self.begin(wanted), login)
        return await self.get(url.raw_path_qs)


@asynccontextmanager
async def signing_in(provider: Provider, **chosen: Any) -> AsyncIterator[SignInSite]:
    """A web at which one signs in by the provider, and a browser at it."""
    house, given = House(), settings(users="seed:Seed", **chosen)
    options = OidcOptions(
        provider.issuer, "Ourselves", CLIENT, SECRET, scopes="openid profile email groups"
    )
    adapter = OidcProvider(options, house.clock)
    use_cases = build(given, replace(house._adapters, provider=adapter)).use_cases
    app = create_app(use_cases, given)
    jar = aiohttp.CookieJar(unsafe=True)
    try:
        async with (
            house.working(),
            served(app) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}", cookie_jar=jar) as http,
        ):
            provider.know(f"http://127.0.0.1:{port}{chosen.get('root_path', '')}")
            yield SignInSite(house, http, port, use_cases, chosen.get("root_path", ""))
    finally:
        await adapter.close()


def onward(page: str) -> str | None:
    found = re.search(r'http-equiv="refresh" content="0; url=([^"]*)"', page)
    return found[1].replace("&amp;", "&") if found else None


async def test_one_signs_in_and_comes_to_the_page_that_was_wanted(provider: Provider) -> None:
    async with signing_in(provider) as site:
        status, page, _ = await site.get("/sign-in?next=/users?user=ada")
        assert (status, "Sign in with Ourselves" in page) == (200, True)
        assert "<details" in page
        status, page, headers = await site.come_back(wanted="/users?user=ada")
        assert (status, onward(page)) == (200, "/users?user=ada")
        assert headers["cache-control"] == "no-store"
        assert await site.who() == ["Ada Lovelace"]
        site.http.cookie_jar.clear()
        await site.come_back(login="bob")
        assert await site.who() == ["Bob"]
        ada, bob = sorted(await site.newcomers(), key=lambda one: one.display_name)
        assert (ada.identity, bob.identity) == (f"{provider.issuer} ada", f"{provider.issuer} bob")
        assert (ada.email, bob.email) == ("ada@example.org", None)
        # The same person is the same user.
        site.http.cookie_jar.clear()
        await site.come_back()
        assert (await site.who(), len(await site.newcomers())) == (["Ada Lovelace"], 2)


@pytest.mark.parametrize(
    ("root", "prefix"), [("", "__Host-"), ("/tools/greylag", "__Secure-")], ids=["root", "below"]
)
async def test_cookies_are_bound_to_the_browser_and_sent_no_further_than_they_must(
    provider: Provider, root: str, prefix: str
) -> None:
    async with signing_in(provider, trusted_proxies="127.0.0.1", root_path=root) as site:
        tls = {"x-forwarded-proto": "https"}
        _, _, headers = await site.get("/auth/sign-in", **tls)
        asked = URL(headers["location"]).query["redirect_uri"]
        assert asked == f"https://127.0.0.1:{site.port}{root}/auth/callback"
        (cookie,) = headers.getall("set-cookie")
        assert cookie.startswith(f"{prefix}greylag_state_")
        for word in ("HttpOnly", f"Path={root or '/'};", "SameSite=lax", "Secure", "Max-Age=600"):
            assert word in cookie
        _, page, headers = await site.come_back()
        assert onward(page) == f"{root}/"
        kept = {one.partition("=")[0]: one for one in headers.getall("set-cookie")}
        assert "SameSite=strict" in kept[COOKIE]
        assert "SameSite=strict" in kept["greylag_id_token"]
        assert f"Path={root}/auth/sign-out;" in kept["greylag_id_token"]
        assert {name for name, one in kept.items() if "Max-Age=0" in one} == {
            name for name in kept if name.startswith("greylag_state_")
        }


async def test_a_state_counts_once_in_the_browser_that_began_on_any_web(
    provider: Provider,
) -> None:
    async with signing_in(provider) as site:
        another = create_app(site.use_cases, settings())
        # Two tabs of one browser, at two webs behind one address.
        first = await sign_in_at(site.http, await site.begin("/users/ada"), "ada")
        second = await sign_in_at(site.http, await site.begin("/users"), "ada")
        cookies = {name.key: name.value for name in site.http.cookie_jar}
        async with served(another) as port:
            status, page, _ = await site.get(
                f"http://127.0.0.1:{port}{second.raw_path_qs}", host=f"127.0.0.1:{site.port}"
            )
        assert (status, onward(page)) == (200, "/users")
        async with (
            aiohttp.ClientSession(site.base) as stranger,
            stranger.get(first.raw_path_qs) as answer,
        ):
            assert (answer.status, COOKIE in answer.cookies) == (401, False)
        assert onward((await site.get(first.raw_path_qs))[1]) == "/users/ada"
        for replayed in (first, second):
            site.http.cookie_jar.update_cookies(cookies)
            status, page, headers = await site.get(replayed.raw_path_qs)
            assert (status, onward(page)) == (401, None)
            assert COOKIE not in str(headers.getall("set-cookie"))
        (ada,) = await site.newcomers()
        # The second one's began in the browser that had the first one's.
        assert len(await site.use_cases.people.sessions(ada.id)) == 1


async def test_a_sign_in_ends_the_one_that_the_browser_had(provider: Provider) -> None:
    async with signing_in(provider) as site:
        await site.come_back()
        before = {one.key: one.value for one in site.http.cookie_jar if one.key == COOKIE}
        url = await sign_in_at(site.http, await site.begin("/users"), "ada")
        # Another site led here, so a browser keeps the cookie of who has signed in to itself.
        status, page, headers = await site.get(url.raw_path_qs, **{"sec-fetch-site": "cross-site"})
        here = URL(onward(page) or "")
        assert (status, here.path, here.query) == (200, "/auth/callback", url.query)
        assert "set-cookie" not in headers
        again = await site.get(url.raw_path_qs, **{"sec-fetch-site": "same-origin"})
        assert (again[0], onward(again[1]), await site.who()) == (200, "/users", ["Ada Lovelace"])
        async with (
            aiohttp.ClientSession(site.base, cookies=before) as kept,
            kept.get("/api/users") as answer,
        ):
            assert answer.status == 401


async def test_a_state_runs_out_and_many_take_the_place_of_the_oldest(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with signing_in(provider) as site:
        url = await sign_in_at(site.http, await site.begin(), "ada")
        monkeypatch.setattr(URLSafeTimedSerializer, "loads", _begun_earlier(601))
        assert (await site.get(url.raw_path_qs))[0] == 401
        monkeypatch.undo()
        for _ in range(20):
            await site.begin()
        held = [one for one in site.http.cookie_jar if one.key.startswith("greylag_state_")]
        assert len(held) <= 9


def test_a_sign_in_that_a_web_began_whose_clock_is_ahead_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ahead = int(time.time()) + 90
    with monkeypatch.context() as there:
        there.setattr(TimestampSigner, "get_timestamp", lambda _: ahead)
        begun, cookie = States(SecretStr(TOKEN)).new("https://greylag.example", "/users")
    read = States(SecretStr(TOKEN)).read(cookie, begun.request.state, "https://greylag.example")
    assert read is not None
    assert read.wanted == "/users"


def _begun_earlier(seconds: float) -> Any:
    """Return what reads a sign-in under way as one that has begun by so much earlier."""
    loads = URLSafeTimedSerializer.loads

    def later(self: Any, value: str, *, return_timestamp: bool) -> Any:
        held, begun = loads(self, value, return_timestamp=return_timestamp)
        return held, begun - timedelta(seconds=seconds)

    return later


async def test_one_never_goes_on_to_another_site(provider: Provider) -> None:
    away = (
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "javascript:x",
        "",
        "/" * 3,
    )
    async with signing_in(provider) as site:
        for wanted in (*away, "/" + "x" * 3000):
            _, page, _ = await site.get(str(URL("/sign-in").with_query(next=wanted)))
            assert 'href="/auth/sign-in?next=%2F"' in page
            assert onward((await site.come_back(wanted=wanted))[1]) == "/"


async def test_who_thinks_better_of_it_or_is_refused_is_told(provider: Provider) -> None:
    groups = {"oidc_allowed_groups": "staff,others", "oidc_admin_groups": "admins"}
    async with signing_in(provider, **groups) as site:
        status, page, _ = await site.come_back(login="")
        assert (status, "Ourselves says: no" in page) == (401, True)
        site.http.cookie_jar.clear()
        status, page, headers = await site.come_back(login="bob")
        assert (status, "none of the groups" in page) == (403, True)
        assert COOKIE not in str(headers.getall("set-cookie"))
        site.http.cookie_jar.clear()
        assert (await site.come_back(login="ada"))[0] == 200
        (ada,) = await site.newcomers()
        (session,) = await site.use_cases.people.sessions(ada.id)
        assert session.role is Role.ADMIN


async def test_while_the_provider_is_down_tokens_and_sign_ins_go_on_working(
    provider: Provider,
) -> None:
    async with signing_in(provider) as site:
        provider.tell("down")
        try:
            status, page, _ = await site.get("/auth/sign-in")
            assert (status, "Ourselves does not answer" in page) == (503, True)
            assert "Sign in with Ourselves" in page
            async with site.http.get("/api/users", headers=BEARER) as answer:
                assert answer.status == 200
        finally:
            provider.tell("up")
        url = await sign_in_at(site.http, await site.begin(), "ada")
        provider.tell("down")
        try:
            status, page, _ = await site.get(url.raw_path_qs)
            assert (status, "Ourselves does not answer" in page) == (503, True)
        finally:
            provider.tell("up")
        assert (await site.come_back())[0] == 200
        provider.tell("down")
        try:
            assert await site.who() == ["Ada Lovelace"]
        finally:
            provider.tell("up")


async def test_signing_out_leads_to_the_provider_and_back(provider: Provider) -> None:
    async with signing_in(provider) as site:
        await site.come_back()
        kept = next(one.value for one in site.http.cookie_jar if one.key == COOKIE)
        async with site.http.post("/sign-out", allow_redirects=False) as answer:
            assert answer.headers["location"] == "/auth/sign-out"
        status, page, _ = await site.get("/auth/sign-out")
        url = URL(onward(page) or "")
        assert (status, str(url.origin())) == (200, provider.issuer)
        assert url.query["id_token_hint"].count(".") == 2
        assert url.query["post_logout_redirect_uri"] == f"{site.base}/sign-in"
        ended = await _sign_out_at(site.http, url)
        assert ended == f"{site.base}/sign-in"
        site.http.cookie_jar.update_cookies({COOKIE: kept})
        assert await site.who() == 401
        # A token that no cookie can hold is done without.
        provider.tell("set", forge={"claims": {"long": "x" * 4000}})
        await site.come_back()
        _, page, _ = await site.get("/auth/sign-out")
        assert "id_token_hint" not in URL(onward(page) or "").query
        # Nobody is led there twice, or after the operator's token.
        assert (await site.get("/auth/sign-out"))[2]["location"] == "/sign-in"


async def test_who_signs_out_at_the_provider_or_is_signed_out_there_is_out_here_too(
    provider: Provider,
) -> None:
    async with signing_in(provider) as site, visitor(site.base) as elsewhere:
        await site.come_back()
        # Ada at another browser, and bob: neither is meant.
        other = replace(site, http=elsewhere)
        await other.come_back()
        async with visitor(site.base) as third:
            bob = replace(site, http=third)
            await bob.come_back(login="bob")
            await _sign_out_at(site.http, URL(f"{provider.issuer}/session/end"))
            assert [await one.who() for one in (site, other, bob)] == [
                401,
                ["Ada Lovelace"],
                ["Bob"],
            ]


async def _sign_out_at(http: aiohttp.ClientSession, url: URL) -> str:
    """Sign out at the provider, and return where it leads then."""
    async with http.get(url) as answer:
        fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', await answer.text()))
        action = re.search(r'action="([^"]*)"', await answer.text())
    assert action is not None
    async with http.post(
        URL(action[1]), data={**fields, "logout": "yes"}, allow_redirects=False
    ) as answer:
        return answer.headers["location"]


async def test_only_the_provider_ends_sessions_from_outside(provider: Provider) -> None:
    async with signing_in(provider) as site:
        _, _, headers = await site.come_back()
        id_token = next(
            one.partition("=")[2].partition(";")[0]
            for one in headers.getall("set-cookie")
            if one.startswith("greylag_id_token=")
        )
        for token in ("", "a.b.c", id_token):
            async with site.http.post(
                "/auth/back-channel-logout", data={"logout_token": token}
            ) as answer:
                assert (answer.status, answer.headers["cache-control"]) == (400, "no-store")
                assert (await answer.json())["error"] == "invalid_request"
        assert await site.who() == ["Ada Lovelace"]
        await site.use_cases.audit.flush()
        assert await refused(site) == [("sessions.end", 1), ("sessions.end", 2)]


async def test_an_answer_to_nothing_that_the_browser_began_is_told_as_a_refusal(
    provider: Provider,
) -> None:
    async with signing_in(provider) as site:
        status, _, _ = await site.get("/auth/callback?state=forged&code=forged")
        assert status == 401
        assert await refused(site) == [("sessions.start", 1)]


async def refused(site: SignInSite) -> list[tuple[str, int]]:
    """Return what strangers were refused, and how often, as the audit trail tells it."""
    found = await site.house.store.audit_entries(AuditFilter(result=Result.REFUSED), 100)
    assert all(one["actor"]["address"] == "127.0.0.1" for _, one in found)
    return [(one["action"], one["count"]) for _, one in found]


async def test_without_a_provider_there_is_no_such_path_and_no_such_button() -> None:
    app = create_app(House().use_cases, settings())
    async with served(app) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        for path in ("/auth/sign-in", "/auth/callback", "/auth/sign-out"):
            async with http.get(path, allow_redirects=False) as answer:
                assert answer.status == 404
        async with http.get("/sign-in") as answer:
            assert "Sign in with" not in await answer.text()
