"""One watch for each kind, shared by all projects, and the probe that notices a dead API server."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.refusals import cluster_error
from greylag.cluster.kubernetes.watch import Change, Pace, Watched
from greylag.domain.errors import ClusterError, ClusterUnavailableError


class Watches:
    """What of these kinds is in the cluster now. Somebody must await ``run`` all the time.

    ``selectors``: for each kind the label selector that chooses ours. Secrets do not belong here.
    """

    def __init__(self, api: Api, selectors: Mapping[str, str], pace: Pace | None = None) -> None:
        self._api = api
        self._pace = pace or Pace()
        self._answers = asyncio.Event()
        self._listeners: list[Callable[[Change], None]] = []
        self._watched = {
            kind: Watched(api, kind, selector, self._tell, self._pace)
            for kind, selector in selectors.items()
        }

    def __getitem__(self, kind: str) -> Watched:
        return self._watched[kind]

    @property
    def live(self) -> bool:
        """Whether the caches say what is true now; if not, what they hold or lack is no proof."""
        return self._answers.is_set() and all(one.live for one in self._watched.values())

    @property
    def problem(self) -> str:
        """Why they are not live, "" while they are."""
        if self.live:
            return ""
        told = (one.problem for one in self._watched.values() if one.problem)
        return next(told, "The API server does not answer.")

    @property
    def trouble(self) -> ClusterError:
        """Why they are not live, as an error to raise."""
        refused = (one.refusal for one in self._watched.values() if one.refusal is not None)
        refusal = next(refused, None)
        return ClusterUnavailableError(self.problem) if refusal is None else cluster_error(refusal)

    async def synced(self, within: float) -> None:
        """Return when all kinds are known; raise ``trouble`` after ``within`` seconds."""
        try:
            async with asyncio.timeout(within):
                await self._answers.wait()
                for one in self._watched.values():
                    await one.synced()
        except TimeoutError as error:
            raise self.trouble from error

    async def alive(self, within: float) -> bool:
        """Wait until they are live; tell if they are after ``within`` seconds.

        A watch that broke off is open again in a moment, which is no reason to give work up.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not self.live:
                    await self._answers.wait()
                    for one in self._watched.values():
                        await one.alive()
        return self.live

    def subscribe(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Call ``callback`` with each change (the first list's too); returns what ends that.

        It is called on the loop, after the cache has changed; it must be quick and not raise.
        """
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    async def run(self) -> None:
        """Keep all caches current until cancelled. Ends otherwise only by a fault in Greylag."""
        try:
            async with asyncio.TaskGroup() as group:
                for kind, watched in self._watched.items():
                    group.create_task(watched.run(), name=f"kubernetes watch {kind}")
                group.create_task(self._probe(), name="kubernetes probe")
        finally:
            self._answers.clear()

    async def _probe(self) -> None:
        """Ask now and then whether the API server is up: a watch that is quiet cannot tell."""
        failed = 0
        while True:
            if await self._api.answers(self._pace.probe):
                failed = 0
                self._answers.set()
                await asyncio.sleep(self._pace.probe)
                continue
            self._answers.clear()
            if failed:
                # The second time in a row: its connections may be dead, and would hang.
                for watched in self._watched.values():
                    watched.cut()
            await asyncio.sleep(min(self._pace.probe, self._pace.first_probe * 2.0**failed))
            failed += 1

    def _tell(self, change: Change) -> None:
        for listener in tuple(self._listeners):
            listener(change)
