"""What people cost: sign-ins, a token's check, streams that are looked at again, and how soon they
end.

Everything runs through `greylag serve` over SQLite: one process for costs, three for endings.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
from benchmarks.support import bearer, cpu_seconds, program, show
from yarl import URL

PROJECT = "/api/users/owner/projects/shared"
STREAMS = 2_000
PEOPLE = 200
TOKENS = 2_000
REPLICAS = 3
REST_SECONDS = 10.0
ROUND_SECONDS = 2.0
LIMITS = {
    "GREYLAG_STREAMS_PER_PROJECT": "10000",
    "GREYLAG_CONNECTION_LIMIT": "10000",
    "GREYLAG_CONNECTIONS_PER_ADDRESS": "10000",
}
Headers = dict[str, str]

_PROVIDER = """
import json, secrets, socket, time, uvicorn
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
listener = socket.socket(); listener.bind(("127.0.0.1", 0))
issuer = f"http://127.0.0.1:{listener.getsockname()[1]}"
key = RSAKey.generate_key(2048, {"kid": "one"})
async def said(request):
    path = request.url.path
    if path == "/keys":
        return JSONResponse({"keys": [key.as_dict(private=False)]})
    if path != "/token":
        ends = {name: f"{issuer}/{end}" for name, end in (("authorization_endpoint", "authorize"),
            ("token_endpoint", "token"), ("jwks_uri", "keys"))}
        return JSONResponse({"issuer": issuer, **ends})
    now, form = int(time.time()), await request.form()
    claims = {"iss": issuer, "aud": "greylag", "sub": secrets.token_hex(1), "iat": now,
        "exp": now + 300, "nonce": form["code"], "name": "Somebody"}
    token = jwt.encode({"alg": "RS256", "kid": "one"}, claims, key)
    return JSONResponse({"access_token": "x", "token_type": "Bearer", "id_token": token})
app = Starlette(routes=[Route("/{path:path}", said, methods=["GET", "POST"])])
print(issuer, flush=True)
config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
uvicorn.Server(config).run([listener])
"""
"""A provider of identities: 256 people, and the code of a sign-in is its nonce."""


@dataclass(frozen=True, slots=True)
class Replica:
    """A running `greylag serve`."""

    pid: int
    address: str


@asynccontextmanager
async def replicas(data: Path, count: int, issuer: str) -> AsyncIterator[list[Replica]]:
    """Run so many web processes over one store."""
    env = {**LIMITS, "GREYLAG_OIDC_ISSUER": issuer, "GREYLAG_OIDC_CLIENT_ID": "greylag"}
    command = (sys.executable, "-m", "greylag", "serve", "--port", "0", "--data", str(data))
    async with AsyncExitStack() as running:
        found = []
        for _ in range(count):
            process, line = await running.enter_async_context(program(*command, env=env))
            found.append(Replica(process.pid, line.rpartition(" ")[2]))
        yield found


class Site:
    """A client of all replicas, and what it has made there as the operator."""

    def __init__(self, found: Sequence[Replica], operator: Headers) -> None:
        self.replicas = found
        self.operator = operator
        connector = aiohttp.TCPConnector(limit=0)
        self.http = aiohttp.ClientSession(connector=connector, read_bufsize=2**12)

    async def ask(self, method: str, path: str, body: object = None) -> dict[str, str]:
        """Ask the first replica as the operator, and return its JSON."""
        url = self.replicas[0].address + path
        async with self.http.request(method, url, json=body, headers=self.operator) as answer:
            assert answer.ok, await answer.text()
            found: dict[str, str] = await answer.json() if await answer.read() else {}
            return found

    async def viewer(self, user_id: str) -> Headers:
        """Add a user with whom the project is shared, and return what a token of theirs sends."""
        await self.ask("POST", "/api/users", {"id": user_id, "display_name": user_id})
        await self.ask("PUT", f"{PROJECT}/members/{user_id}", {"role": "viewer"})
        return await self.token(user_id)

    async def token(self, user_id: str) -> Headers:
        """Return what another token of a user's sends."""
        new = {"name": "x", "scopes": ["projects:read"], "expires_in_days": 1, "user": user_id}
        made = await self.ask("POST", "/api/tokens", new)
        return {"authorization": f"Bearer {made['token']}", "x-token-id": made["id"]}

    async def opened(self, replica: Replica, headers: Headers) -> aiohttp.ClientResponse:
        """Open the project's events, and wait until they stream."""
        timeout = aiohttp.ClientTimeout(total=None)
        url = f"{replica.address}{PROJECT}/events"
        answer = await self.http.get(url, headers=headers, timeout=timeout)
        assert answer.status == 200, await answer.text()  # noqa: PLR2004 - OK
        return answer

    @asynccontextmanager
    async def streams(self, who: Sequence[Headers], count: int) -> AsyncIterator[None]:
        """Hold so many streams open at the first replica, of these people in turn."""
        found: list[aiohttp.ClientResponse] = []
        try:
            while len(found) < count:
                some = range(len(found), min(count, len(found) + 100))
                found += await asyncio.gather(
                    *(self.opened(self.replicas[0], who[each % len(who)]) for each in some)
                )
            yield
        finally:
            for answer in found:
                answer.close()
            await asyncio.sleep(1)


@asynccontextmanager
async def site(count: int) -> AsyncIterator[Site]:
    """Run a site of so many replicas, with a project that is to be shared."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        async with (
            program(sys.executable, "-c", _PROVIDER) as (_, issuer),
            replicas(data, count, issuer) as found,
        ):
            one = Site(found, bearer(data))
            try:
                await one.ask("POST", "/api/users", {"id": "owner", "display_name": "Owner"})
                body = {"name": "Shared", "project_id": "shared"}
                await one.ask("POST", "/api/users/owner/projects", body)
                yield one
            finally:
                await one.http.close()


async def cost_of_checks(one: Site, rounds: int) -> list[tuple[str, str]]:
    """Return what a user's token costs more than the operator's, which is in the settings."""
    kinds = {
        "operator": [one.operator],
        "same": [await one.token("owner")],
        "others": [await one.token("owner") for _ in range(TOKENS)],
    }
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, who in kinds.items():
            spent[name].append(await _cpu_each(one, partial(_asked, one, who)))
    operator, same, others = (min(figures) for figures in spent.values())
    return [
        ("CPU of a request by the operator's token", f"{operator * 1000:.2f} ms"),
        ("more by a user's token", f"{(same - operator) * 1000:.2f} ms"),
        (
            "more by one that is not used twice in half a second",
            f"{(others - operator) * 1000:.2f} ms",
        ),
        ("requests by users' tokens a second, one core", f"{1 / same:.0f}, {1 / others:.0f}"),
    ]


async def _asked(one: Site, who: Sequence[Headers], number: int) -> None:
    url, headers = one.replicas[0].address + PROJECT, who[number % len(who)]
    async with one.http.get(url, headers=headers) as answer:
        assert answer.status == 200, answer.status  # noqa: PLR2004 - OK
        await answer.read()


async def _cpu_each(one: Site, work: Callable[[int], Awaitable[None]]) -> float:
    """Return the CPU seconds of the first replica for one piece of work of many."""
    pid, end, count = one.replicas[0].pid, time.monotonic() + ROUND_SECONDS, 0
    before = cpu_seconds(pid)
    while time.monotonic() < end:
        await work(count)
        count += 1
    return (cpu_seconds(pid) - before) / count


async def cost_of_sign_ins(one: Site, rounds: int) -> list[tuple[str, str]]:
    """Return what signing in at the provider costs us: both requests of a browser, all checks, the
    code's exchange and a new session.
    """
    address = one.replicas[0].address

    async def sign_in(_: int) -> None:
        async with aiohttp.ClientSession(
            connector=one.http.connector,
            connector_owner=False,
            cookie_jar=aiohttp.CookieJar(unsafe=True),
        ) as browser:
            async with browser.get(f"{address}/auth/sign-in", allow_redirects=False) as answer:
                asked = URL(answer.headers["location"]).query
            back = {"code": asked["nonce"], "state": asked["state"]}
            url = URL(f"{address}/auth/callback").with_query(back)
            async with browser.get(url, allow_redirects=False) as answer:
                assert answer.status in {200, 303}, await answer.text()
            async with browser.get(f"{address}/api/me") as answer:
                assert answer.status == 200, answer.status  # noqa: PLR2004 - OK

    best = min([await _cpu_each(one, sign_in) for _ in range(rounds)])
    return [("CPU of a sign-in", f"{best * 1000:.1f} ms, {1 / best:.0f} a second on one core")]


async def cost_of_streams(one: Site) -> list[tuple[str, str]]:
    """Return the share of a core that idle streams take, by whose they are."""
    many = [await one.viewer(f"viewer-{number}") for number in range(PEOPLE)]
    kinds = {
        "the operator": [one.operator],
        "their owner": [await one.token("owner")],
        "one viewer": many[:1],
        f"{PEOPLE} viewers": many,
    }
    rows = [("CPU at rest", f"{await _load(one):.1f} %")]
    for name, who in kinds.items():
        async with one.streams(who, STREAMS):
            rows.append((f"CPU with {STREAMS} idle streams of {name}", f"{await _load(one):.1f} %"))
    return rows


async def _load(one: Site) -> float:
    await asyncio.sleep(1)
    pid, before = one.replicas[0].pid, time.monotonic()
    used = cpu_seconds(pid)
    await asyncio.sleep(REST_SECONDS)
    return 100 * (cpu_seconds(pid) - used) / (time.monotonic() - before)


async def endings(one: Site, rounds: int) -> list[tuple[str, str]]:
    """Return how long the last of the streams on all replicas goes on after each kind of end."""

    async def unshare(who: Headers) -> None:
        del who
        await one.ask("DELETE", f"{PROJECT}/members/guest")

    async def revoke(who: Headers) -> None:
        await one.ask("DELETE", f"/api/tokens/{who['x-token-id']}")

    async def disable(who: Headers) -> None:
        del who
        await one.ask("PATCH", "/api/users/guest", {"disabled": True})

    ends: dict[str, Callable[[Headers], Awaitable[None]]] = {
        "unshared": unshare,
        "token revoked": revoke,
        "user disabled": disable,
    }
    guest, rows = await one.viewer("guest"), []
    for name, end in ends.items():
        figures = []
        for _ in range(rounds):
            await one.ask("PATCH", "/api/users/guest", {"disabled": False})
            await one.ask("PUT", f"{PROJECT}/members/guest", {"role": "viewer"})
            guest = await one.token("guest")
            await asyncio.sleep(1)  # what another replica has read a moment ago is old by now
            found = [await one.opened(each, guest) for each in one.replicas for _ in range(10)]
            await end(guest)
            began = time.monotonic()
            await asyncio.gather(*(answer.read() for answer in found))
            figures.append(time.monotonic() - began)
        last, median = max(figures), statistics.median(figures)
        rows.append(
            (f"{name}: until the last stream ends", f"{median:.2f} s, at most {last:.2f} s")
        )
    return rows


async def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    async with site(1) as one:
        rows = await cost_of_checks(one, given.rounds)
        rows += await cost_of_sign_ins(one, given.rounds)
        rows += await cost_of_streams(one)
    async with site(REPLICAS) as three:
        rows += await endings(three, given.rounds)
    show(f"People: {STREAMS} streams, {REPLICAS} web processes over SQLite", rows)


if __name__ == "__main__":
    asyncio.run(main())
