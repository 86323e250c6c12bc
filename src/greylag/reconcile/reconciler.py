"""What a reconciler is told of time, and what one pass remembers while it holds its claim."""

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from greylag.common.backoff import backoff
from greylag.domain.errors import (
    ClusterError,
    ClusterUnavailableError,
    ErrorInfo,
    GreylagError,
    LeaseLostError,
    StoreUnavailableError,
)
from greylag.domain.lifecycle import (
    Act,
    Action,
    Fail,
    Forget,
    Observation,
    Observed,
    Retry,
    Settle,
    Step,
    Verb,
    Wait,
    plan,
)
from greylag.domain.project import Environment, NewEvent, Project, ProjectRef
from greylag.ports import Claim, Clock, Cluster, Outcome, ProjectStore, Subscription
from greylag.reconcile import outcomes


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things may take, in seconds.

    ``lease`` bounds how long a dead worker's projects rest; one step of a pass takes at most half
    of it. ``resync`` is how often an active environment is looked at without a reason.
    """

    lease: float
    resync: float
    activation_timeout: float

    @property
    def step(self) -> float:
        """The longest that one call of the cluster may take."""
        return self.lease / 2


class Pass:
    """One claim's work: its record as last written, and what was done and told already."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.started = False
        self.announced: set[Verb] = set()
        self._told: set[Step] = set()

    @property
    def project(self) -> Project:
        """The record as last read or written."""
        return self.claim.project

    def renew(self, claim: Claim) -> None:
        """Go on with the record as it is now; a changed wish makes the log begin anew."""
        if claim.project.generation != self.project.generation:
            self.started = False
            self.announced.clear()
            self._told.clear()
        self.claim = claim

    def check_lease(self, now: datetime) -> None:
        """Raise ``LeaseLostError`` when the lease has run out, as after this process was paused."""
        lease = self.project.lease
        if lease is not None and now >= lease.until:
            raise LeaseLostError("The lease ran out before the next step.")

    def new_steps(self, seen: Observation) -> list[NewEvent]:
        """Return the steps that the log has not heard of in this pass."""
        if not self.started:
            return []
        fresh = [step for step in seen.steps if step not in self._told]
        self._told.update(fresh)
        return [NewEvent(step.code, step.message) for step in fresh]


# Waiting that a pass of the reconciler does: for news, and for a write that must not be cut.

log = structlog.get_logger(__name__)


async def first_change(
    cluster: Cluster, environment: Environment, news: Subscription, longest: float
) -> None:
    """Return when the environment or the record may have changed, after ``longest`` seconds at
    the latest. A cluster that cannot tell (``ClusterError``) ends the waiting too.
    """
    waits = [
        asyncio.create_task(cluster.changed(environment, longest), name="cluster changed"),
        asyncio.create_task(news.changed(longest), name="record changed"),
    ]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        results = await asyncio.gather(*waits, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(
            result, (asyncio.CancelledError, ClusterError)
        ):
            raise result


async def finish(write: Coroutine[Any, Any, Any]) -> None:
    """Await ``write`` to its end even if this task is cancelled meanwhile; then be cancelled."""
    task = asyncio.ensure_future(write)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("last write failed", error=str(error))
        raise


# One project at a time: load, observe, plan, act, record, until it can rest.

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 60.0
LONGEST_REST = 30.0
INTERNAL_FAULT = ErrorInfo(
    "internal_error", "Greylag failed while working on this project.", GreylagError.hint
)


class Reconciler:
    """The work of a ``WorkLoop``: claims are projects that are due."""

    def __init__(  # noqa: PLR0913 - everything that a pass needs from the world
        self,
        store: ProjectStore,
        cluster: Cluster,
        clock: Clock,
        pace: Pace,
        *,
        worker: str,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._clock = clock
        self._pace = pace
        self.worker = worker
        self._rng = rng
        self._verbs = {
            Verb.PREPARE: cluster.prepare,
            Verb.START: cluster.start,
            Verb.STOP: cluster.stop,
            Verb.DELETE: cluster.delete,
        }

    async def claim(self) -> Claim | None:
        """Claim the project that has been due longest."""
        return await self._store.claim_due(self.worker, self._clock.now(), self._pace.lease)

    def key(self, claim: Claim) -> ProjectRef:
        """Return the project's name everywhere."""
        return claim.project.ref

    async def news(self) -> None:
        """Return when another project may be due: after a change, or at the next due time."""
        with self._store.subscribe() as changes:
            # Asked inside the subscription, so that a change in between is not missed.
            due = await self._store.next_due()
            left = (due - self._clock.now()).total_seconds() if due else LONGEST_REST
            if left > 0:
                await changes.changed(min(left, LONGEST_REST))

    async def handle(self, claim: Claim) -> None:
        """Bring the project to where it can rest. A fault in one project stops no other."""
        ref = claim.project.ref
        with structlog.contextvars.bound_contextvars(
            user_id=ref.user_id, project_id=ref.project_id, claim=claim.number
        ):
            try:
                await self._handle(Pass(claim))
            except LeaseLostError:
                log.warning("lease lost")
                await self._have_it_looked_at(ref)
            except StoreUnavailableError as error:
                # The lease runs out by itself, and then someone takes the project again.
                log.warning("store unavailable", error=str(error))

    async def _have_it_looked_at(self, ref: ProjectRef) -> None:
        # Whoever has the project now may have found nothing to do before our last step landed.
        try:
            await self._store.poke(ref, self._clock.now())
        except StoreUnavailableError as error:
            log.warning("no look asked for", error=str(error))

    async def _handle(self, current: Pass) -> None:
        try:
            with self._store.subscribe(current.project.ref) as news:
                while not await self._advance(current, news):
                    current.renew(await self._renewed(current.claim))
        except asyncio.CancelledError:
            await finish(self._hand_back(current))
            raise
        except (LeaseLostError, StoreUnavailableError):
            raise
        except Exception:
            log.exception("pass failed")
            await self._rest(current, self._retry(current.project, INTERNAL_FAULT))

    async def _advance(self, current: Pass, news: Subscription) -> bool:
        """Do one step of the pass; return whether it has come to its end."""
        project = current.project
        seen = await self._observe(project)
        action = plan(project, seen, self._clock.now())
        log.debug("step", observed=seen.state, action=type(action).__name__)
        match action:
            case Forget():
                await finish(self._store.forget(current.claim))
                return True
            case Act(verb):
                return await self._act(current, seen, verb)
            case Wait():
                await self._tell(current, current.new_steps(seen))
                await self._wait(current.project, news)
                return False
            case _:
                events = current.new_steps(seen)
                outcome = self._resting_outcome(project, seen, action)
                return await self._rest(
                    current, replace(outcome, events=[*events, *outcome.events])
                )

    def _resting_outcome(self, project: Project, seen: Observation, action: Action) -> Outcome:
        now = self._clock.now()
        match action:
            case Settle(status):
                recheck = self._pause(project) if project.attempts else self._resync()
                return outcomes.settled(project, status, seen, now, recheck)
            case Fail(error, terminal):
                due_at = None if terminal else now + self._resync()
                return outcomes.failed(project, error, terminal=terminal, due_at=due_at)
            case Retry(error):
                return self._retry(project, error)
            case _:
                raise AssertionError(f"{action} is no resting place")

    async def _act(self, current: Pass, seen: Observation, verb: Verb) -> bool:
        project = current.project
        again = verb is Verb.START and seen.state is Observed.FAILED
        if again and current.started:
            # It failed just after its start: not again before a pause.
            return await self._rest(current, self._retry(project, seen.error or INTERNAL_FAULT))
        now = self._clock.now()
        timeout = timedelta(seconds=self._pace.activation_timeout)
        announced = outcomes.acting(project, verb, now, timeout)
        if again:
            announced = replace(announced, attempts=project.attempts + 1)
        if verb not in current.announced:
            current.announced.add(verb)
            await self._write(current, announced)
        current.started = current.started or verb is Verb.START
        current.check_lease(self._clock.now())
        try:
            async with asyncio.timeout(self._pace.step):
                await self._verbs[verb](current.project.environment)
        except (ClusterError, TimeoutError) as error:
            return await self._rest(current, self._refused(current.project, verb, error))
        return False

    def _refused(self, project: Project, verb: Verb, error: ClusterError | TimeoutError) -> Outcome:
        if isinstance(error, TimeoutError):
            return self._retry(project, _slow(verb))
        if error.terminal:
            return outcomes.failed(project, error.info, terminal=True, due_at=None)
        return self._retry(project, error.info)

    async def _observe(self, project: Project) -> Observation:
        try:
            async with asyncio.timeout(self._pace.step):
                return await self._cluster.observe(project.environment)
        except ClusterError as error:
            return Observation(Observed.UNKNOWN, error=error.info)
        except TimeoutError:
            slow = ClusterUnavailableError("The cluster did not say in time how it stands.")
            return Observation(Observed.UNKNOWN, error=slow.info)

    async def _wait(self, project: Project, news: Subscription) -> None:
        """Return when the environment or the record may have changed, or it is time to look."""
        longest = self._pace.lease / 3
        if project.deadline_at is not None:
            left = (project.deadline_at - self._clock.now()).total_seconds()
            longest = min(longest, left) if left > 0 else longest
        await first_change(self._cluster, project.environment, news, longest)

    async def _renewed(self, claim: Claim) -> Claim:
        return await self._store.renew(claim, self._clock.now(), self._pace.lease)

    async def _tell(self, current: Pass, events: list[NewEvent]) -> None:
        timeout = timedelta(seconds=self._pace.activation_timeout)
        outcome = outcomes.waiting(current.project, events, self._clock.now(), timeout)
        if outcome is not None:
            await self._write(current, outcome)

    async def _write(self, current: Pass, outcome: Outcome) -> None:
        now = self._clock.now()
        project = await self._store.record(current.claim, outcome, now, release=False)
        current.claim = Claim(project)

    async def _rest(self, current: Pass, outcome: Outcome) -> bool:
        now = self._clock.now()
        await finish(self._store.record(current.claim, outcome, now, release=True))
        for event in outcome.events:
            log.info(event.message, code=event.code, status=outcome.status)
        return True

    async def _hand_back(self, current: Pass) -> None:
        now = self._clock.now()
        outcome = replace(outcomes.unchanged(current.project), due_at=now)
        try:
            await self._store.record(current.claim, outcome, now, release=True)
        except (LeaseLostError, StoreUnavailableError) as error:
            log.warning("claim not handed back", error=str(error))

    def _retry(self, project: Project, error: ErrorInfo) -> Outcome:
        return outcomes.retry(project, error, self._clock.now(), self._pause(project))

    def _pause(self, project: Project) -> timedelta:
        pause = backoff(project.attempts, FIRST_PAUSE, LONGEST_PAUSE, self._rng.uniform)
        return timedelta(seconds=pause)

    def _resync(self) -> timedelta:
        return timedelta(seconds=self._pace.resync * self._rng.uniform(0.8, 1.2))


def _slow(verb: Verb) -> ErrorInfo:
    error = ClusterUnavailableError(f"The cluster took too long to {verb} the environment.")
    return error.info
