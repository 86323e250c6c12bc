"""The worker: looks at everything once, then keeps environments as their records say."""

import asyncio

import structlog

from greylag.domain.errors import ProjectNotFoundError, StoreUnavailableError
from greylag.domain.project import ProjectRef
from greylag.ports.cluster import Cluster
from greylag.ports.store import Claim, ProjectStore
from greylag.ports.world import Clock
from greylag.reconcile.first_look import FirstLook
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
        self._first_look = FirstLook(store, cluster, clock, reconciler.worker)
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
        done = await self._first_look.attempt()
        tasks.create_task(self._loop.run(), name="reconcile loop")
        tasks.create_task(self._hear_cluster(), name="cluster changes")
        if not done:
            await self._first_look.rest()

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
