"""One project at a time: load, observe, plan, act, record, until it can rest.

A ``Reconciler`` claims projects that are due. Under each claim a ``_Pass`` observes the
environment, does what ``plan`` answers and writes what came of it, step by step, until the project
rests. A pass may end anywhere: its lease runs out, and who claims the project next begins from what
is.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, assert_never

import structlog

from greylag.common import metrics
from greylag.common.backoff import backoff
from greylag.common.concurrent import to_its_end, until_one_ends
from greylag.common.git import CloneState, GitSetup
from greylag.domain.errors import (
    AgentTokenLostError,
    ClusterError,
    ClusterUnavailableError,
    ErrorInfo,
    GreylagError,
    LeaseLostError,
    OvertakenError,
    StoreUnavailableError,
)
from greylag.domain.lifecycle import (
    Act,
    Fail,
    Forget,
    Observation,
    Observed,
    Retry,
    Settle,
    Verb,
    Wait,
    plan,
    with_git,
)
from greylag.domain.project import Desired, NewEvent, Project, ProjectRef, Status
from greylag.ports import (
    AgentGateway,
    AgentStatus,
    Claim,
    Clock,
    Cluster,
    Outcome,
    ProjectStore,
    Subscription,
)
from greylag.reconcile import outcomes
from greylag.reconcile.loop import Slot, outage_waited_out
from greylag.reconcile.transcripts import KeepingTranscripts

_log = structlog.get_logger(__name__)

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 60.0
LONGEST_REST = 30.0
BUSY_PAUSE = 5.0
WORKING_PAUSE = 0.5
SET_BACK_SECONDS = 5.0
TELL_AFTER = timedelta(seconds=20)
"""What keeps an environment for so long is told while it goes on, not only at its deadline."""

INTERNAL_FAULT = ErrorInfo(
    "internal_error", "Greylag failed while working on this project.", GreylagError.hint
)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things may take, in seconds.

    ``lease`` bounds how long a dead worker's projects rest; one step of a pass takes at most half
    of it. ``resync`` is how often an active environment is looked at without a reason. ``idle`` is
    how long one may be unused before it is put to sleep; None: for ever.
    """

    lease: float
    resync: float
    activation_timeout: float
    idle: float | None = None

    @property
    def step(self) -> float:
        """The longest that one call of the cluster may take."""
        return self.lease / 2


@dataclass(frozen=True, slots=True)
class World:
    """All that a pass needs, beside its claim.

    Attributes:
        warnings: what the log of an activation is to say of what cannot work.
        git: tells what the environment is told of git.
        must_sleep: has a project sleep that may not be active, and tells whether it had to.
        sleep: has one sleep that nobody uses, unasked, and tells whether it was so wanted.
        wake: has that wanted active again, unless more was wanted since then.
        transcripts: whether what was said is kept.
    """

    store: ProjectStore
    cluster: Cluster
    agents: AgentGateway
    clock: Clock
    pace: Pace
    rng: random.Random
    warnings: Callable[[], Sequence[NewEvent]]
    git: Callable[[Project], Awaitable[GitSetup]]
    must_sleep: Callable[[Project], Awaitable[bool]]
    sleep: Callable[[Project], Awaitable[bool]]
    wake: Callable[[Project], Awaitable[None]]
    transcripts: bool


class Reconciler:
    """What a ``WorkLoop`` works on: its items are claims on projects that are due."""

    def __init__(self, world: World, worker: str) -> None:
        self.worker = worker
        self._world = world
        self._store, self._clock = world.store, world.clock
        self._ahead = self._clock_ahead()
        self._transcripts = KeepingTranscripts(
            world.store, world.cluster, world.agents, world.clock, wanted=world.transcripts
        )

    async def claim(self) -> Claim | None:
        """Claim the project whose turn it is; none while the store cannot be reached."""
        async with outage_waited_out(self._clock):
            lease = self._world.pace.lease
            return await self._store.claim_due(self.worker, self._clock.now(), lease)
        return None

    def key(self, claim: Claim) -> ProjectRef:
        """Return the project's name everywhere."""
        return claim.project.ref

    async def news(self) -> None:
        """Return when another project may be due: after a change, or at the next due time."""
        async with outage_waited_out(self._clock):
            await self._news()

    async def handle(self, claim: Claim, slot: Slot) -> None:
        """Bring the project to where it can rest. A fault in one project stops no other.

        While it only waits for its environment, ``slot`` is another's.
        """
        ref = claim.project.ref
        work = _Pass(claim, slot, self._world, self._transcripts)
        with structlog.contextvars.bound_contextvars(
            user_id=ref.user_id, project_id=ref.project_id, claim=claim.number
        ):
            try:
                await work.run()
            except LeaseLostError:
                _log.warning("lease_lost")
                await self._have_it_looked_at(claim.project.made_for)
            except StoreUnavailableError as error:
                # The lease runs out by itself, and then someone takes the project again.
                _log.warning("store_unavailable", error=str(error))
            except Exception:  # noqa: BLE001 - a defect with one project ends no other; as above
                _log.exception("fault_not_recorded")

    async def _news(self) -> None:
        await self._mind_clock()
        with self._store.subscribe() as changes:
            # Asked inside the subscription, so that a change in between is not missed.
            due = await self._store.next_due()
            left = (due - self._clock.now()).total_seconds() if due else LONGEST_REST
            if left > 0:
                await changes.changed(min(left, LONGEST_REST))

    async def _mind_clock(self) -> None:
        """Make due what was put off by a clock that was ahead, once it is set right."""
        ahead = self._clock_ahead()
        if ahead < self._ahead - SET_BACK_SECONDS:
            count = await self._store.poke_unsettled(self._clock.now())
            _log.warning("clock_set_back", seconds=round(self._ahead - ahead), made_due=count)
        self._ahead = ahead

    def _clock_ahead(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()

    async def _have_it_looked_at(self, ref: ProjectRef) -> None:
        # Whoever has the project now may have found nothing to do before our last step landed.
        try:
            await self._store.poke(ref, self._clock.now())
        except StoreUnavailableError as error:
            _log.warning("project_not_made_due", error=str(error))


@dataclass(slots=True)
class _Pass:
    """One claim's work.

    Attributes:
        claim: with the record as last read or written.
        slot: held while it does something.
        started: whether this pass has set about starting the environment.
        restored: whether it has found that the records were put back from an older copy.
        announced: the verbs that the activation log has been told of.
        trouble: the code of what keeps the environment, and since when.
        copied: whether that was kept before the environment's end.
    """

    claim: Claim
    slot: Slot
    world: World
    transcripts: KeepingTranscripts
    started: bool = False
    restored: bool = False
    announced: set[Verb] = field(default_factory=set)
    announced_steps: set[NewEvent] = field(default_factory=set)
    trouble: tuple[str | None, datetime] = (None, datetime.min.replace(tzinfo=UTC))
    copied: bool = False

    @property
    def project(self) -> Project:
        """The record as last read or written."""
        return self.claim.project

    async def run(self) -> None:
        """Take one step after the other until the project can rest.

        Raises:
            LeaseLostError: another worker goes on with the project.
            StoreUnavailableError: what came of it may not be on record.
        """
        try:
            with self.world.store.subscribe(self.project.ref) as news:
                await self.transcripts.drop_unwanted(self.claim)
                while await self._may_not_run() or not await self._advance(news):
                    await self._renew()
        except asyncio.CancelledError:
            await _finish(self._hand_back())
            raise
        except (LeaseLostError, StoreUnavailableError):
            raise
        except Exception:  # noqa: BLE001 - a defect of ours: logged whole, tried again later
            _log.exception("pass_failed")
            await self._rest(self._retry(INTERNAL_FAULT))

    async def _may_not_run(self) -> bool:
        return self.project.desired is Desired.ACTIVE and await self.world.must_sleep(self.project)

    async def _advance(self, news: Subscription) -> bool:
        """Take one step; return whether the pass has come to its end."""
        seen = await self._observe()
        now = self.world.clock.now()
        action = plan(self.project, seen, now)
        _log.debug("step", observed=seen.state, action=type(action).__name__)
        match action:
            case Forget():
                await _finish(self.world.store.forget(self.claim))
                return True
            case Act(Verb.STOP) if seen.state is Observed.READY and await self._is_in_use():
                # A new start can wait until nobody is answered any more.
                pause = timedelta(seconds=BUSY_PAUSE)
                outcome = outcomes.settled(self.project, Status.ACTIVE, seen, now, pause)
            case Act(Verb.STOP) if await self._has_more_before_stop(seen):
                return False
            case Act(verb):
                return await self._act(seen, verb)
            case Wait():
                await self._tell(seen)
                await self._wait(news, working=seen.working)
                return False
            case Settle(Status.ACTIVE) if await self._is_unused(seen):
                await self._put_to_sleep(seen)
                return False
            case Settle(status):
                outcome = await self._settled(status, seen, now)
            case Fail(error, terminal):
                due_at = None if terminal else now + self._resync()
                outcome = outcomes.failed(self.project, error, terminal=terminal, due_at=due_at)
            case Retry(error):
                outcome = self._retry(error)
            case _:
                assert_never(action)
        return await self._rest(replace(outcome, events=[*self._new_steps(seen), *outcome.events]))

    async def _settled(self, status: Status, seen: Observation, now: datetime) -> Outcome:
        await self._copy_news(status)
        recheck = timedelta(seconds=BUSY_PAUSE) if seen.working else self._recheck(now)
        outcome = outcomes.settled(self.project, status, seen, now, recheck)
        if status is Status.ACTIVE and outcome.events:
            return replace(outcome, events=[*self.world.warnings(), *outcome.events])
        return outcome

    async def _observe(self) -> Observation:
        try:
            async with asyncio.timeout(self.world.pace.step):
                seen = await self.world.cluster.observe(self.project.environment)
        except ClusterError as error:
            return Observation(Observed.UNKNOWN, error=error.info)
        except TimeoutError:
            slow = ClusterUnavailableError("The cluster did not say in time how it stands.")
            return Observation(Observed.UNKNOWN, error=slow.info)
        if seen.state is not Observed.READY or self.project.desired is not Desired.ACTIVE:
            return seen
        return with_git(self.project, seen, await self._set_up_git())

    async def _set_up_git(self) -> CloneState | None:
        """Tell the environment of its git; return what it answers, ``None`` when it does not."""
        try:
            async with asyncio.timeout(self._patience):
                setup = await self.world.git(self.project)
                at = await self.world.cluster.reach(self.project.environment)
                return await self.world.agents.set_up_git(at, setup)
        except StoreUnavailableError:
            raise
        except (GreylagError, TimeoutError) as error:
            _log.warning("git_not_set_up", error=str(error))
            return None

    async def _has_more_before_stop(self, seen: Observation) -> bool:
        """Do what comes before a stop, and tell whether that was a step of its own: with a lease
        renewed after it, it takes nothing from the stop.
        """
        if self.project.desired is Desired.INACTIVE and await self._is_copied_now(seen):
            return True
        return await self._is_used_after_all(seen)

    async def _is_copied_now(self, seen: Observation) -> bool:
        """Copy what was said before the environment ends, and tell whether that was yet to do."""
        if self.copied or not self.transcripts.wanted or seen.state is not Observed.READY:
            return False
        self.copied = True
        await self.transcripts.look(self.claim, last=True)
        return True

    async def _copy_news(self, status: Status) -> None:
        """Keep what was said in an environment since the last look at it."""
        if status is Status.ACTIVE and self.project.status is status:
            await self.transcripts.look(self.claim)

    async def _is_in_use(self) -> bool:
        """Tell whether it is only to be started anew while its agent is at work, or may be."""
        if self.project.desired is not Desired.ACTIVE:
            return False
        try:
            status = await self._asked()
        except AgentTokenLostError:
            return False  # nobody can be answered before it is started anew
        return status is None or status.busy

    async def _status(self) -> AgentStatus | None:
        """Return what the agent says of itself; ``None`` when it does not."""
        with suppress(AgentTokenLostError):
            return await self._asked()
        return None

    async def _asked(self) -> AgentStatus | None:
        """Do the same; ``AgentTokenLostError`` where nobody can ask it."""
        try:
            async with asyncio.timeout(self._patience):
                at = await self.world.cluster.reach(self.project.environment)
                return await self.world.agents.status(at)
        except AgentTokenLostError:
            raise
        except (GreylagError, TimeoutError) as error:
            _log.warning("agent_not_asked", error=str(error))
            return None

    async def _is_unused(self, seen: Observation) -> bool:
        """Tell whether nobody has used the environment for so long that it is to sleep."""
        longest = self.world.pace.idle
        if longest is None or seen.state is not Observed.READY or seen.working:
            return False
        wished = self.world.clock.now() - self.project.updated_at
        if self.project.desired is Desired.ACTIVE and wished.total_seconds() < longest:
            return False  # it is wanted for what is still on its way to the agent
        status = await self._status()
        if status is None or status.idle_seconds is None:
            return False  # `busy` has what is only open, too
        return status.idle_seconds >= longest

    async def _put_to_sleep(self, seen: Observation) -> None:
        """Want it inactive, unless more was wanted meanwhile.

        What was said is copied before, so that it is soon asked once more, and stopped.
        """
        if await self._is_copied_now(seen):
            return
        if await self.world.sleep(self.project):
            await self._write(outcomes.unchanged(self.project, [outcomes.UNUSED]))

    async def _is_used_after_all(self, seen: Observation) -> bool:
        """Have it go on, and tell so, if somebody came since it was to sleep unasked."""
        runs = seen.state is Observed.READY or seen.unheard
        if not (runs and self.project.sleeps_unasked) or await self._is_unused(seen):
            return False
        await self.world.wake(self.project)
        return True

    async def _act(self, seen: Observation, verb: Verb) -> bool:
        again = verb is Verb.START and seen.state is Observed.FAILED
        if again and self.started:
            # It failed just after its start: not again before a pause.
            return await self._rest(self._retry(seen.error or INTERNAL_FAULT))
        untold = verb not in self.announced and outcomes.goes_on(self.project)
        if verb not in self.announced:
            self.announced.add(verb)
            attempts = self.project.attempts + (1 if again else 0)
            outcome = outcomes.acting(
                self.project, verb, self.world.clock.now(), self._timeout, self._why(seen)
            )
            await self._write(replace(outcome, attempts=attempts))
            if verb is Verb.STOP and self.project.desired is Desired.ACTIVE and not untold:
                return False  # nobody new is let in now; whoever came before that is asked about
        self.started = self.started or verb is Verb.START
        self._check_lease()
        try:
            async with asyncio.timeout(self.world.pace.step):
                await self._do(verb)
        except OvertakenError as error:
            await self._take_over(error)
        except TimeoutError:
            slow = ClusterUnavailableError(f"The cluster took too long to {verb} the environment.")
            return await self._rest(self._retry(slow.info))
        except ClusterError as error:
            if not error.terminal:
                return await self._rest(self._retry(error.info))
            # Nobody asks again for the end of an environment, which goes on costing.
            ends = verb in {Verb.STOP, Verb.DELETE}
            due_at = self.world.clock.now() + self._resync() if ends else None
            return await self._rest(
                outcomes.failed(self.project, error.info, terminal=not ends, due_at=due_at)
            )
        if untold:
            begun = outcomes.doing(self.project, verb)
            await self._write(outcomes.unchanged(self.project, [begun]))
        return False

    def _why(self, seen: Observation) -> ErrorInfo | None:
        """Return why a step is needed, or waited for, beside the wish for it."""
        if seen.state is not Observed.ABSENT:
            ends = seen.state in {Observed.STOPPING, Observed.STOPPED}
            unasked = ends and self.project.status is Status.ACTIVE
            return seen.error or (outcomes.STOPPED if unasked else None)
        # With what is another Greylag's the step is refused, which tells of it.
        has_run = self.project.last_activated_at is not None
        return outcomes.GONE if has_run and seen.error is None else None

    def _check_lease(self) -> None:
        """Raise ``LeaseLostError`` when the lease has run out, as after this process was paused."""
        lease = self.project.lease
        if lease is not None and self.world.clock.now() >= lease.until:
            raise LeaseLostError("The lease ran out before the next step.")

    async def _do(self, verb: Verb) -> None:
        verbs = {
            Verb.PREPARE: self.world.cluster.prepare,
            Verb.START: self.world.cluster.start,
            Verb.STOP: self.world.cluster.stop,
            Verb.DELETE: self.world.cluster.delete,
        }
        await verbs[verb](self.project.environment)

    async def _take_over(self, overtaken: OvertakenError) -> None:
        """Go on under a higher number, where only the store's past is overtaken.

        The store decides (``records.renewed``): it raises ``LeaseLostError`` where another worker
        has the project. Once in a pass: two that are restored from one copy must not outbid each
        other without end.
        """
        if self.restored:
            raise overtaken
        self.restored = True
        now = self.world.clock.now()
        self.claim = await self.world.store.renew(
            self.claim, now, self.world.pace.lease, above=overtaken.number
        )
        _log.warning("records_restored", seen=overtaken.number, claim=self.claim.number)
        await self._write(outcomes.unchanged(self.project, [outcomes.RESTORED]))

    async def _wait(self, news: Subscription, *, working: bool) -> None:
        """Return when the environment or the record may have changed, or it is time to look.

        A cluster that cannot tell (``ClusterError``) ends the waiting too.
        """
        longest = WORKING_PAUSE if working else self.world.pace.lease / 3
        if self.project.deadline_at is not None:
            left = (self.project.deadline_at - self.world.clock.now()).total_seconds()
            longest = min(longest, left) if left > 0 else longest
        async with self.slot.given_up():
            with suppress(ClusterError):
                await until_one_ends(
                    cluster_changed=self.world.cluster.changed(self.project.environment, longest),
                    record_changed=news.changed(longest),
                )

    async def _renew(self) -> None:
        """Go on with the record as it is now; a changed wish makes the log begin anew."""
        renewed = await self.world.store.renew(
            self.claim, self.world.clock.now(), self.world.pace.lease
        )
        if renewed.project.generation != self.project.generation:
            self.started = False
            self.announced.clear()
            self.announced_steps.clear()
        self.claim = renewed

    def _new_steps(self, seen: Observation) -> list[NewEvent]:
        """Return the steps that the log has not heard of in this pass."""
        if not self.started:
            return []
        fresh = [step for step in seen.steps if step not in self.announced_steps]
        self.announced_steps.update(fresh)
        return fresh

    async def _tell(self, seen: Observation) -> None:
        """Write that the environment is on its way, if that is new."""
        events, now = self._new_steps(seen), self.world.clock.now()
        lasting = self._lasting(seen.error, now)
        if seen.unheard and self.project.status is Status.ACTIVE and lasting is None:
            return  # a worker that has just started may not be let through yet, and others are
        why = self._why(seen) if self.project.settled else lasting
        outcome = outcomes.waiting(self.project, events, now, self._timeout, why)
        if outcome is not None:
            await self._write(outcome)

    def _lasting(self, error: ErrorInfo | None, now: datetime) -> ErrorInfo | None:
        """Return what has kept the environment for so long that it is worth a word."""
        code = error.code if error is not None else None
        if code != self.trouble[0]:
            self.trouble = (code, now)
        return error if now - self.trouble[1] >= TELL_AFTER else None

    async def _write(self, outcome: Outcome) -> None:
        now = self.world.clock.now()
        self.claim = Claim(await self.world.store.record(self.claim, outcome, now, release=False))

    async def _rest(self, outcome: Outcome) -> bool:
        if self.project.sleeps_unasked and outcome.status is Status.ACTIVE:
            await self.world.wake(self.project)  # it cannot be asked now whether it is used
        now = self.world.clock.now()
        await _finish(self.world.store.record(self.claim, outcome, now, release=True))
        self._count(outcome, now)
        for event in outcome.events:
            _log.info(
                "project_event", code=event.code, message=event.message, status=outcome.status
            )
        return True

    def _count(self, outcome: Outcome, now: datetime) -> None:
        metrics.PASSES.labels(outcome.status, outcome.error.code if outcome.error else "").inc()
        comes_up = outcome.status is Status.ACTIVE and not self.project.has_come_up
        if comes_up and self.project.deadline_at is not None:
            took = now - (self.project.deadline_at - self._timeout)
            metrics.ACTIVATIONS.observe(max(0, took.total_seconds()))

    async def _hand_back(self) -> None:
        now = self.world.clock.now()
        outcome = replace(outcomes.unchanged(self.project), due_at=now)
        try:
            await self.world.store.record(self.claim, outcome, now, release=True)
        except (LeaseLostError, StoreUnavailableError) as error:
            _log.warning("claim_not_handed_back", error=str(error))

    def _retry(self, error: ErrorInfo) -> Outcome:
        return outcomes.retry(self.project, error, self.world.clock.now(), self._pause())

    @property
    def _patience(self) -> float:
        """How many seconds an agent may be waited for: several questions to one that hangs must not
        cost the lease, without which nothing of what was found is recorded.
        """
        return min(self.world.pace.step, self.transcripts.left(self.claim) / 2)

    @property
    def _timeout(self) -> timedelta:
        return timedelta(seconds=self.world.pace.activation_timeout)

    def _recheck(self, now: datetime) -> timedelta:
        """Return when to look again, unasked, at what is as it is wanted."""
        project, resync = self.project, self._resync()
        if not project.attempts:
            return resync
        since = project.last_activated_at
        if project.status is not Status.ACTIVE or since is None:
            return self._pause()
        # Once more, when it has been well for so long that its failures count no more.
        return min(resync, max(self._pause(), since + outcomes.STABLE_AFTER - now))

    def _pause(self) -> timedelta:
        return pause_after(self.project.attempts, self.world.rng.uniform)

    def _resync(self) -> timedelta:
        return timedelta(seconds=self.world.pace.resync * self.world.rng.uniform(0.8, 1.2))


def pause_after(failed: int, choose: Callable[[float, float], float]) -> timedelta:
    """Return how long what failed so many times in a row rests, as ``choose`` takes it of the least
    and the most.
    """
    return timedelta(seconds=backoff(failed, FIRST_PAUSE, LONGEST_PAUSE, choose))


async def _finish(write: Coroutine[Any, Any, Any]) -> None:
    """Await ``write`` to its end even if this task is cancelled meanwhile; then be cancelled."""
    try:
        await to_its_end(write, "last write")
    except asyncio.CancelledError as cancelled:
        if cancelled.__cause__ is not None:
            _log.warning("last_write_failed", error=str(cancelled.__cause__))
        raise
