"""The web over memory adapters, behind a real server on a free port of this process."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import uvicorn
from starlette.types import ASGIApp
from tests.services.house import House

from greylag.config import Settings
from greylag.web.app import create_app

ADA = "/api/users/ada/projects"


def settings(**values: Any) -> Settings:
    """Settings as given, with nothing from the environment or a file."""
    return Settings(_env_file=None, **values)


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


class QuietServer(uvicorn.Server):
    """Leaves the signals of the test's process alone, and tells when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening."""
        await super().startup(sockets)
        self.is_up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


@asynccontextmanager
async def served(app: ASGIApp, *, grace: int = 1) -> AsyncIterator[int]:
    """Serve ``app`` as `greylag serve` does and give the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            ws="none",
            proxy_headers=False,
            timeout_graceful_shutdown=grace,
        )
        server = QuietServer(config)
        serving = asyncio.create_task(server.serve([listener]), name="server")
        try:
            await server.is_up.wait()
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


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
