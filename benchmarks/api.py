"""Requests a second through the real web, against a bare Starlette answer on the same server."""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from benchmarks.support import bearer, console, greylag_up, program
from rich.table import Table

PROJECTS = "/api/users/me/projects"
CLIENTS = 8
LISTED = 100
ROUND_SECONDS = 2.0
Ask = Callable[[int], Awaitable[None]]

_BARE = """
import socket, uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("hello"))])
listener = socket.socket(); listener.bind(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
server.run([listener])
"""


async def rate(ask: Ask) -> float:
    """Return answered requests a second of a few clients that ask without a pause."""
    end = time.monotonic() + ROUND_SECONDS
    counts = [0] * CLIENTS

    async def client(number: int) -> None:
        while time.monotonic() < end:
            await ask(number * 1_000_000 + counts[number])
            counts[number] += 1

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return sum(counts) / ROUND_SECONDS


async def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with (
            program(sys.executable, "-c", _BARE) as (_, port),
            greylag_up(Path(folder) / "data") as (_, address),
            aiohttp.ClientSession(address, headers=bearer(Path(folder) / "data")) as ours,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as bare,
        ):
            rows = await measure(ours, bare, given.rounds)
    table = Table(title=f"Requests a second, {CLIENTS} clients, one server process")
    for name in ("request", "per second", "of bare"):
        table.add_column(name, justify="left" if name == "request" else "right")
    for name, figure in rows.items():
        table.add_row(name, f"{figure:.0f}", f"{figure / rows['bare Starlette answer']:.2f}")
    console.print(table)


async def measure(
    ours: aiohttp.ClientSession, bare: aiohttp.ClientSession, rounds: int
) -> dict[str, float]:
    """Return the best of some interleaved rounds of each request."""

    async def hello(_: int) -> None:
        async with bare.get("/") as answer:
            assert answer.status == 200, answer.status  # noqa: PLR2004 - OK
            await answer.read()

    async def listing(_: int) -> None:
        async with ours.get(PROJECTS, params={"limit": LISTED}) as answer:
            assert answer.status == 200, answer.status  # noqa: PLR2004 - OK
            await answer.read()

    async def listing_of_news(number: int) -> None:
        async with ours.patch(f"{PROJECTS}/changed", json={"name": str(number)}) as answer:
            assert answer.status == 200, answer.status  # noqa: PLR2004 - OK
        await listing(number)

    async def creation(number: int) -> None:
        body = {"name": "x", "project_id": f"made-{time.monotonic_ns()}-{number}"}
        async with ours.post(PROJECTS, json=body) as answer:
            assert answer.status == 201, await answer.text()  # noqa: PLR2004 - created
            await answer.read()

    for number in range(LISTED):
        await creation(-number)
    async with ours.post(PROJECTS, json={"name": "x", "project_id": "changed"}) as answer:
        assert answer.status == 201, answer.status  # noqa: PLR2004 - created
    kinds = {
        "bare Starlette answer": hello,
        f"list {LISTED} projects": listing,
        "change one, list 100": listing_of_news,
        "create a project": creation,
    }
    best = dict.fromkeys(kinds, 0.0)
    for _ in range(rounds):
        for name, ask in kinds.items():
            best[name] = max(best[name], await rate(ask))
    return best


if __name__ == "__main__":
    asyncio.run(main())
