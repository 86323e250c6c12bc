"""The look at everything that a start begins with: once for all workers that start together."""

from collections.abc import Sequence

import structlog

from greylag.domain.errors import ClusterError, StoreUnavailableError
from greylag.domain.project import ProjectRef
from greylag.ports.cluster import Cluster
from greylag.ports.matching import has_record
from greylag.ports.store import Duty, ProjectStore
from greylag.ports.world import Clock

log = structlog.get_logger(__name__)

DUTY = "first look"
HELD_SECONDS = 15.0
PAUSE = 2.0
_RENEW_EVERY = 100


class FirstLook:
    """Makes due what is not at rest, and matches environments with records both ways.

    Of workers that start together one does it; if that one dies, another does it after
    ``HELD_SECONDS``, and as long as environments cannot be listed, it is not done. A worker that
    starts later does it anew: it may come after a crash. That a dead one's duty runs out by itself
    holds up nobody: what is due is worked on meanwhile.
    """

    def __init__(self, store: ProjectStore, cluster: Cluster, clock: Clock, worker: str) -> None:
        self._store = store
        self._cluster = cluster
        self._clock = clock
        self._worker = worker
        self._since = clock.now()
        self._poked = False
        self._refused = False

    async def attempt(self) -> bool:
        """Do it if nobody else does; return whether it is done. A store that cannot be reached is
        waited for.
        """
        while True:
            try:
                return await self._attempt()
            except StoreUnavailableError as error:
                log.warning("store unavailable", error=str(error))
                await self._clock.sleep(PAUSE)

    async def rest(self) -> None:
        """Return when it is done, by whomever."""
        while not await self.attempt():
            await self._clock.sleep(PAUSE)

    async def _attempt(self) -> bool:
        match await self._take():
            case Duty.DONE:
                return True
            case Duty.HELD:
                return False
        if not await self._look():
            return False
        await self._store.finish_duty(DUTY, self._worker, self._clock.now())
        return True

    async def _take(self) -> Duty:
        now = self._clock.now()
        return await self._store.take_duty(
            DUTY, self._worker, since=self._since, now=now, seconds=HELD_SECONDS
        )

    async def _look(self) -> bool:
        """Look, or try to; return whether that came to its end."""
        if not self._poked:
            # First what the records say: an environment that should run and is gone is among it.
            count = await self._store.poke_unsettled(self._clock.now())
            if count:
                log.info("looking at projects not at rest", count=count)
            self._poked = True
        try:
            environments = await self._cluster.inventory()
        except ClusterError as error:
            if not self._refused:
                log.warning("environments not listed; that is tried again", error=str(error))
            self._refused = True
            return False
        return await self._match(environments)

    async def _match(self, environments: Sequence[ProjectRef]) -> bool:
        for number, ref in enumerate(environments):
            if number % _RENEW_EVERY == 0 and await self._take() is not Duty.MINE:
                return False  # all that took so long that another is at it
            if await has_record(self._store, ref):
                await self._store.poke(ref, self._clock.now())
            else:
                log.warning(
                    "environment without a record; `greylag orphans` lists and removes them",
                    user_id=ref.user_id,
                    project_id=ref.project_id,
                )
        return True
