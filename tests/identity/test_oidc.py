"""The provider's answers, from a certified provider and from one that misbehaves."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from joserfc.errors import SecurityWarning
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.harness import served
from tests.identity.people import (
    CLIENT,
    SECRET,
    Provider,
    ShiftedClock,
    needs_provider,
    sign_in_at,
    visitor,
)
from yarl import URL

from greylag.domain.errors import IdentityProviderUnavailableError, SignInFailedError
from greylag.identity import oidc
from greylag.identity.oidc import OidcOptions, OidcProvider
from greylag.ports import AuthorizationRequest, ProviderClaims

SITE = "http://127.0.0.1:1"
WANTED = ("name", "email", "groups")


@asynccontextmanager
async def opened(
    issuer: str, clock: ShiftedClock | None = None, **more: Any
) -> AsyncIterator[OidcProvider]:
    given = {"client_id": CLIENT, "client_secret": SECRET, "scopes": "openid profile email groups"}
    one = OidcProvider(
        OidcOptions(issuer, "The provider", **{**given, **more}), clock or ShiftedClock()
    )
    try:
        yield one
    finally:
        await one.close()


def new_request() -> AuthorizationRequest:
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    return AuthorizationRequest(f"{SITE}/auth/callback", state, nonce, verifier)


async def signed_in(one: OidcProvider, login: str = "ada", **changed: str) -> ProviderClaims:
    """Sign in as ``login``; ``changed`` takes the place of what the provider answered."""
    request = new_request()
    async with visitor() as http:
        url = await sign_in_at(http, await one.authorization_url(request), login)
    assert url.query["state"] == request.state
    return await one.redeem({**url.query, **changed}, request, WANTED)


@needs_provider
@pytest.mark.parametrize("thin", [False, True])
async def test_who_signs_in_is_told_by_the_token_or_by_the_userinfo(
    provider: Provider, *, thin: bool
) -> None:
    provider.know(SITE, thin=thin)
    async with opened(provider.issuer) as one:
        told = await signed_in(one)
    assert (told.claims["sub"], told.claims["email_verified"]) == ("ada", True)
    assert (told.claims["name"], told.claims["groups"]) == ("Ada Lovelace", ["staff", "admins"])


@needs_provider
@pytest.mark.parametrize(
    "method", ["client_secret_basic", "client_secret_post", "none"], ids=["basic", "post", "public"]
)
async def test_clients_of_each_kind_are_let_in_by_pkce(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    provider.know(SITE, client={"token_endpoint_auth_method": method})
    async with opened(provider.issuer) as one:
        if method == "client_secret_post":  # as a provider that takes no other
            _without_basic(one, monkeypatch)
        if method == "none":
            one._options = OidcOptions(provider.issuer, "The provider", CLIENT)
        assert (await signed_in(one)).claims["sub"] == "ada"
        request, other = new_request(), new_request()
        async with visitor() as http:
            url = await sign_in_at(http, await one.authorization_url(request), "ada")
        stolen = AuthorizationRequest(
            request.redirect_uri, request.state, request.nonce, other.verifier
        )
        with pytest.raises(SignInFailedError, match="refused the code"):
            await one.redeem(url.query, stolen, WANTED)


def _without_basic(one: OidcProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = one._ask

    async def ask(method: str, address: str, *more: Any) -> Any:
        status, said = await asked(method, address, *more)
        methods = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
        return status, {**said, **methods} if "issuer" in said else said

    monkeypatch.setattr(one, "_ask", ask)


@needs_provider
@pytest.mark.parametrize(
    "forge",
    [
        {"claims": {"aud": "another"}},
        {"claims": {"aud": [CLIENT, "another"]}},
        {"claims": {"azp": "another"}},
        {"claims": {"iss": "https://evil.example"}},
        {"claims": {"nonce": "another"}},
        {"claims": {"nonce": None}},
        {"claims": {"sub": None}},
        {"claims": {"sub": 7}},
        {"claims": {"exp": 1_000_000_000}},
        {"claims": {"exp": None}},
        {"claims": {"iat": 99_999_999_999}},
        {"claims": {"nbf": 99_999_999_999}},
        {"claims": {"at_hash": "another"}},
        {"claims": {"sub": "bob"}, "sign": "kept"},
        {"sign": "none"},
        {"sign": "public"},
        {"sign": "other"},
        {"header": {"kid": "unknown"}},
    ],
    ids=str,
)
async def test_a_forged_token_signs_nobody_in(provider: Provider, forge: dict[str, Any]) -> None:
    provider.know(SITE, forge=forge)
    async with opened(provider.issuer) as one:
        with pytest.raises(SignInFailedError, match=r"cannot be believed|access token"):
            await signed_in(one)


@needs_provider
async def test_the_userinfo_of_another_person_is_not_taken(provider: Provider) -> None:
    provider.know(SITE, thin=True, forge={"claims": {"sub": "bob"}})
    async with opened(provider.issuer) as one:
        with pytest.raises(SignInFailedError, match="cannot be believed"):
            await signed_in(one)


@needs_provider
@pytest.mark.parametrize(("ahead", "is_let_in"), [(50, True), (-50, True), (700, False)])
async def test_clocks_may_differ_by_a_minute(
    provider: Provider, ahead: int, *, is_let_in: bool
) -> None:
    provider.know(SITE)
    clock = ShiftedClock()
    async with opened(provider.issuer, clock) as one:
        clock.ahead = ahead
        if is_let_in:
            await signed_in(one)
        else:
            with pytest.raises(SignInFailedError):
                await signed_in(one)


@needs_provider
async def test_an_answer_of_another_provider_or_without_a_code_signs_nobody_in(
    provider: Provider,
) -> None:
    provider.know(SITE)
    async with opened(provider.issuer) as one:
        with pytest.raises(SignInFailedError, match="not one of The provider"):
            await signed_in(one, iss="https://evil.example")
        with pytest.raises(SignInFailedError, match="The provider says: no"):
            await signed_in(one, login="")


@needs_provider
async def test_keys_are_asked_for_anew_once_a_minute_at_most(provider: Provider) -> None:
    provider.know(SITE)
    clock = ShiftedClock()
    async with opened(provider.issuer, clock) as one:
        await signed_in(one)
        provider.tell("rotate")
        with pytest.raises(SignInFailedError):
            await signed_in(one)
        clock.ahead = oidc.ROTATION_SECONDS
        # All at once, and one of them asks.
        assert len(await asyncio.gather(*(signed_in(one) for _ in range(3)))) == 3


@needs_provider
async def test_down_at_start_and_later_it_is_asked_again(provider: Provider) -> None:
    provider.know(SITE)
    clock = ShiftedClock()
    provider.tell("down")
    async with opened(provider.issuer, clock) as one:
        try:
            with pytest.raises(IdentityProviderUnavailableError):
                await one.authorization_url(new_request())
        finally:
            provider.tell("up")
        await signed_in(one)
        request = new_request()
        async with visitor() as http:
            url = await sign_in_at(http, await one.authorization_url(request), "ada")
        provider.tell("down")
        try:
            with pytest.raises(IdentityProviderUnavailableError):
                await one.redeem(url.query, request, WANTED)
        finally:
            provider.tell("up")
        await one.redeem(url.query, request, WANTED)


@needs_provider
async def test_where_one_goes_to_sign_out(provider: Provider) -> None:
    provider.know(SITE)
    async with opened(provider.issuer) as one:
        told = await signed_in(one)
        url = URL(await one.sign_out_url(f"{SITE}/sign-in", told.id_token) or "")
        async with visitor() as http, http.get(url) as answer:
            assert answer.status == 200, await answer.text()


@asynccontextmanager
async def misbehaving(answers: dict[str, Any]) -> AsyncIterator[str]:
    """A provider whose paths answer with these responses, or JSON documents."""

    async def answer(request: Request) -> Response:
        given = answers[request.url.path]
        if callable(given):
            given = await given(request)
        if isinstance(given, Response):
            return given
        return JSONResponse(given)

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    async with served(app) as port:
        issuer = f"http://127.0.0.1:{port}"
        answers.setdefault(
            "/.well-known/openid-configuration",
            {
                "issuer": issuer,
                "authorization_endpoint": f"{issuer}/authorize",
                "token_endpoint": f"{issuer}/token",
                "jwks_uri": f"{issuer}/keys",
            },
        )
        yield issuer


DISCOVERY = "/.well-known/openid-configuration"
PARTS = {"authorization_endpoint": "https://a/", "token_endpoint": "https://a/"}


async def never(_: Request) -> Response:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize(
    "answer",
    [
        Response(status_code=302, headers={"location": "https://evil.example/"}),
        Response(b"x" * (oidc.ANSWER_LIMIT + 1)),
        Response(b"[]"),
        Response(b"{"),
        Response(b"{}", status_code=500),
        Response(b"{}", status_code=404),
        {"issuer": "https://evil.example", **PARTS, "jwks_uri": "https://a/"},
        {"issuer": None},
        never,
    ],
    ids=[
        "redirect",
        "too-large",
        "no-object",
        "no-json",
        "fault",
        "not-there",
        "another",
        "nameless",
        "silent",
    ],
)
async def test_a_provider_that_misbehaves_is_one_that_is_down(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "ANSWER_SECONDS", 0.5 if answer is never else 30)
    async with misbehaving({DISCOVERY: answer}) as issuer, opened(issuer) as one:
        with pytest.raises(IdentityProviderUnavailableError):
            await one.authorization_url(new_request())


@pytest.mark.parametrize(
    "parts", [{}, {"jwks_uri": "http://keys.example/"}, {"jwks_uri": "file:///etc/passwd"}], ids=str
)
async def test_what_it_says_of_itself_is_whole_and_names_no_plain_address(
    parts: dict[str, str],
) -> None:
    answers: dict[str, Any] = {}
    async with misbehaving(answers) as issuer, opened(issuer) as one:
        answers[DISCOVERY] = {"issuer": issuer, **PARTS, **parts}
        with pytest.raises(IdentityProviderUnavailableError):
            await one.authorization_url(new_request())


async def test_a_token_of_any_bytes_is_refused_and_nothing_worse() -> None:
    keys = [{"kty": "oct", "k": "AAAA"}, {"kty": "new"}, {"kty": "EC", "crv": "new"}, 7]
    with pytest.warns(SecurityWarning):
        weak = RSAKey.generate_key(1024, {"kid": "weak"}, private=False).as_dict()
    good = RSAKey.generate_key(2048, {"kid": "good"}, private=False).as_dict()
    async with (
        misbehaving({"/keys": {"keys": [*keys, weak, good]}}) as issuer,
        opened(issuer) as one,
    ):
        for token in ("", ".", "..", "a.b.c", "é", "e30.e30.", "eyJhbGciOiJSUzI1NiJ9.W10.AA"):
            with pytest.raises(SignInFailedError):
                await one.read_sign_out(token)
        assert [key.kid for key in await one._keys.get(60)] == ["good"]
