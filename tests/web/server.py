"""The web over memory adapters, behind a real server on a free port of this process."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from tests.harness import BEARER, served, settings
from tests.services.house import House

from greylag.config import Settings
from greylag.web.app import create_app

__all__ = ["ADA", "Site", "served", "settings", "site"]

ADA = "/api/users/ada/projects"


@dataclass(frozen=True, slots=True)
class Site:
    """A running web, what is behind it, and a client whose paths are the site's own."""

    house: House
    http: aiohttp.ClientSession
    port: int

    async def project(self, project_id: str = "notes", *, active: bool = False) -> str:
        """Create a project of ada's and return its path."""
        body = {"name": "Notes", "project_id": project_id}
        status, made = await self.ask("POST", ADA, json=body)
        assert status == 201, made
        if active:
            status, activated = await self.ask("POST", f"{ADA}/{project_id}/activate")
            assert status == 200, activated
        return f"{ADA}/{project_id}"

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Return status and JSON (``None``: nothing) of an answer, which is read to its end.

        An answer that is left holds its connection until it is collected, in any later test.
        """
        async with self.http.request(method, path, **options) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    async def page(self, path: str, status: int = 200) -> str:
        """Return the page that a browser is shown, with this status."""
        async with self.http.get(path, headers={"accept": "text/html"}) as answer:
            assert answer.status == status
            return await answer.text()


@asynccontextmanager
async def site(
    chosen: Settings | None = None,
    *,
    auto: bool = True,
    signed_in: bool = True,
    host: str = "127.0.0.1",
) -> AsyncIterator[Site]:
    """Run everything in memory, worker included; ``signed_in``: the client sends the token."""
    house = House(auto=auto, activation_timeout=120.0)  # a slow browser may be at it meanwhile
    app = create_app(house.use_cases, chosen or settings())
    async with house.working(), served(app, host=host) as port:
        base = f"http://127.0.0.1:{port}"
        # unsafe: cookies of an address in numbers count too, as in a browser.
        jar = aiohttp.CookieJar(unsafe=True)
        headers = BEARER if signed_in else None
        async with aiohttp.ClientSession(base, cookie_jar=jar, headers=headers) as http:
            yield Site(house, http, port)
