"""Asking an environment at its address whether it answers, before anyone is told that it does.

A pod that is ready is not yet reached: load balancers, proxies on nodes and ingress controllers
learn of it a moment later, each in its own time.
"""

from typing import Self

import aiohttp

from greylag.cluster.kubernetes.board import Slot
from greylag.cluster.kubernetes.workload import HEALTH_PATH

FIRST_CONNECT_SECONDS = 0.03
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 2.0
_OK = 200


class Doorbell:
    """Asks each pod once, until it has answered. Make it on the running loop; ``close`` it."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self._answered: dict[Slot, tuple[str, str]] = {}
        self._failed: dict[Slot, int] = {}

    @classmethod
    def open(cls) -> Self:
        """Return one with connections of its own, which are never kept."""
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        jar = aiohttp.DummyCookieJar()
        return cls(aiohttp.ClientSession(connector=connector, cookie_jar=jar))

    async def answers(self, slot: Slot, pod: str, url: str) -> bool:
        """Tell whether the pod with the uid ``pod`` answers, or has answered before, at ``url``."""
        if self._answered.get(slot) == (pod, url):
            return True
        answered = await self._ask(url, self._failed.get(slot, 0))
        if answered:
            self._answered[slot] = (pod, url)
            self._failed.pop(slot, None)
        else:
            self._failed[slot] = self._failed.get(slot, 0) + 1
        return answered

    async def _ask(self, url: str, failed: int) -> bool:
        # What is not reached yet often drops the first packet, and TCP sends the next one only
        # after a second; so at first it is better to ask anew soon.
        connect = min(CONNECT_SECONDS, FIRST_CONNECT_SECONDS * 2.0**failed)
        timeout = aiohttp.ClientTimeout(total=connect + ANSWER_SECONDS, sock_connect=connect)
        ask = self._http.get(url + HEALTH_PATH, allow_redirects=False, timeout=timeout)
        try:
            async with ask as response:
                return response.status == _OK
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def forget(self, slot: Slot) -> None:
        """Drop what is remembered of an environment that is gone."""
        self._answered.pop(slot, None)
        self._failed.pop(slot, None)

    async def close(self) -> None:
        """Close what is open."""
        await self._http.close()
