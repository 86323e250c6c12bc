"""The worker: looks at everything once, then keeps environments as their records say."""

import asyncio

import structlog

from greylag.domain.errors import ClusterError, ProjectNotFoundError, StoreUnavailableError
from greylag.domain.project import ProjectRef
from greylag.ports.cluster import Cluster
from greylag.ports.store import Claim, ProjectStore
from greylag.ports.world import Clock
from greylag.reconcile.loop import WorkLoop
from greylag.reconcile.reconciler import Reconciler

log = structlog.get_logger(__name__)

PAUSE_AFTER_FAILURE = 2.0


class Worker:
    """Runs a reconciler until it is cancelled; a fault in any part ends all of it."""

    def __init__(
        self,
        store: ProjectStore,
        cluster: Cluster,
        clock: Clock,
        reconciler: Reconciler,
        *,
        concurrency: int,
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._clock = clock
        self._loop: WorkLoop[Claim] = WorkLoop(_Patient(reconciler, clock), concurrency)

    async def run(self, ready: asyncio.Event, first_look_timeout: float) -> None:
        """Work until cancelled; a store that cannot be reached is waited for.

        ``ready`` is set once every project that was not at rest has been worked on, or after
        ``first_look_timeout`` seconds: environments that take long to start hold up nobody.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_and_work(tasks), name="first look")
            try:
                async with asyncio.timeout(first_look_timeout):
                    await self._loop.idle.wait()
            except TimeoutError:
                log.info("serving before every project is at rest")
            ready.set()

    async def _look_and_work(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            try:
                await self._look_at_everything()
            except StoreUnavailableError as error:
                log.warning("store unavailable", error=str(error))
                await self._clock.sleep(PAUSE_AFTER_FAILURE)
            else:
                break
        tasks.create_task(self._loop.run(), name="reconcile loop")
        tasks.create_task(self._hear_cluster(), name="cluster changes")

    async def _look_at_everything(self) -> None:
        """Make due what is not at rest, and match environments with records."""
        now = self._clock.now()
        count = await self._store.poke_unsettled(now)
        if count:
            log.info("looking at projects not at rest", count=count)
        try:
            environments = await self._cluster.inventory()
        except ClusterError as error:
            log.warning("environments not listed", error=str(error))
            return
        for ref in environments:
            try:
                await self._store.get(ref.user_id, ref.project_id)
            except ProjectNotFoundError:
                log.warning(
                    "environment without a record", user_id=ref.user_id, project_id=ref.project_id
                )
            else:
                await self._store.poke(ref, now)

    async def _hear_cluster(self) -> None:
        async for ref in self._cluster.changes():
            try:
                await self._note(ref)
            except StoreUnavailableError as error:
                # The resync will find what was not heard.
                log.warning("change not noted", error=str(error))

    async def _note(self, ref: ProjectRef) -> None:
        try:
            project = await self._store.get(ref.user_id, ref.project_id)
        except ProjectNotFoundError:
            return
        if project.attempts == 0:
            # One that keeps failing is looked at when its pause is over, not when it fails.
            await self._store.poke(ref, self._clock.now())


class _Patient:
    """The reconciler's work, waiting out a store that cannot be reached."""

    def __init__(self, work: Reconciler, clock: Clock) -> None:
        self._work = work
        self._clock = clock
        self.key = work.key
        self.handle = work.handle

    async def claim(self) -> Claim | None:
        try:
            return await self._work.claim()
        except StoreUnavailableError as error:
            log.warning("store unavailable", error=str(error))
            await self._clock.sleep(PAUSE_AFTER_FAILURE)
            return None

    async def news(self) -> None:
        try:
            await self._work.news()
        except StoreUnavailableError as error:
            log.warning("store unavailable", error=str(error))
            await self._clock.sleep(PAUSE_AFTER_FAILURE)
