"""The web over memory adapters, behind a real server on a free port of this process."""

import asyncio
import contextlib
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
        new = {"name": "Notes", "project_id": project_id}
        async with self.http.post(ADA, json=new) as made:
            assert made.status == 201, await made.text()
        if active:
            async with self.http.post(f"{ADA}/{project_id}/activate") as activated:
                assert activated.status == 200, await activated.text()
        return f"{ADA}/{project_id}"


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
