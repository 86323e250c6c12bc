"""A reconciler over memory adapters, stepped by hand."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from tests.clocks import FakeClock
from tests.harness import Harness, settings
from tests.wishes import want

from greylag.domain.lifecycle import Verb
from greylag.domain.names import environment_names
from greylag.domain.project import Desired, GitSource, Project, ProjectRef, Status, new_record_id
from greylag.reconcile.loop import WorkLoop
from greylag.reconcile.reconciler import Pace, Reconciler

REF = ProjectRef("ada", "demo")
PACE = Pace(lease=15.0, resync=60.0, activation_timeout=120.0)
"""What the settings say by default."""


class Bench(Harness):
    """One project ``ada/demo`` (or others), its store, its cluster and a loop."""

    clock: FakeClock

    def __init__(
        self,
        *,
        auto: bool = True,
        worker: str = "w1",
        pace: Pace = PACE,
        secret_key: str | None = None,
    ) -> None:
        # Not validated: a test's lease may be shorter than any that settings allow.
        given = settings(model_url="https://model.example", secret_key=secret_key).model_copy(
            update={
                "lease_seconds": pace.lease,
                "resync_seconds": pace.resync,
                "activation_timeout": pace.activation_timeout,
                "idle_hours": pace.idle and pace.idle / 3600,
            }
        )
        clock = FakeClock()
        super().__init__(given, auto=auto, clock=clock, worker=worker)
        self.loop = WorkLoop(self.reconciler, concurrency=8)

    def another(self, worker: str) -> Reconciler:
        return self.build(worker).reconciler

    async def create(self, ref: ProjectRef = REF, source: GitSource | None = None) -> Project:
        now = self.clock.now()
        project = Project(
            id=new_record_id(now),
            user_id=ref.user_id,
            project_id=ref.project_id,
            name=ref.project_id,
            names=environment_names(ref.user_id, ref.project_id),
            created_at=now,
            updated_at=now,
            due_at=now,
            source=source,
        )
        return (await self.store.create(project)).project

    async def want(self, desired: Desired, ref: ProjectRef = REF) -> Project:
        now = self.clock.now()
        deadline = now + timedelta(seconds=PACE.activation_timeout)
        return await want(self.store, ref.user_id, ref.project_id, desired, now, deadline)

    async def reach(self, desired: Desired, ref: ProjectRef = REF) -> Project:
        await self.want(desired, ref)
        await self.loop.drain()
        return await self.project(ref)

    async def starting(self) -> "asyncio.Task[int]":
        """Want the new project active; return the loop that works on it meanwhile."""
        await self.create()
        await self.loop.drain()
        await self.want(Desired.ACTIVE)
        return asyncio.create_task(self.loop.drain(), name="loop")

    async def until_it_is(self, status: Status) -> None:
        """Return once the project has this status."""
        with self.store.subscribe(REF) as news:
            while (await self.project()).status is not status:
                await news.changed(5)

    async def until_told(self, code: str) -> None:
        """Return once the project's log has this line."""
        with self.store.subscribe(REF) as news:
            while code not in await self.told():
                await news.changed(5)

    async def project(self, ref: ProjectRef = REF) -> Project:
        return replace(await self.store.get(ref.user_id, ref.project_id))

    async def told(self, ref: ProjectRef = REF) -> list[str]:
        events = await self.store.events(ref.user_id, ref.project_id, 0, 500)
        return [event.code for event in events]

    def verbs(self, ref: ProjectRef = REF) -> list[Verb]:
        return [call.verb for call in self.cluster.calls[ref]]

    def observations(self, ref: ProjectRef = REF) -> int:
        """Return how often the environment has been observed since the last call."""
        return self.cluster.observations.pop(ref, 0)
