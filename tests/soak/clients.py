"""Users of a soak: each does things to its own projects and keeps what was acknowledged."""

import asyncio
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from greylag.common import sse

SETTLE_SECONDS = 240
PATIENCE_SECONDS = 30.0
"""Longer than a web stands still: what was asked of it is not asked elsewhere before it goes on,
so that nothing lands after what came later."""
_BROKEN = (aiohttp.ClientError, TimeoutError, OSError)


@dataclass
class Client:
    """Does one thing after another, each until it is acknowledged."""

    user: str
    http: aiohttp.ClientSession
    rng: random.Random
    wanted: dict[str, str | None] = field(default_factory=dict)
    acknowledged: int = 0
    refused: int = 0
    broken: int = 0

    async def work(self, until: float, count: int) -> None:
        """Go on until the loop's time ``until``, with ``count`` projects at most."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            name = f"p{self.rng.randrange(count)}"
            if self.wanted.get(name) is None:
                await self.create(name)
            await self.do(
                name, self.rng.choices(("activate", "deactivate", "delete"), (5, 4, 1))[0]
            )

    async def toggle(self, name: str, until: float) -> None:
        """Wake one project and put it to sleep in turn, until the loop's time ``until``."""
        loop = asyncio.get_running_loop()
        await self.create(name)
        while loop.time() < until:
            for verb in ("activate", "deactivate"):
                await self.do(name, verb)
                await asyncio.sleep(self.rng.uniform(0.2, 1.0))

    async def create(self, name: str) -> None:
        """Create a project, however often it takes; the key makes it one."""
        body = {"name": name, "project_id": name}
        key = {"Idempotency-Key": f"{self.user}-{name}-{self.rng.random()}"}
        # 409: one of that name is still being deleted, or an answer to the first try was lost.
        await self._insist({200, 201}, "POST", "", body, key)
        self.wanted[name] = "inactive"

    async def do(self, name: str, verb: str) -> None:
        """Do one thing, again until it is acknowledged."""
        method, path = ("DELETE", f"/{name}") if verb == "delete" else ("POST", f"/{name}/{verb}")
        good = {200, 202, 204, 404} if verb == "delete" else {200, 202}
        await self._insist(good, method, path)
        self.wanted[name] = {"activate": "active", "deactivate": "inactive"}.get(verb)
        self.acknowledged += 1

    async def settle(self) -> None:
        """Wait until every project is as it was acknowledged."""
        for name, wanted in sorted(self.wanted.items()):
            async with asyncio.timeout(SETTLE_SECONDS):
                while await self._status(name) != (True, wanted):  # noqa: ASYNC110 - asks anew
                    await asyncio.sleep(0.2)

    async def _insist(self, good: set[int], method: str, path: str, *more: Any) -> None:
        """Ask until it is acknowledged; fail with the answers when that takes far too long."""
        give_up = asyncio.get_running_loop().time() + SETTLE_SECONDS
        answers = [await self._ask(method, path, *more)]
        while answers[-1] not in good:
            late = asyncio.get_running_loop().time() > give_up
            assert not late, f"{method} {self.user}{path}: {Counter(answers)}"
            await asyncio.sleep(0.1)
            answers.append(await self._ask(method, path, *more))

    async def _ask(
        self, method: str, path: str, body: object = None, more: dict[str, str] | None = None
    ) -> int | None:
        headers = {"Prefer": "respond-async", **(more or {})}
        url = f"/api/users/{self.user}/projects{path}"
        try:
            async with self.http.request(method, url, json=body, headers=headers) as answer:
                await answer.read()
                self.refused += answer.status >= 500
                return answer.status
        except _BROKEN:
            self.broken += 1
            return None

    async def _status(self, name: str) -> tuple[bool, str | None]:
        """Return whether the project is settled, and its status (``None``: it is gone)."""
        url = f"/api/users/{self.user}/projects/{name}"
        with suppress(*_BROKEN):
            async with self.http.get(url) as answer:
                if answer.status == 404:
                    return True, None
                if answer.status == 200:
                    one = await answer.json()
                    settled = one["observed_generation"] >= one["generation"]
                    return settled and one["status"] in {"active", "inactive"}, one["status"]
        return False, "unknown"


@dataclass
class Reader:
    """Reads one project's log through the proxy, each time from where it was cut off before."""

    url: str
    http: aiohttp.ClientSession
    rng: random.Random
    read: list[tuple[int, str]] = field(default_factory=list)
    streams: int = 0

    async def follow(self) -> None:
        """Go on until cancelled; a stream is left, or cut by what happens to webs, and resumed."""
        while True:
            await self.piece(self.rng.uniform(0.2, 3.0))
            await asyncio.sleep(0)

    async def piece(self, seconds: float) -> None:
        """Read on for so many seconds, or until the stream breaks."""
        after = {"Last-Event-ID": str(self.read[-1][0])} if self.read else {}
        splitter = sse.FrameSplitter()
        self.streams += 1
        with suppress(*_BROKEN):
            async with asyncio.timeout(seconds), self.http.get(self.url, headers=after) as answer:
                if answer.status != 200:
                    await asyncio.sleep(0.1)
                    return
                async for data in answer.content.iter_any():
                    frames = [sse.parse(raw) for raw in splitter.feed(data)]
                    self.read += [(int(one.id), one.data) for one in frames if one and one.id]
