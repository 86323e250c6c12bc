"""Programs without a browser: begun by anybody, confirmed by a person, let in once."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.cli.program import on_terminal
from tests.clocks import FakeClock
from tests.harness import BEARER, Harness, served, settings
from tests.services.house import House
from tests.web.server import Site
from tests.web.test_people_api import signed_in

from greylag.domain.errors import ForbiddenError, MissingError
from greylag.domain.users import OPERATOR, Principal, Role, Scope
from greylag.identity.oidc import OidcOptions, OidcProvider
from greylag.ports import AuditFilter
from greylag.services import tokens
from greylag.services.people import UserEdit
from greylag.services.sign_in import SignIn, SignInRules
from greylag.web.app import create_app

NEW = {"name": "greylag on laptop", "scopes": ["projects:read"]}
ANN = Principal("Ann", "ada", via="session 0123456789abcdef")


@asynccontextmanager
async def sites_of_people() -> AsyncIterator[Site]:
    """Run a site with an identity provider, which nobody asks."""
    house = House()
    of, clock = house.use_cases, house.clock
    provider = OidcProvider(OidcOptions("https://idp.test", "Idp", "greylag", None), clock)
    sign_in = SignIn(provider, SignInRules(), of.people, of.store, clock, audit=of.audit)
    of = replace(of, sign_in=sign_in)
    try:
        async with house.working(), served(create_app(of, settings())) as port:
            jar = aiohttp.DummyCookieJar()
            base = f"http://127.0.0.1:{port}"
            async with aiohttp.ClientSession(base, cookie_jar=jar) as http:
                yield Site(house, http, port)
    finally:
        await provider.close()


async def page(running: Site, method: str, headers: dict[str, str], **data: str) -> tuple[int, str]:
    given: dict[str, Any] = {"params": data} if method == "GET" else {"data": data}
    async with running.http.request(method, "/device", headers=headers, **given) as answer:
        return answer.status, await answer.text()


async def test_a_person_lets_a_program_in_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sites_of_people() as running:
        ask, ann = running.ask, await signed_in(running, "ann")
        status, begun = await ask("POST", "/api/device-logins", json=NEW)
        assert (status, begun["url"]) == (201, f"http://127.0.0.1:{running.port}/device")
        assert re.fullmatch(r"[B-DF-HJ-NP-TV-XZ]{4}-[B-DF-HJ-NP-TV-XZ]{4}", begun["code"])

        async def redeem() -> tuple[int, Any]:
            secret = {"secret": begun["secret"]}
            return await ask("POST", "/api/device-logins/token", json=secret)

        assert await redeem() == (202, None)
        assert (await page(running, "GET", {}, code=begun["code"]))[0] == 401
        assert "The code that it shows" in (await page(running, "GET", ann))[1]
        assert (await page(running, "GET", ann, code="BBBB-BBBB"))[0] == 404
        status, shown = await page(running, "GET", ann, code=begun["code"].lower())
        assert status == 200
        for words in (begun["code"], "greylag on laptop", "127.0.0.1", "projects:read"):
            assert words in shown
        answer = {"code": begun["code"], "answer": "allow"}
        other = {**ann, "origin": "http://evil.example"}
        assert (await page(running, "POST", other, **answer))[0] == 403
        assert (await page(running, "POST", BEARER, **answer))[0] == 403
        assert await redeem() == (202, None)
        status, shown = await page(running, "POST", ann, **answer)
        assert (status, "It is let in." in shown) == (200, True)
        assert (await page(running, "POST", ann, **answer))[0] == 404
        with monkeypatch.context() as full:
            full.setattr(tokens, "MOST_TOKENS", 0)
            assert (await redeem())[0] == 429  # and what the person has allowed is kept
        status, made = await redeem()
        assert (status, made["user_id"], made["scopes"]) == (200, "ann", ["projects:read"])
        bearer = {"authorization": f"Bearer {made['token']}"}
        assert (await ask("GET", "/api/me", headers=bearer))[1]["id"] == "ann"
        assert (await redeem())[0] == 404


async def test_who_is_turned_away_and_who_guesses_get_nothing() -> None:
    async with sites_of_people() as running:
        ask, ann = running.ask, await signed_in(running, "ann")
        _, begun = await ask("POST", "/api/device-logins", json=NEW)
        _, shown = await page(running, "POST", ann, code=begun["code"], answer="deny")
        assert "It is turned away." in shown
        secret = {"secret": begun["secret"]}
        path = "/api/device-logins/token"
        tried = [(await ask("POST", path, json=secret))[0] for _ in range(21)]
        assert tried == [404] * 20 + [429]
        statuses = [(await ask("POST", "/api/device-logins", json=NEW))[0] for _ in range(20)]
        assert statuses == [201] * 19 + [429]
        tried = [(await page(running, "GET", ann, code="BBBB-BBBB"))[0] for _ in range(20)]
        assert tried == [404] * 19 + [429]
        refused = await running.house.store.audit_entries(AuditFilter(result="refused"), 9)
        assert [(one["actor"]["kind"], one["object"], one["code"]) for _, one in refused] == [
            ("anonymous", path, "limit_exceeded"),
            ("anonymous", "/api/device-logins", "limit_exceeded"),
            ("user", "/device", "limit_exceeded"),
        ]


async def test_without_a_provider_there_is_none() -> None:
    async with (
        served(create_app(House().use_cases, settings())) as port,
        aiohttp.ClientSession() as http,
    ):
        url = f"http://127.0.0.1:{port}/api/device-logins"
        async with http.post(url, json=NEW) as answer:
            assert answer.status == 404


async def test_a_code_lasts_ten_minutes_and_counts_for_who_may_come_in() -> None:
    clock = FakeClock()
    of = Harness(settings(users="ada:Ada"), clock=clock).use_cases
    logins = of.device_logins
    new = ("laptop", frozenset({Scope.FILES}), "::1")
    late, first = await logins.begin(*new)
    clock.advance(599)
    assert (await logins.waiting(first.code)).name == "laptop"
    clock.advance(1)
    with pytest.raises(MissingError):
        await logins.waiting(first.code)
    with pytest.raises(MissingError):
        await logins.redeem(late)
    secret, login = await logins.begin(*new)
    for who in (OPERATOR, replace(ANN, via="token 0123456789abcdef")):
        with pytest.raises(ForbiddenError):
            await logins.answer(who, login.code, allow=True)
    # Signed in as a user by their groups, though an administrator without.
    await of.people.edit("ada", UserEdit(role=Role.ADMIN))
    _, admin = await logins.begin("laptop", frozenset({Scope.ADMIN}), "::1")
    with pytest.raises(ForbiddenError):
        await logins.answer(ANN, admin.code, allow=True)
    refused = await of.store.audit_entries(AuditFilter(result="refused"), 9)
    assert [one["action"] for _, one in refused] == ["logins.answer"] * 3
    await logins.answer(ANN, login.code, allow=True)
    await of.people.edit("ada", UserEdit(disabled=True))
    with pytest.raises(MissingError):
        await logins.redeem(secret)


async def test_the_command_line_waits_for_a_person(tmp_path: Path) -> None:
    async with sites_of_people() as running:
        ann = await signed_in(running, "ann")
        env = {
            "GREYLAG_SERVER": f"http://127.0.0.1:{running.port}",
            "GREYLAG_DATA": "/nowhere",
            "XDG_CONFIG_HOME": str(tmp_path),
        }
        async with on_terminal("login", env=env) as terminal:
            await terminal.until("/device and confirm the code ")
            async with asyncio.timeout(30):
                while (found := re.search(r"code (\w{4}-\w{4})\n", terminal.text)) is None:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
            status, _ = await page(running, "POST", ann, code=found[1], answer="allow")
            assert status == 200
            await terminal.until("is kept in")
            await terminal.until("ann")
            assert await terminal.end() == 0
        told = await running.house.store.audit_entries(AuditFilter(user="ann"), 100)
        assert {"logins.answer", "tokens.create"} <= {entry["action"] for _, entry in told}
        token = (tmp_path / "greylag" / "token").read_text().strip()
        bearer = {"authorization": f"Bearer {token}"}
        _, listed = await running.ask("GET", "/api/tokens", headers=ann)
        assert [one["name"].startswith("greylag login on ") for one in listed["tokens"]] == [True]
        assert (await running.ask("GET", "/api/tokens", headers=bearer))[0] == 403
