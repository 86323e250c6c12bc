"""The web over memory adapters, behind a real server on a free port of this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from tests.harness import served, settings
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
        made = await self.http.post(ADA, json={"name": "Notes", "project_id": project_id})
        assert made.status == 201, await made.text()
        if active:
            activated = await self.http.post(f"{ADA}/{project_id}/activate")
            assert activated.status == 200, await activated.text()
        return f"{ADA}/{project_id}"


@asynccontextmanager
async def site(chosen: Settings | None = None, *, auto: bool = True) -> AsyncIterator[Site]:
    """Run everything in memory, worker included."""
    house = House(auto=auto)
    app = create_app(house.use_cases, chosen or settings())
    async with house.working(), served(app) as port:
        base = f"http://127.0.0.1:{port}"
        # unsafe: cookies of an address in numbers count too, as in a browser.
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(base, cookie_jar=jar) as http:
            yield Site(house, http, port)
