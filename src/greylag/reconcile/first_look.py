"""The look at everything that a start begins with: once for all workers that start together."""

from collections.abc import Sequence

import structlog

from greylag.domain.errors import ClusterError, ProjectNotFoundError, StoreUnavailableError
from greylag.domain.project import ProjectRef
from greylag.ports.cluster import Cluster
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
    ``HELD_SECONDS``. A worker that starts later does it anew: it may come after a crash.
    """

    def __init__(self, store: ProjectStore, cluster: Cluster, clock: Clock, worker: str) -> None:
        self._store = store
        self._cluster = cluster
        self._clock = clock
        self._worker = worker
        self._since = clock.now()

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
        await self._look()
        await self._store.finish_duty(DUTY, self._worker, self._clock.now())
        return True

    async def _take(self) -> Duty:
        now = self._clock.now()
        return await self._store.take_duty(
            DUTY, self._worker, since=self._since, now=now, seconds=HELD_SECONDS
        )

    async def _look(self) -> None:
        # First what the records say: an environment that should run and is gone is among it.
        count = await self._store.poke_unsettled(self._clock.now())
        if count:
            log.info("looking at projects not at rest", count=count)
        try:
            environments = await self._cluster.inventory()
        except ClusterError as error:
            log.warning("environments not listed", error=str(error))
            return
        await self._match(environments)

    async def _match(self, environments: Sequence[ProjectRef]) -> None:
        for number, ref in enumerate(environments, 1):
            try:
                await self._store.get(ref.user_id, ref.project_id)
            except ProjectNotFoundError:
                log.warning(
                    "environment without a record", user_id=ref.user_id, project_id=ref.project_id
                )
            else:
                await self._store.poke(ref, self._clock.now())
            if number % _RENEW_EVERY == 0 and await self._take() is not Duty.MINE:
                return  # it took so long that another does it
