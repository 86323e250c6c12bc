"""One pass after the other over memory adapters; the test owns time."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from prometheus_client import REGISTRY
from tests.reconcile.bench import PACE, REF, Bench
from tests.wishes import refresh

from greylag.domain.errors import (
    AgentTokenLostError,
    ClusterError,
    ClusterUnavailableError,
    ErrorInfo,
    OvertakenError,
    ProjectNotFoundError,
    StoreUnavailableError,
)
from greylag.domain.lifecycle import MAX_RESTARTS, PROCESS_STARTED, Observation, Observed, Verb
from greylag.domain.project import (
    Desired,
    Environment,
    Fence,
    GitSource,
    NewEvent,
    Project,
    ProjectRef,
    Status,
)
from greylag.ports import AgentAddress, AgentStatus, Claim, Outcome
from greylag.reconcile import outcomes
from greylag.reconcile.loop import OUTAGE_PAUSE, Slot, WorkLoop
from greylag.reconcile.reconciler import BUSY_PAUSE, TELL_AFTER, Pace

CRASHED = ErrorInfo("crashed", "It crashed.", "Mend it.")


async def test_a_new_project_is_prepared_and_rests_inactive() -> None:
    bench = Bench()
    await bench.create()
    assert await bench.loop.drain() == 1
    project = await bench.project()
    assert (project.status, project.settled, project.due_at) == (Status.INACTIVE, True, None)
    assert project.last_deactivated_at is None
    assert bench.verbs() == [Verb.PREPARE]
    assert await bench.told() == ["preparing", "prepared"]


async def test_activation_records_endpoint_time_and_each_step_once() -> None:
    bench = Bench()
    await bench.create()
    await bench.loop.drain()
    project = await bench.reach(Desired.ACTIVE)
    assert project.status is Status.ACTIVE
    assert project.endpoint is not None
    assert project.last_activated_at == bench.clock.now()
    told = (await bench.told())[2:]
    assert told[0] == "starting"
    assert told[-1] == "active"
    assert len(told) == len(set(told))


async def test_what_a_clock_put_off_that_was_ahead_is_due_once_it_is_set_right() -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    await bench.reconciler._mind_clock()
    assert await bench.loop.drain() == 0
    bench.clock.set_back(8 * 3600)
    assert await bench.loop.drain() == 0
    await bench.reconciler.news()
    assert await bench.loop.drain() == 1


async def test_a_pass_observes_once_and_again_only_after_a_step_or_a_change() -> None:
    bench = Bench(auto=False)
    await bench.create()
    await bench.loop.drain()
    assert bench.observations() == 2  # before and after it was prepared
    await bench.want(Desired.ACTIVE)
    working = asyncio.create_task(bench.loop.drain())
    await bench.until_told(PROCESS_STARTED.code)
    bench.cluster.advance(REF)
    await working
    assert bench.observations() == 3  # before the start, after it, and when it was ready
    bench.clock.advance(PACE.resync * 2)
    await bench.loop.drain()
    assert bench.observations() == 1  # nothing was to be done
    assert (await bench.project()).status is Status.ACTIVE


async def test_deactivation_stops_and_keeps_the_environment() -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    project = await bench.reach(Desired.INACTIVE)
    assert (project.status, project.endpoint) == (Status.INACTIVE, None)
    assert project.last_deactivated_at == bench.clock.now()
    assert bench.verbs()[-1] is Verb.STOP
    assert list(await bench.cluster.inventory()) == [REF]


@pytest.mark.parametrize("desired", [Desired.ACTIVE, Desired.INACTIVE])
async def test_an_environment_that_somebody_removed_with_its_files_says_so(
    desired: Desired,
) -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    await bench.reach(desired)
    before = len(await bench.told())
    bench.cluster.vanish(REF)
    bench.clock.advance(PACE.resync * 2)
    project = await bench.reach(Desired.ACTIVE)
    assert (project.status, project.error) == (Status.ACTIVE, None)
    assert (await bench.told())[before] == "environment_gone"


async def test_deletion_stops_deletes_and_forgets() -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    await bench.want(Desired.DELETED)
    await bench.loop.drain()
    with pytest.raises(ProjectNotFoundError):
        await bench.project()
    assert bench.verbs()[-2:] == [Verb.STOP, Verb.DELETE]
    assert not await bench.cluster.inventory()


async def test_a_wish_changed_while_it_is_starting_is_seen_at_once() -> None:
    bench = Bench(auto=False)
    working = await bench.starting()
    await bench.until_it_is(Status.ACTIVATING)
    await bench.want(Desired.INACTIVE)
    await bench.until_it_is(Status.DEACTIVATING)
    while not working.done():
        bench.cluster.advance(REF)
        await asyncio.sleep(0)
    await working
    assert (await bench.project()).status is Status.INACTIVE


async def test_a_start_that_is_wished_for_again_while_it_is_stopped_is_told_whole() -> None:
    bench = Bench(auto=False)
    working = await bench.starting()
    await bench.until_told(PROCESS_STARTED.code)
    await bench.want(Desired.INACTIVE)
    await bench.until_it_is(Status.DEACTIVATING)
    await bench.want(Desired.ACTIVE)
    while not working.done():
        bench.cluster.advance(REF)
        await asyncio.sleep(0)
    await working
    assert (await bench.project()).status is Status.ACTIVE
    told = (await bench.told())[2:]
    assert told.count("starting") == told.count(PROCESS_STARTED.code) == 2


async def test_what_cannot_work_is_told_where_it_becomes_active_and_nowhere_else() -> None:
    bench, said = Bench(), NewEvent("no_model", "There is no model.")
    bench.reconciler._world = replace(bench.reconciler._world, warnings=lambda: [said])
    await bench.create()
    await bench.loop.drain()
    for desired in (Desired.ACTIVE, Desired.INACTIVE):
        await bench.reach(desired)
        assert (await bench.told()).count("no_model") == 1


async def test_a_terminal_refusal_is_recorded_with_its_code_and_rests() -> None:
    bench = Bench()
    await bench.create()
    error = ClusterError("No such image.", code="image_not_found", hint="Mend it.", terminal=True)
    bench.cluster.fail_next(REF, Verb.START, error)
    project = await bench.reach(Desired.ACTIVE)
    assert (project.status, project.error) == (Status.ERROR, error.info)
    assert (project.settled, project.due_at, project.error_terminal) == (True, None, True)
    again = await bench.reach(Desired.ACTIVE)
    assert again.status is Status.ACTIVE
    assert again.error is None


@pytest.mark.parametrize("verb", [Verb.STOP, Verb.DELETE])
async def test_a_terminal_refusal_of_an_end_is_told_and_tried_again(verb: Verb) -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    error = ClusterError("No right.", code="cluster_forbidden", terminal=True)
    bench.cluster.fail_next(REF, verb, error)
    project = await bench.reach(Desired.DELETED)
    assert (project.status, project.error) == (Status.ERROR, error.info)
    bench.clock.advance(PACE.resync * 2)
    await bench.loop.drain()
    with pytest.raises(ProjectNotFoundError):
        await bench.project()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    ("desired", "verb", "begins"),
    [
        (Desired.DELETED, Verb.DELETE, "deleting"),
        (Desired.DELETED, Verb.STOP, "stopping"),
        (Desired.INACTIVE, Verb.STOP, "stopping"),
    ],
)
async def test_an_end_that_is_refused_for_hours_leaves_its_cause_in_the_log(
    desired: Desired, verb: Verb, begins: str, *, terminal: bool
) -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    error = ClusterError("No right.", code="cluster_forbidden", terminal=terminal)

    async def tried(seconds: float) -> None:
        end = bench.clock.monotonic() + seconds
        while bench.clock.monotonic() < end:
            bench.cluster.fail_next(REF, verb, error)
            await bench.loop.drain()
            bench.clock.advance(61)

    await bench.want(desired)
    await tried(PACE.activation_timeout + 61)
    project, told = await bench.project(), await bench.told()
    assert (project.status, project.error) == (Status.ERROR, error.info)
    assert (begins in told, "cluster_forbidden" in told) == (True, True)
    await tried(3600)
    assert await bench.told() == told
    assert (await bench.project()).deadline_at == project.deadline_at

    # The same wish anew is told of like the first.
    await bench.want(desired)
    bench.cluster.fail_next(REF, verb, error)
    await bench.loop.drain()
    assert (await bench.told())[len(told) :][0] == begins


async def test_a_start_that_is_refused_for_hours_is_told_again_when_it_is_taken() -> None:
    bench = Bench()
    await bench.create()
    await bench.loop.drain()
    await bench.want(Desired.ACTIVE)
    error = ClusterError("No room.", code="quota_exceeded")

    async def refused(times: int) -> None:
        for _ in range(times):
            bench.cluster.fail_next(REF, Verb.START, error)
            await bench.loop.drain()
            bench.clock.advance(61)

    await refused(4)
    project, told = await bench.project(), await bench.told()
    assert (project.status, project.error) == (Status.ERROR, error.info)
    assert {"starting", "quota_exceeded"} < set(told)
    await refused(60)
    assert await bench.told() == told
    await bench.loop.drain()
    assert (await bench.project()).status is Status.ACTIVE
    since = (await bench.told())[len(told) :]
    assert (since[0], since.count("starting"), since[-1]) == ("starting", 1, "active")


async def test_a_deletion_keeps_its_deadline_whatever_it_meets() -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    bench.cluster.auto = False

    async def begins_to_stop() -> tuple[asyncio.Task[int], Project]:
        working = asyncio.create_task(bench.loop.drain())
        with bench.store.subscribe(REF) as news:
            while (project := await bench.project()).status is not Status.DEACTIVATING:
                await news.changed(5)
        return working, project

    wanted = await bench.want(Desired.DELETED)
    working, _ = await begins_to_stop()
    bench.cluster.lose(REF)
    await working
    bench.clock.advance(PACE.activation_timeout + 1)
    await bench.loop.drain()
    assert (await bench.project()).status is Status.ERROR
    bench.cluster.find(REF)  # it is still being stopped
    bench.clock.advance(61)
    working, project = await begins_to_stop()
    assert project.deadline_at == wanted.deadline_at
    bench.cluster.advance(REF)
    await working
    with pytest.raises(ProjectNotFoundError):
        await bench.project()


async def test_a_passing_refusal_is_tried_again_after_a_pause() -> None:
    bench = Bench()
    await bench.create()
    bench.cluster.fail_next(REF, Verb.START, ClusterError("Busy.", code="busy"))
    project = await bench.reach(Desired.ACTIVE)
    assert project.status is Status.ACTIVATING
    assert project.attempts == 1
    assert project.due_at is not None
    assert project.due_at > bench.clock.now()
    assert await bench.loop.drain() == 0
    bench.clock.advance(60)
    assert await bench.loop.drain() == 1
    assert (await bench.project()).status is Status.ACTIVE


async def test_an_unknown_environment_keeps_its_status_and_endpoint() -> None:
    bench = Bench()
    await bench.create()
    before = await bench.reach(Desired.ACTIVE)
    bench.cluster.lose(REF)
    bench.clock.advance(PACE.resync * 2)
    await bench.loop.drain()
    project = await bench.project()
    assert (project.status, project.endpoint) == (Status.ACTIVE, before.endpoint)
    assert project.error is not None
    assert project.error.code == "cluster_unavailable"
    assert Verb.STOP not in bench.verbs()
    bench.cluster.find(REF)
    bench.clock.advance(PACE.resync * 2)
    await bench.loop.drain()
    assert (await bench.project()).error is None


async def test_why_a_cluster_does_not_say_how_it_stands_is_told_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)

    async def refused(_: object) -> Observation:
        raise ClusterError("Pods may not be listed.", code="cluster_refused", hint="Grant it.")

    monkeypatch.setattr(bench.cluster, "observe", refused)
    bench.clock.advance(PACE.resync * 2)
    await bench.loop.drain()
    project = await bench.project()
    assert project.status is Status.ACTIVE
    assert project.error == ErrorInfo("cluster_refused", "Pods may not be listed.", "Grant it.")


async def test_nobody_waits_for_ever_for_a_cluster_that_is_gone() -> None:
    bench = Bench()
    await bench.create()
    await bench.loop.drain()
    bench.cluster.lose(REF)
    assert not (await bench.reach(Desired.ACTIVE)).settled
    bench.clock.advance(PACE.activation_timeout + 1)
    await bench.loop.drain()
    project = await bench.project()
    assert (project.status, project.settled) == (Status.ERROR, True)
    bench.cluster.find(REF)
    bench.clock.advance(PACE.resync * 2)
    await bench.loop.drain()
    assert (await bench.project()).status is Status.ACTIVE


async def test_an_environment_that_ends_unasked_is_started_again() -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    bench.cluster.end(REF, CRASHED)
    await bench.store.poke(REF, bench.clock.now())
    await bench.loop.drain()
    project = await bench.project()
    assert (project.status, project.attempts) == (Status.ACTIVE, 1)
    assert (await bench.told())[-6:-4] == ["crashed", "ended_unasked"]
    bench.clock.advance(PACE.resync * 3)
    await bench.loop.drain()
    bench.clock.advance(PACE.resync * 3)
    await bench.loop.drain()
    assert (await bench.project()).attempts == 0


async def test_why_one_is_active_no_more_is_kept_and_told_until_it_is_active_again() -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    bench.cluster.auto = False
    bench.cluster.stumble(REF, CRASHED)
    await bench.store.poke(REF, bench.clock.now())
    working = asyncio.create_task(bench.loop.drain())
    with bench.store.subscribe(REF) as news:
        while (project := await bench.project()).status is not Status.ACTIVATING:
            await news.changed(5)
    assert project.error == CRASHED
    assert (await bench.told())[-1] == "crashed"
    bench.cluster.advance(REF)
    await working
    project = await bench.project()
    assert (project.status, project.error) == (Status.ACTIVE, None)
    assert (await bench.told())[-2:] == ["crashed", "active"]


async def test_an_active_one_that_a_worker_has_not_heard_yet_stays_active_for_a_while() -> None:
    def is_unheard_still(seconds: float) -> None:
        bench.clock.advance(seconds)
        bench.cluster.stumble(REF, replace(CRASHED, message="Still."), unheard=True)

    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    before = await bench.told()
    bench.cluster.auto = False
    for seconds in (TELL_AFTER.total_seconds() - 1, TELL_AFTER.total_seconds()):
        bench.observations()
        bench.cluster.stumble(REF, CRASHED, unheard=True)
        await bench.store.poke(REF, bench.clock.now())
        working = asyncio.create_task(bench.loop.drain())
        then = [partial(is_unheard_still, seconds), partial(bench.cluster.advance, REF)]
        while not working.done():
            await asyncio.sleep(0)
            if bench.observations() and then:
                then.pop(0)()
        lasts = seconds >= TELL_AFTER.total_seconds()
        assert await bench.told() == [*before, *(["crashed", "active"] if lasts else [])]
    assert ((project := await bench.project()).status, project.error) == (Status.ACTIVE, None)


@pytest.mark.parametrize("state", [Observed.STOPPING, Observed.STOPPED])
async def test_one_that_is_stopped_unasked_says_so(state: Observed) -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    before = len(await bench.told())
    bench.cluster.auto = False
    bench.cluster._set(REF, Observation(state))
    await bench.store.poke(REF, bench.clock.now())
    working = asyncio.create_task(bench.loop.drain())
    while not working.done():
        await asyncio.sleep(0)
        if (await bench.project()).status is not Status.ACTIVE:
            bench.cluster.advance(REF)
    told = await bench.told()
    assert (told[before], told.count("environment_drifted")) == ("environment_drifted", 1)
    assert ((project := await bench.project()).status, project.error) == (Status.ACTIVE, None)


async def test_what_keeps_one_from_its_start_is_told_before_its_time_is_over() -> None:
    bench = Bench(auto=False)
    working = await bench.starting()
    await bench.until_told(PROCESS_STARTED.code)
    bench.cluster.stumble(REF, CRASHED)
    while CRASHED.code not in await bench.told():
        assert (await bench.project()).error is None
        bench.clock.advance(1)
        bench.cluster.stumble(REF, replace(CRASHED, message=f"{bench.clock.now()}"))
        await asyncio.sleep(0)
    told = await bench.project()
    assert (told.status, told.error) != (Status.ACTIVE, None)
    bench.clock.advance(60)
    bench.cluster.stumble(REF, replace(CRASHED, message="Once more."))
    bench.cluster.advance(REF)
    await working
    assert (await bench.told()).count(CRASHED.code) == 1
    assert (await bench.project()).error is None


async def test_what_is_wrong_with_one_that_runs_is_told_once_and_kept_while_it_is_so() -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    before = await bench.told()
    for wrong in (CRASHED, CRASHED, None):
        bench.cluster.warn(REF, wrong)
        await bench.store.poke(REF, bench.clock.now())
        await bench.loop.drain()
        project = await bench.project()
        assert (project.status, project.error) == (Status.ACTIVE, wrong)
    assert await bench.told() == [*before, "crashed"]


async def test_one_that_keeps_ending_is_given_up_after_some_restarts() -> None:
    bench = Bench(auto=False)
    await bench.create()
    await bench.loop.drain()
    await bench.want(Desired.ACTIVE)
    for _ in range(MAX_RESTARTS * 3):
        working = asyncio.create_task(bench.loop.drain())
        await asyncio.sleep(0)
        while not working.done():
            if bench.verbs()[-1:] == [Verb.START]:
                bench.cluster.end(REF, CRASHED)
            await asyncio.sleep(0)
        await working
        bench.clock.advance(61)
    project = await bench.project()
    assert (project.status, project.error, project.due_at) == (Status.ERROR, CRASHED, None)
    assert bench.verbs().count(Verb.START) <= MAX_RESTARTS + 1


async def test_an_activation_that_takes_too_long_fails_and_still_may_come() -> None:
    bench = Bench(auto=False)
    working = await bench.starting()
    await bench.until_it_is(Status.ACTIVATING)
    bench.clock.advance(PACE.activation_timeout + 1)
    await bench.store.poke(REF, bench.clock.now())
    await working
    project = await bench.project()
    assert project.status is Status.ERROR
    assert project.error is not None
    assert project.error.code == "activation_timeout"
    bench.cluster.advance(REF)
    bench.clock.advance(PACE.resync * 2)
    await bench.loop.drain()
    assert (await bench.project()).status is Status.ACTIVE


async def test_a_cancelled_pass_hands_its_claim_back_at_once() -> None:
    bench = Bench(auto=False)
    working = await bench.starting()
    await bench.until_told(PROCESS_STARTED.code)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    bench.cluster.advance(REF)
    await bench.another("w2").handle(_some(await bench.another("w2").claim()), Slot())
    assert (await bench.project()).status is Status.ACTIVE
    assert bench.verbs().count(Verb.START) == 1


async def test_a_worker_whose_lease_ran_out_writes_nothing() -> None:
    bench = Bench(auto=False)
    await bench.create()
    await bench.loop.drain()
    await bench.want(Desired.ACTIVE)
    gate = bench.cluster.hang(REF, Verb.START)
    slow = asyncio.create_task(bench.loop.drain())
    await bench.until_it_is(Status.ACTIVATING)
    bench.clock.advance(PACE.lease + 1)
    other = bench.another("w2")
    claim = _some(await other.claim())
    gate.set()
    await slow
    project = await bench.project()
    assert project.lease == claim.project.lease


async def test_records_from_an_older_copy_are_taken_over_in_one_pass_and_told_of() -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    active = await bench.project()
    await bench.cluster.prepare(replace(active.environment, fence=Fence(active.id, 900)))
    await bench.want(Desired.INACTIVE)
    await bench.loop.drain()
    project = await bench.project()
    assert (project.status, project.settled) == (Status.INACTIVE, True)
    assert (await bench.told())[-3:] == ["stopping", "records_restored", "inactive"]
    await bench.reach(Desired.ACTIVE)
    assert (await bench.told()).count("records_restored") == 1


async def outdated(pace: Pace = PACE, source: GitSource | None = None) -> Bench:
    """Return one whose project runs with settings that are not those of now, and knows it."""
    bench = Bench(pace=pace)
    await bench.create(source=source)
    await bench.reach(Desired.ACTIVE)
    bench.cluster.outdate(REF, "new-image")
    await bench.store.poke(REF, bench.clock.now())
    await bench.loop.drain()
    return bench


async def test_what_is_outdated_is_started_anew_when_asked_and_nobody_is_answered() -> None:
    bench = await outdated()
    before = bench.verbs()
    project = await bench.project()
    assert (project.outdated, project.status) == ("new-image", Status.ACTIVE)

    at = await bench.cluster.reach(project.environment)
    turn = await bench.gateway.start_turn(at, None, "wait: a while", "m1")
    await refresh(bench.store, REF.user_id, REF.project_id, bench.clock.now())
    await bench.loop.drain()
    assert ((await bench.project()).status, bench.verbs()) == (Status.ACTIVE, before)

    await bench.gateway.cancel_turn(at, turn.turn_id)
    bench.clock.advance(BUSY_PAUSE + 1)
    await bench.loop.drain()
    project = await bench.project()
    assert (project.outdated, project.status, project.settled) == (None, Status.ACTIVE, True)
    assert bench.verbs() == [*before, Verb.STOP, Verb.START]
    assert "refreshing" in await bench.told()

    # Other settings are another wish.
    bench.cluster.outdate(REF, "newer-image")
    await bench.store.poke(REF, bench.clock.now())
    await bench.loop.drain()
    assert bench.verbs() == [*before, Verb.STOP, Verb.START]


def _activations() -> float:
    return REGISTRY.get_sample_value("greylag_activation_seconds_count") or 0


async def test_whoever_comes_just_before_it_is_started_anew_is_answered_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await outdated()
    before = bench.verbs()
    at = await bench.cluster.reach((await bench.project()).environment)
    ask = bench.gateway.status

    async def somebody_comes(where: AgentAddress) -> AgentStatus:
        monkeypatch.setattr(bench.gateway, "status", ask)
        nobody = await ask(where)
        await bench.gateway.start_turn(at, None, "wait: a while", "m1")
        return nobody

    await refresh(bench.store, REF.user_id, REF.project_id, bench.clock.now())
    monkeypatch.setattr(bench.gateway, "status", somebody_comes)
    since, counted = (await bench.project()).last_activated_at, _activations()
    bench.clock.advance(1)
    await bench.loop.drain()
    project = await bench.project()
    assert (project.status, project.settled, bench.verbs()) == (Status.ACTIVE, True, before)
    assert (project.last_activated_at, _activations()) == (since, counted)  # it never ended

    turn = await bench.gateway.start_turn(at, None, "wait: a while", "m1")
    await bench.gateway.cancel_turn(at, turn.turn_id)
    bench.clock.advance(BUSY_PAUSE + 1)
    await bench.loop.drain()
    assert bench.verbs() == [*before, Verb.STOP, Verb.START]


@pytest.mark.parametrize("source", [None, GitSource("https://git.example/x.git", "main", 3)])
@pytest.mark.parametrize("error", [AgentTokenLostError, ClusterUnavailableError])
async def test_one_that_nobody_can_reach_any_more_is_started_anew_when_asked(
    error: type[ClusterError], source: GitSource | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await outdated(source=source)
    before = bench.verbs()

    async def lost(_: object) -> AgentAddress:
        raise error("Its key is gone.")

    if error is AgentTokenLostError:
        stop = bench.cluster.stop

        async def stopped(environment: Environment) -> None:
            monkeypatch.undo()
            await stop(environment)

        monkeypatch.setattr(bench.cluster, "stop", stopped)
    monkeypatch.setattr(bench.cluster, "reach", lost)
    await refresh(bench.store, REF.user_id, REF.project_id, bench.clock.now())
    await bench.loop.drain()
    anew = [Verb.STOP, Verb.START] if error is AgentTokenLostError else []
    assert bench.verbs() == [*before, *anew]


async def test_an_agent_that_hangs_costs_no_lease_however_often_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await outdated(pace=replace(PACE, lease=2.0))
    await refresh(bench.store, REF.user_id, REF.project_id, bench.clock.now())

    async def hangs(*_: object) -> None:
        began = asyncio.get_running_loop().time()
        try:
            await asyncio.Event().wait()
        finally:
            bench.clock.advance(asyncio.get_running_loop().time() - began)

    for question in ("set_up_git", "status"):
        monkeypatch.setattr(bench.gateway, question, hangs)
    began = bench.clock.now()
    claim = _some(await bench.reconciler.claim())
    await bench.reconciler.handle(claim, Slot())
    project = await bench.project()
    assert bench.clock.now() - began < timedelta(seconds=2)
    assert (project.lease, project.status) == (None, Status.ACTIVE)


@pytest.mark.parametrize("terminal", [False, True])
async def test_a_new_start_whose_stop_is_refused_is_told_once_and_gets_its_time(
    *, terminal: bool
) -> None:
    bench = await outdated()
    await refresh(bench.store, REF.user_id, REF.project_id, bench.clock.now())
    for _ in range(5):
        bench.cluster.fail_next(
            REF, Verb.STOP, ClusterError("Busy.", code="busy", terminal=terminal)
        )
        await bench.loop.drain()
        bench.clock.advance(PACE.resync * 2)
    await bench.loop.drain()
    assert (await bench.project()).status is Status.ACTIVE
    told = await bench.told()
    # What has failed for good is told anew once the cluster takes it.
    begun = 2 if terminal else 1
    assert (told.count("refreshing"), told.count("busy"), told[-1]) == (begun, 1, "active")
    assert "stopping" not in told


async def test_a_new_start_starts_whatever_has_failed_for_good_before_it() -> None:
    bench = await outdated()
    now = bench.clock.now()
    await refresh(bench.store, REF.user_id, REF.project_id, now)
    claim = await bench.store.claim_due("another", now, PACE.lease)
    assert claim is not None
    given_up = outcomes.failed(claim.project, CRASHED, terminal=True, due_at=now)
    await bench.store.record(claim, given_up, now, release=True)
    await bench.loop.drain()
    project = await bench.project()
    assert (project.status, project.error, project.outdated) == (Status.ACTIVE, None, None)


async def test_two_stores_from_one_copy_do_not_outbid_each_other_in_one_pass() -> None:
    bench = Bench()
    await bench.create()
    await bench.reach(Desired.ACTIVE)
    ahead = itertools.count(10**15, 10**12)

    async def outbidden(_: object) -> None:
        raise OvertakenError(next(ahead))

    bench.cluster.stop = outbidden  # type: ignore[method-assign, assignment]
    await bench.want(Desired.INACTIVE)
    claim = _some(await bench.reconciler.claim())
    await bench.reconciler.handle(claim, Slot())
    assert next(ahead) == 10**15 + 2 * 10**12


async def test_a_fault_in_one_project_stops_no_other() -> None:
    bench = Bench()
    other = ProjectRef("ada", "other")
    await bench.create()
    await bench.create(other)
    bench.cluster.fail_next(REF, Verb.PREPARE, _FaultError())  # type: ignore[arg-type] # a fault, on purpose
    assert await bench.loop.drain() == 2
    broken, fine = await bench.project(), await bench.project(other)
    assert broken.error is not None
    assert broken.error.code == "internal_error"
    assert fine.error is None
    bench.clock.advance(61)
    await bench.loop.drain()
    assert (await bench.project()).error is None


async def test_a_fault_that_cannot_be_recorded_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    other = ProjectRef("ada", "other")
    await bench.create()
    await bench.create(other)
    record = bench.store.record

    async def broken(claim: Claim, outcome: Outcome, now: datetime, *, release: bool) -> Project:
        if claim.project.ref == REF:
            raise _FaultError
        return await record(claim, outcome, now, release=release)

    monkeypatch.setattr(bench.store, "record", broken)
    assert await bench.loop.drain() == 2
    # It is taken again once its lease has run out.
    monkeypatch.undo()
    bench.clock.advance(PACE.lease + 1)
    assert await bench.loop.drain() == 1


async def test_a_cluster_that_hangs_costs_one_step_not_the_lease() -> None:
    bench = Bench(pace=replace(PACE, lease=0.2))
    await bench.create()
    bench.cluster.hang(REF, Verb.PREPARE)
    await bench.loop.drain()
    project = await bench.project()
    assert project.error is not None
    assert "too long" in project.error.message
    assert project.due_at is not None
    assert project.due_at - bench.clock.now() <= timedelta(seconds=60)


async def test_a_store_that_is_away_is_waited_out_and_then_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    await bench.create()
    began = bench.clock.monotonic()

    async def away(*_: object) -> None:
        raise StoreUnavailableError("It is away.")

    with monkeypatch.context() as outage:
        outage.setattr(bench.store, "claim_due", away)
        outage.setattr(bench.store, "next_due", away)
        assert await bench.reconciler.claim() is None
        await bench.reconciler.news()
    assert bench.clock.monotonic() - began == 2 * OUTAGE_PAUSE
    assert await bench.loop.drain() == 1


async def test_unavailable_is_not_terminal() -> None:
    assert not ClusterUnavailableError("Gone.").terminal


class _FaultError(Exception):
    """Not one of ours: a programming error in an adapter."""


def _some(claim: Claim | None) -> Claim:
    assert claim is not None
    return claim


async def test_a_worker_that_slept_past_its_lease_does_nothing_to_the_environment() -> None:
    bench = Bench()
    await bench.create()
    claim = await bench.reconciler.claim()
    assert claim is not None
    bench.clock.advance(PACE.lease + 1)
    await bench.reconciler.handle(claim, Slot())
    assert bench.verbs() == []
    await bench.loop.drain()
    assert bench.verbs() == [Verb.PREPARE]


async def test_environments_that_do_not_start_hold_up_nobody_elses() -> None:
    bench = Bench(auto=False)
    bench.loop = WorkLoop(bench.reconciler, concurrency=1)
    stuck = [ProjectRef("ada", f"p{number}") for number in range(3)]
    for ref in (*stuck, REF):
        await bench.create(ref)
    await bench.loop.drain()
    loop = asyncio.create_task(bench.loop.run())
    async with asyncio.timeout(10):  # where they do, it would wait for ever
        for ref in (*stuck, REF):
            await bench.want(Desired.ACTIVE, ref)
            await _starts(bench, ref)
        bench.cluster.advance(REF)
        with bench.store.subscribe(REF) as news:
            while (await bench.project()).status is not Status.ACTIVE:
                await news.changed(5)
    assert {(await bench.project(ref)).status for ref in stuck} == {Status.ACTIVATING}
    loop.cancel()
    await asyncio.wait([loop])


async def _starts(bench: Bench, ref: ProjectRef) -> None:
    """Return once the log tells that it starts."""
    with bench.store.subscribe(ref) as news:
        while PROCESS_STARTED.code not in await bench.told(ref):
            await news.changed(5)


def _number(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"greylag_{name}", labels) or 0


async def test_an_activation_counts_once_and_by_the_time_since_it_was_wished_for() -> None:
    count, total = _number("activation_seconds_count"), _number("activation_seconds_sum")
    bench = Bench()
    await bench.create()
    await bench.loop.drain()
    await bench.want(Desired.ACTIVE)
    bench.clock.advance(7)
    await bench.loop.drain()
    bench.clock.advance(PACE.resync * 2)
    await bench.loop.drain()
    assert _number("activation_seconds_count") == count + 1
    assert _number("activation_seconds_sum") == pytest.approx(total + 7)


async def test_where_projects_come_to_rest_is_counted_with_what_is_wrong() -> None:
    def counted(status: Status, error: str = "") -> float:
        return _number("reconcile_passes_total", status=status, error=error)

    well, failed = counted(Status.ACTIVE), counted(Status.ACTIVATING, "cluster_unavailable")
    bench = Bench()
    await bench.create()
    await bench.loop.drain()
    bench.cluster.fail_next(REF, Verb.START, ClusterUnavailableError("It does not answer."))
    await bench.reach(Desired.ACTIVE)
    assert counted(Status.ACTIVATING, "cluster_unavailable") == failed + 1
    assert counted(Status.ACTIVE) == well
    bench.clock.advance(PACE.resync)
    await bench.loop.drain()
    assert counted(Status.ACTIVE) == well + 1


async def _unused(idle_seconds: float | None, longest: float | None = 3600) -> Bench:
    """Return a bench whose project is active, and looked at when nobody has used it for so long."""
    bench = Bench(pace=replace(PACE, idle=longest))
    await bench.create()
    await bench.loop.drain()
    await bench.reach(Desired.ACTIVE)
    bench.gateway.idle_seconds = idle_seconds
    bench.clock.advance(3600)
    await bench.loop.drain()
    return bench


async def test_what_nobody_has_used_for_long_is_put_to_sleep_and_says_so() -> None:
    bench = await _unused(3600)
    project = await bench.project()
    assert (project.desired, project.status) == (Desired.INACTIVE, Status.INACTIVE)
    assert project.settled
    told = await bench.told()
    assert told[told.index("unused") :] == ["unused", "stopping", "inactive"]
    # It is woken as any other, and not put to sleep at once.
    bench.gateway.idle_seconds = 0
    assert (await bench.reach(Desired.ACTIVE)).status is Status.ACTIVE


async def test_a_terminal_that_is_only_watched_keeps_nothing_awake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await _unused(0)
    status = bench.gateway.status

    async def watched(at: AgentAddress) -> AgentStatus:
        return replace(await status(at), busy=True, idle_seconds=3600)

    monkeypatch.setattr(bench.gateway, "status", watched)
    bench.clock.advance(3600)
    await bench.loop.drain()
    assert (await bench.project()).status is Status.INACTIVE


@pytest.mark.parametrize("idle_seconds", [0, 3599, None])
async def test_what_is_used_or_of_which_nothing_is_known_stays_awake(
    idle_seconds: float | None,
) -> None:
    assert (await (await _unused(idle_seconds)).project()).status is Status.ACTIVE


async def test_nothing_is_put_to_sleep_where_nobody_has_asked_for_that() -> None:
    assert (await (await _unused(1e9, None)).project()).status is Status.ACTIVE


async def test_whoever_comes_while_it_is_put_to_sleep_keeps_it_awake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(pace=replace(PACE, idle=3600))
    await bench.create()
    await bench.loop.drain()
    await bench.reach(Desired.ACTIVE)
    starts = bench.verbs()
    asked = iter([3600.0, 0.0])
    status = bench.gateway.status

    async def used_between(at: AgentAddress) -> AgentStatus:
        return replace(await status(at), idle_seconds=next(asked))

    monkeypatch.setattr(bench.gateway, "status", used_between)
    bench.clock.advance(3600)
    await bench.loop.drain()
    assert next(asked, None) is None
    project = await bench.project()
    assert (project.desired, project.status) == (Desired.ACTIVE, Status.ACTIVE)
    assert project.settled
    assert bench.verbs() == starts


async def test_a_wish_for_it_is_use_whatever_the_agent_has_heard_of() -> None:
    bench = await _unused(0)
    bench.gateway.idle_seconds = 1e6
    await bench.reach(Desired.INACTIVE)
    assert (await bench.reach(Desired.ACTIVE)).status is Status.ACTIVE
    bench.clock.advance(3599)
    await bench.loop.drain()
    assert (await bench.project()).status is Status.ACTIVE


async def _put_to_sleep_as(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, then: Callable[[], Awaitable[None]]
) -> Project:
    """Return what becomes of an unused project of which ``then`` is so once its sleep is wished."""
    change = bench.store.change

    async def changed(*given: Any) -> Project:
        monkeypatch.undo()
        project = await change(*given)
        await then()
        return project

    monkeypatch.setattr(bench.store, "change", changed)
    bench.gateway.idle_seconds = 3600
    bench.clock.advance(3600)
    await bench.loop.drain()
    return await bench.project()


async def test_whoever_wakes_it_while_it_is_put_to_sleep_has_it_stay_awake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await _unused(0)

    async def woken() -> None:
        await bench.want(Desired.ACTIVE)

    project = await _put_to_sleep_as(bench, monkeypatch, woken)
    assert (project.status, project.settled) == (Status.ACTIVE, True)
    assert (await bench.told()).count("unused") == 1


async def test_whoever_wishes_it_to_sleep_while_it_is_put_to_sleep_has_it_sleep_used_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await _unused(0)

    async def wished() -> None:
        bench.gateway.idle_seconds = 0
        await bench.want(Desired.INACTIVE)

    project = await _put_to_sleep_as(bench, monkeypatch, wished)
    assert (project.status, project.settled) == (Status.INACTIVE, True)


async def test_one_that_cannot_be_asked_again_stays_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await _unused(0)

    async def unknown() -> None:
        bench.cluster.lose(REF)

    project = await _put_to_sleep_as(bench, monkeypatch, unknown)
    assert (project.desired, project.status) == (Desired.ACTIVE, Status.ACTIVE)
    assert bench.verbs() == [Verb.PREPARE, Verb.START]


async def test_it_is_not_put_to_sleep_where_more_was_wanted_while_its_agent_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await _unused(0)
    status, questions = bench.gateway.status, itertools.count(1)

    async def asked(at: AgentAddress) -> AgentStatus:
        if next(questions) == 2:  # what was said has been copied
            await bench.want(Desired.INACTIVE)
            await bench.want(Desired.ACTIVE)
        return replace(await status(at), idle_seconds=3600)

    monkeypatch.setattr(bench.gateway, "status", asked)
    bench.clock.advance(3600)
    await bench.loop.drain()
    project = await bench.project()
    assert (project.status, project.generation) == (Status.ACTIVE, 4)


async def _left_by_a_killed_worker(idle_seconds: float) -> Bench:
    """Return a bench whose project a worker wished to sleep, and was killed before it did more."""
    bench = await _unused(0)
    bench.gateway.idle_seconds = idle_seconds
    assert await bench.use_cases.projects.sleep_unused(await bench.project())
    return bench


async def test_who_takes_on_a_sleep_that_a_killed_worker_wished_asks_again_whether_it_is_used() -> (
    None
):
    bench = await _left_by_a_killed_worker(0)
    await bench.loop.drain()
    project = await bench.project()
    assert (project.desired, project.status) == (Desired.ACTIVE, Status.ACTIVE)
    assert project.settled
    assert bench.verbs() == [Verb.PREPARE, Verb.START]


async def test_a_new_worker_that_does_not_reach_it_yet_stops_nothing_unasked() -> None:
    bench = await _left_by_a_killed_worker(0)
    bench.cluster.auto = False
    bench.cluster.stumble(REF, CRASHED, unheard=True)
    bench.observations()
    working = asyncio.create_task(bench.loop.drain())
    while not working.done():
        await asyncio.sleep(0)
        if bench.observations() or bench.verbs()[-1] is Verb.STOP:
            bench.cluster.advance(REF)
    project = await bench.project()
    assert (project.desired, project.status) == (Desired.ACTIVE, Status.ACTIVE)
    assert bench.verbs() == [Verb.PREPARE, Verb.START]


async def test_what_is_still_unused_sleeps_though_the_worker_that_wished_it_was_killed() -> None:
    bench = await _left_by_a_killed_worker(3600)
    await bench.loop.drain()
    project = await bench.project()
    assert (project.desired, project.status) == (Desired.INACTIVE, Status.INACTIVE)
    assert project.settled


async def test_what_people_wish_to_sleep_is_not_asked_though_nobody_s_wish_was_there_before() -> (
    None
):
    bench = await _left_by_a_killed_worker(0)
    project = await bench.reach(Desired.INACTIVE)
    assert (project.desired, project.status) == (Desired.INACTIVE, Status.INACTIVE)


async def test_a_sleep_of_nobody_s_wish_that_does_not_come_about_is_an_error_after_its_time() -> (
    None
):
    bench = await _left_by_a_killed_worker(3600)
    late = ClusterUnavailableError("The cluster does not answer.")
    for status in (Status.DEACTIVATING, Status.ERROR):
        bench.cluster.fail_next(REF, Verb.STOP, late)
        await bench.loop.drain()
        project = await bench.project()
        assert (project.status, project.error) == (status, late.info)
        bench.clock.advance(PACE.activation_timeout)
    await bench.loop.drain()
    assert (await bench.project()).status is Status.INACTIVE
