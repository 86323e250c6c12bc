"""The worker: looks at everything once, then keeps environments as their records say.

The look at everything, which a start begins with, is done once for all workers that start together.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog

from greylag.domain.errors import ClusterError, ProjectNotFoundError, StoreUnavailableError
from greylag.domain.project import Project, ProjectRef, Status
from greylag.ports import Claim, Clock, Cluster, Duty, ProjectStore, has_record
from greylag.reconcile.loop import OUTAGE_PAUSE, WorkLoop, outage_waited_out
from greylag.reconcile.reconciler import Reconciler, pause_after

_log = structlog.get_logger(__name__)

DUTY = "first look"
HELD_SECONDS = 15.0
ALONE_SECONDS = 5.0
"""How long work waits for it at most: with thousands of environments it takes a minute."""
_RENEW_EVERY = 100
_STEP = timedelta(seconds=2)
"""So long after each such number of environments the next are due, that they come before nobody who
waits for theirs.
"""


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
            async with outage_waited_out(self._clock):
                return await self._attempt()

    async def rest(self) -> None:
        """Return when it is done, by whomever."""
        while not await self.attempt():
            await self._clock.sleep(OUTAGE_PAUSE)

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
                _log.info("unsettled_projects_made_due", count=count)
            self._poked = True
        try:
            environments = await self._cluster.inventory()
        except ClusterError as error:
            if not self._refused:
                _log.warning("environments_not_listed", error=str(error), tried_again=True)
            self._refused = True
            return False
        return await self._match(environments)

    async def _match(self, environments: Sequence[ProjectRef]) -> bool:
        began = self._clock.now()
        for number, ref in enumerate(environments):
            if number % _RENEW_EVERY == 0 and await self._take() is not Duty.MINE:
                return False  # all that took so long that another is at it
            if await has_record(self._store, ref):
                await self._store.poke(ref, began + number // _RENEW_EVERY * _STEP)
            else:
                _log.warning(
                    "environment_without_record",
                    hint="`greylag orphans` lists and removes it",
                    user_id=ref.user_id,
                    project_id=ref.project_id,
                )
        return True


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
        self._worker = reconciler.worker
        self._first_look = FirstLook(store, cluster, clock, reconciler.worker)
        self._loop: WorkLoop[Claim] = WorkLoop(reconciler, concurrency)

    async def run(self, ready: asyncio.Event, first_look_timeout: float) -> None:
        """Work until cancelled; a store that cannot be reached is waited for.

        ``ready`` is set once every project that was not at rest has been worked on, or after
        ``first_look_timeout`` seconds: environments that take long to start hold up nobody. Nor
        does a look at so many that it takes longer than ``ALONE_SECONDS``: it goes on beside.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_and_work(tasks), name="first look")
            try:
                async with asyncio.timeout(first_look_timeout):
                    await self._loop.idle.wait()
            except TimeoutError:
                _log.info("serving_before_all_is_settled")
            ready.set()

    async def _look_and_work(self, tasks: asyncio.TaskGroup) -> None:
        looking = tasks.create_task(self._first_look.attempt(), name="look at everything")
        await asyncio.wait({looking}, timeout=ALONE_SECONDS)
        tasks.create_task(self._loop.run(), name="reconcile loop")
        tasks.create_task(self._hear_cluster(), name="cluster changes")
        if not await looking:
            await self._first_look.rest()

    async def _hear_cluster(self) -> None:
        async for ref in self._cluster.changes():
            try:
                await self._note(ref)
            except StoreUnavailableError as error:
                # The resync will find what was not heard.
                _log.warning("change_not_noted", error=str(error))

    async def _note(self, ref: ProjectRef) -> None:
        try:
            project = await self._store.of_environment(ref)
        except ProjectNotFoundError:
            return
        now, lease = self._clock.now(), project.lease
        if lease is not None and lease.worker != self._worker and lease.until > now:
            return  # whoever works on it hears of it, too, and knows what it waits for
        if _may_be_looked_at(project, now):
            await self._store.poke(ref, now)


def _may_be_looked_at(project: Project, now: datetime) -> bool:
    """Tell whether what a cluster tells of a project is a reason to look at once.

    One that keeps failing is looked at when its pause is over, not when it fails.
    """
    if project.attempts == 0 or project.status is Status.ERROR:
        return True
    since = project.last_activated_at
    least = pause_after(project.attempts, min)
    return project.status is Status.ACTIVE and since is not None and now - since >= least
