"""`greylag up` with an identity provider in its settings, which is down at its start."""

from pathlib import Path
from typing import Any

import aiohttp
from tests.e2e.product import PROJECTS, Product, product
from tests.identity.people import CLIENT, SECRET, Provider, needs_provider, sign_in_at, visitor

pytestmark = needs_provider


async def asked(
    http: aiohttp.ClientSession, method: str, path: str, body: object = None
) -> tuple[int, Any]:
    async with http.request(method, path, json=body) as answer:
        return answer.status, await answer.json()


async def test_people_have_projects_of_their_own(provider: Provider, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    given = {
        "GREYLAG_GOOSE": "scripted",
        "GREYLAG_OIDC_ISSUER": provider.issuer,
        "GREYLAG_OIDC_CLIENT_ID": CLIENT,
        "GREYLAG_OIDC_CLIENT_SECRET_FILE": str(tmp_path / "secret"),
        "GREYLAG_OIDC_SCOPES": "openid profile email groups",
        "GREYLAG_OIDC_ALLOWED_GROUPS": "staff,guests",
    }
    provider.tell("down")
    try:
        async with product(tmp_path, **given) as greylag, visitor(greylag.address) as ada:
            provider.know(greylag.address)
            async with ada.get("/auth/sign-in") as answer:
                said = await answer.text()
                assert (answer.status, "localhost does not answer" in said) == (503, True)
            assert (await greylag.call("GET", PROJECTS))[0] == 200
            provider.tell("up")
            await _use(greylag, ada)
    finally:
        provider.tell("up")


async def _use(greylag: Product, ada: aiohttp.ClientSession) -> None:
    mine = await _signed_in(ada, greylag.address, "ada")
    assert (await asked(ada, "POST", mine, {"name": "X", "project_id": "x"}))[0] == 201
    async with visitor(greylag.address) as bob:
        his = await _signed_in(bob, greylag.address, "bob")
        assert (await asked(bob, "GET", his))[1]["projects"] == []
        assert (await asked(bob, "GET", f"{mine}/x"))[0] in {403, 404}


async def _signed_in(http: aiohttp.ClientSession, address: str, login: str) -> str:
    """Sign in, and return where the projects of whoever that is are."""
    async with http.get("/auth/sign-in", allow_redirects=False) as answer:
        back = await sign_in_at(http, answer.headers["location"], login)
    assert str(back.origin()) == address
    async with http.get(back) as answer:
        assert answer.status == 200
    ((user,),) = [(await asked(http, "GET", "/api/users"))[1]["users"]]
    return f"/api/users/{user['id']}/projects"
