"""Signing in and out: links, cookies, wrong guesses, and what a proxy's word counts for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from itsdangerous import TimestampSigner
from pydantic import SecretStr
from structlog.testing import capture_logs
from tests.harness import BEARER, TOKEN, served, settings
from tests.services.house import House
from tests.web.server import ADA, Site, site
from tests.web.test_people_api import signed_in
from yarl import URL

from greylag.common.net import client_of
from greylag.config import Settings
from greylag.domain.errors import ConfigError, LimitExceededError, UnauthorizedError
from greylag.domain.users import OPERATOR, Principal, Role
from greylag.ports import LONGEST_SIGNED, AuditFilter
from greylag.services.access import MAX_REASON_LENGTH
from greylag.web import auth
from greylag.web.app import create_app
from greylag.web.auth import (
    COOKIE,
    COOKIE_SECONDS,
    LINK_SECONDS,
    MAX_FAILURES,
    Authenticator,
    Cookie,
    Signatures,
    WrongTokens,
    with_reason,
)
from greylag.web.preview_links import TICKET_SECONDS

PAGE = {"accept": "text/html"}
TLS = {"x-forwarded-proto": "https"}


@pytest.fixture
async def locked() -> AsyncIterator[Site]:
    async with site(signed_in=False) as one:
        yield one


@asynccontextmanager
async def behind(
    proxies: str = "127.0.0.1", host: str = "127.0.0.1", **more: object
) -> AsyncIterator[Site]:
    """A web that trusts these proxies."""
    chosen = settings(trusted_proxies=proxies, **more)
    async with site(chosen, signed_in=False, host=host) as one:
        yield one


def code_of_link(token: str = TOKEN) -> str:
    return URL(Signatures(SecretStr(token)).link("http://x")).fragment.removeprefix("token=")


async def sign_in(running: Site, token: str, **headers: str) -> tuple[int, str]:
    """Send the form; return the status and the new cookie's value (empty: none came)."""
    async with running.http.post(
        "/sign-in", data={"token": token}, headers=headers, allow_redirects=False
    ) as answer:
        found = [morsel.value for morsel in answer.cookies.values()]
        return answer.status, found[0] if found else ""


async def status_with(http: aiohttp.ClientSession, cookie: str, name: str = COOKIE) -> int:
    """Ask with this cookie and no other."""
    http.cookie_jar.clear()
    async with http.get(ADA, headers={"cookie": f"{name}={cookie}"}) as answer:
        return answer.status


async def test_a_link_signs_in_once(locked: Site) -> None:
    code = code_of_link()
    status, cookie = await sign_in(locked, f" {code}\n")
    assert (status, await status_with(locked.http, cookie)) == (303, 200)
    assert await status_with(locked.http, f'"{cookie}"') == 200
    assert await sign_in(locked, code) == (401, "")


async def test_of_two_that_use_a_link_at_once_on_two_webs_one_gets_in(locked: Site) -> None:
    app = create_app(locked.house.use_cases, settings())
    code = code_of_link()
    async with served(app) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        other = Site(locked.house, http, port)
        found = await asyncio.gather(*(sign_in(one, code) for one in (locked, other)))
    assert sorted(status for status, _ in found) == [303, 401]


async def test_a_used_link_is_no_error_where_one_is_signed_in(locked: Site) -> None:
    code = code_of_link()
    await sign_in(locked, code)
    assert await sign_in(locked, code) == (303, "")


@pytest.mark.parametrize("days", [1, 30])
async def test_links_and_cookies_run_out(
    locked: Site, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    code = code_of_link()
    _, cookie = await sign_in(locked, TOKEN)
    then = int((datetime.now(UTC) + timedelta(days=days, seconds=5)).timestamp())
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda _: then)
    assert await status_with(locked.http, cookie) == (200 if days == 1 else 401)
    locked.http.cookie_jar.clear()
    assert await sign_in(locked, code) == (401, "")


@pytest.mark.parametrize(("seconds", "counts"), [(1, True), (600, True), (40 * 86_400, False)])
async def test_what_a_web_signed_whose_clock_is_ahead_counts_at_once(
    locked: Site, monkeypatch: pytest.MonkeyPatch, seconds: int, *, counts: bool
) -> None:
    ahead = int((datetime.now(UTC) + timedelta(seconds=seconds)).timestamp())
    with monkeypatch.context() as there:
        there.setattr(TimestampSigner, "get_timestamp", lambda _: ahead)
        code, (_, cookie) = code_of_link(), await sign_in(locked, TOKEN)
    assert await status_with(locked.http, cookie) == (200 if counts else 401)
    locked.http.cookie_jar.clear()
    assert (await sign_in(locked, code))[0] == (303 if counts else 401)


async def test_nothing_that_was_signed_before_an_import_counts(
    locked: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, (_, cookie) = code_of_link(), await sign_in(locked, TOKEN)
    then = datetime.now(UTC) + timedelta(seconds=5)
    async with locked.house.store.replacing(at=then):
        pass
    assert await status_with(locked.http, cookie) == 401
    locked.http.cookie_jar.clear()
    assert await sign_in(locked, code) == (401, "")
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda _: int(then.timestamp()))
    for given in (TOKEN, code_of_link()):
        _, cookie = await sign_in(locked, given)
        assert await status_with(locked.http, cookie) == 200


def test_nothing_that_is_signed_outlives_what_an_import_has_revoked() -> None:
    for seconds in (COOKIE_SECONDS, LINK_SECONDS, TICKET_SECONDS):
        assert timedelta(seconds=seconds) < LONGEST_SIGNED


async def test_neither_a_link_nor_a_cookie_is_taken_for_the_other(locked: Site) -> None:
    assert await status_with(locked.http, code_of_link()) == 401
    _, cookie = await sign_in(locked, TOKEN)
    locked.http.cookie_jar.clear()
    assert await sign_in(locked, cookie) == (401, "")
    assert await sign_in(locked, code_of_link("another-token-of-many")) == (401, "")


async def test_a_sign_out_ends_the_sign_in_on_every_web_and_no_other(locked: Site) -> None:
    app = create_app(locked.house.use_cases, settings())
    async with served(app) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as other:
        _, stays = await sign_in(locked, TOKEN)
        locked.http.cookie_jar.clear()
        _, ends = await sign_in(locked, TOKEN)
        assert await status_with(other, ends) == 200
        leaving = {"cookie": f"{COOKIE}={ends}"}
        for _ in range(2):
            async with locked.http.post(
                "/sign-out", headers=leaving, allow_redirects=False
            ) as answer:
                assert (answer.status, answer.headers["location"]) == (303, "/sign-in")
                assert answer.cookies[COOKIE].value == ""
        for http in (locked.http, other):
            assert await status_with(http, ends) == 401
            assert await status_with(http, stays) == 200
    _, told = await locked.ask("GET", "/api/audit?action=sessions.end", headers=BEARER)
    assert len(told["entries"]) == 1


async def test_signing_in_again_ends_the_sign_in_before(locked: Site) -> None:
    _, first = await sign_in(locked, TOKEN)
    _, second = await sign_in(locked, TOKEN)
    assert first != second
    assert await status_with(locked.http, first) == 401
    assert await status_with(locked.http, second) == 200


async def test_a_token_that_is_no_form_is_not_taken_for_a_wrong_one(locked: Site) -> None:
    for _ in range(MAX_FAILURES + 1):
        async with locked.http.post("/sign-in", json={"token": TOKEN}) as answer:
            assert answer.status == 415
            assert "takes forms alone" in await answer.text()
    async with locked.http.post("/sign-in", data={"token": "wrong"}) as answer:
        assert answer.status == 401


async def test_another_site_can_neither_sign_in_nor_out(locked: Site) -> None:
    foreign = {"origin": "https://evil.example"}
    assert await sign_in(locked, TOKEN, **foreign) == (403, "")
    async with locked.http.post("/sign-out", headers=foreign) as answer:
        assert answer.status == 403


async def test_the_store_gone_nobody_is_let_in_by_a_cookie_and_pages_say_why(locked: Site) -> None:
    _, cookie = await sign_in(locked, TOKEN)
    await locked.house.store.close()
    assert await status_with(locked.http, cookie) == 503
    headers = {**PAGE, "cookie": f"{COOKIE}={cookie}"}
    async with locked.http.get("/", headers=headers) as answer:
        assert (answer.status, answer.content_type) == (503, "text/html")


async def test_the_right_token_is_never_locked_out(locked: Site) -> None:
    wrong = {"authorization": "Bearer wrong"}
    found = []
    for _ in range(MAX_FAILURES + 1):
        async with locked.http.get(ADA, headers=wrong) as answer:
            found.append((answer.status, answer.headers.get("retry-after")))
    assert found == [(401, None)] * MAX_FAILURES + [(429, "60")]
    async with locked.http.get(ADA, headers=BEARER) as answer:
        assert answer.status == 200
    assert (await sign_in(locked, "wrong-too"))[0] == 429
    assert (await sign_in(locked, TOKEN))[0] == 303
    locked.http.cookie_jar.clear()
    assert (await sign_in(locked, code_of_link()))[0] == 303


def test_wrong_tokens_are_counted_by_address_then_by_how_they_begin() -> None:
    now = 0.0
    wrong = WrongTokens(lambda: now)
    for number in range(MAX_FAILURES):
        wrong.count("10.0.0.1", b"%08d" % number)
    with pytest.raises(LimitExceededError, match="from this address"):
        wrong.count("10.0.0.1", b"something else")
    wrong.count("10.0.0.2", b"something else")
    for number in range(MAX_FAILURES):
        wrong.count(f"10.0.1.{number}", b"the-same-%d" % number)
    with pytest.raises(LimitExceededError, match="began like"):
        wrong.count("10.0.2.1", b"the-same-again")
    wrong.count("10.0.2.1", b"another")
    now = 61.0
    wrong.count("10.0.0.1", b"the-same-again")
    assert b"the-same"[:8].decode() not in str(vars(wrong))


def test_however_many_guess_no_more_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_MAX_COUNTED", 2 * MAX_FAILURES)
    wrong = WrongTokens(lambda: 0.0)
    for number in range(10 * MAX_FAILURES):
        wrong.count(f"10.0.1.{number}", b"%08d" % number)
    assert len(wrong._failures) == 2 * MAX_FAILURES


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
async def test_a_client_is_who_a_trusted_proxy_says_and_ipv6_counts_by_network(host: str) -> None:
    async with behind(host=host) as running:
        found = []
        for number in range(MAX_FAILURES + 1):
            headers = {
                "x-forwarded-for": f"6.6.6.6, 2001:db8::{number:x}",
                "authorization": f"Bearer {number:08d}",
            }
            async with running.http.get(ADA, headers=headers) as answer:
                found.append(answer.status)
        assert found == [401] * MAX_FAILURES + [429]
        for client in ("2001:db8:0:1::1", "10.1.1.1", "10.1.1.1:4711", "nonsense"):
            headers = {"x-forwarded-for": client, "authorization": "Bearer other"}
            async with running.http.get(ADA, headers=headers) as answer:
                assert answer.status == 401


def test_a_proxy_that_listens_to_both_families_may_write_an_ipv4_client_as_ipv6() -> None:
    assert client_of({"client": ("::ffff:10.1.1.1", 0)}) == "10.1.1.1"


async def test_a_proxy_that_tells_the_port_too_tells_clients_apart() -> None:
    async with behind() as running:
        for number in range(MAX_FAILURES + 1):
            headers = {
                "x-forwarded-for": f"192.0.2.{number}:4711",
                "authorization": f"Bearer {number:08d}",
            }
            async with running.http.get(ADA, headers=headers) as answer:
                assert answer.status == 401
        entries = await running.house.store.audit_entries(AuditFilter(result="refused"), 1000)
    assert "192.0.2.1" in {one["actor"]["address"] for _, one in entries}


@pytest.mark.parametrize(
    ("proxies", "told"), [("", 1), ("10.0.0.0/8", 1), ("127.0.0.1", 0), ("127.0.0.0/8", 0)]
)
async def test_a_proxy_that_no_setting_names_is_told_of_once(proxies: str, told: int) -> None:
    with capture_logs() as lines:
        async with behind(proxies) as running:
            for headers in ({}, {"x-forwarded-for": "192.0.2.1"}, {"x-forwarded-for": "x"}):
                async with running.http.get("/healthz", headers=headers) as answer:
                    assert answer.status == 200
    found = [one["address"] for one in lines if one["event"] == "forwarded_for_unheeded"]
    assert found == ["127.0.0.1"] * told


@pytest.mark.parametrize("proxies", ["", "10.0.0.0/8"])
async def test_nobody_else_says_who_a_client_is(proxies: str) -> None:
    async with behind(proxies, hsts_seconds=60) as running:
        found = []
        for number in range(MAX_FAILURES + 1):
            headers = {
                "x-forwarded-for": f"9.9.9.{number}",
                "authorization": f"Bearer {number:08d}",
                **TLS,
            }
            async with running.http.get(ADA, headers=headers) as answer:
                found.append(answer.status)
                assert "strict-transport-security" not in answer.headers
        assert found == [401] * MAX_FAILURES + [429]
        async with running.http.post(
            "/sign-in", data={"token": TOKEN}, headers=TLS, allow_redirects=False
        ) as answer:
            assert list(answer.cookies) == [COOKIE]
            assert not answer.cookies[COOKIE]["secure"]


async def test_behind_tls_the_cookie_is_of_this_host_alone_and_hsts_as_it_is_set() -> None:
    async with behind(hsts_seconds=60) as running:
        async with running.http.post(
            "/sign-in", data={"token": TOKEN}, headers=TLS, allow_redirects=False
        ) as answer:
            assert answer.headers["strict-transport-security"] == "max-age=60"
            (cookie,) = answer.cookies.values()
        assert cookie.key == "__Host-greylag_sign_in"
        assert (cookie["secure"], cookie["httponly"], cookie["path"]) == (True, True, "/")
        assert (cookie["domain"], cookie["samesite"]) == ("", "strict")
        for name, scheme, status in (
            (cookie.key, TLS, 200),
            (COOKIE, TLS, 401),
            (cookie.key, {}, 401),
        ):
            running.http.cookie_jar.clear()
            headers = {"cookie": f"{name}={cookie.value}", **scheme}
            async with running.http.get(ADA, headers=headers) as answer:
                assert (answer.status, name) == (status, name)
        async with running.http.get("/healthz") as answer:
            assert "strict-transport-security" not in answer.headers


async def test_without_a_sign_in_everyone_is_the_operator() -> None:
    async with site(settings(auth="none"), signed_in=False) as opened:
        async with opened.http.get(ADA) as answer:
            assert answer.status == 200
        async with opened.http.get("/sign-in", allow_redirects=False) as answer:
            assert answer.headers["location"] == "/"
        assert await sign_in(opened, "anything") == (303, "")
        async with opened.http.post("/sign-out", allow_redirects=False) as answer:
            assert answer.status == 303


def test_only_a_sign_in_that_somebody_may_end_is_looked_at_again() -> None:
    of, asked = House().use_cases, {"type": "http", "scheme": "http"}
    by_token = {**asked, "headers": [(b"authorization", BEARER["authorization"].encode())]}
    by_cookie = {**asked, "headers": [(b"cookie", f"{COOKIE}=one".encode())]}
    locked = Authenticator(settings(), of)
    assert locked.ending(by_token, OPERATOR) is None
    assert locked.ending(by_cookie, OPERATOR) == ("one",)
    assert locked.ending(by_token, Principal("user", "eve")) == BEARER["authorization"]
    assert Authenticator(settings(auth="none"), of).ending(by_cookie, OPERATOR) is None


async def test_no_other_sign_in_of_a_browser_stands_for_one_that_has_ended(locked: Site) -> None:
    cookies = [(await signed_in(locked, "eve"))["cookie"] for _ in range(2)]
    sent = [(b"cookie", "; ".join(cookies).encode())]
    scope = {"type": "http", "scheme": "http", "headers": sent}
    people = locked.house.use_cases.people
    authenticator = Authenticator(settings(), locked.house.use_cases)
    eve = await authenticator.principal(scope)
    await people.end_session(cookies[0].partition("=")[2], "")
    assert (await authenticator.principal(scope)).user_id == eve.user_id
    with pytest.raises(UnauthorizedError):
        await authenticator.again(scope, eve)


def test_a_reason_is_an_administrator_s_and_no_longer_than_one_may_be() -> None:
    scope = {"type": "http", "headers": [(b"x-greylag-reason", b"why" * MAX_REASON_LENGTH)]}
    reasons = [
        with_reason(Principal("user", "eve", role), scope).reason
        for role in (Role.USER, Role.ADMIN)
    ]
    assert list(map(len, reasons)) == [0, MAX_REASON_LENGTH]


def test_a_cookie_below_a_path_has_a_name_that_browsers_take_there() -> None:
    behind_tls = {"type": "http", "scheme": "https"}
    assert Cookie("x", below="/path").name(behind_tls) == "__Secure-x"
    assert Cookie("x").name(behind_tls) == "__Host-x"


def test_an_app_without_a_token_is_not_made_unless_that_is_wanted() -> None:
    with pytest.raises(ConfigError, match="GREYLAG_TOKEN"):
        create_app(House().use_cases, Settings(_env_file=None))
