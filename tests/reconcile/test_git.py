"""What a project starts from, as the reconciler sees to it; the test owns time."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.reconcile.bench import PACE, REF, Bench

from greylag.common.git import CAUSES, CloneState
from greylag.domain.errors import ErrorInfo
from greylag.domain.lifecycle import Observation, Observed, with_git
from greylag.domain.project import Desired, GitSource, ProjectRef, Status
from greylag.domain.users import OPERATOR
from greylag.reconcile import outcomes, reconciler
from greylag.services.secrets import NewSecret

URL = "https://example.org/a.git"
SOURCE = GitSource(URL, "main", 3)
ADDRESS = "memory://user-ada/demo-api"
FAILED = CloneState("failed", "The host does not allow it.", "git_denied", CAUSES["git_denied"])


def cloning(percent: int) -> CloneState:
    return CloneState("cloning", f"Receiving objects: {percent}%.")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "WORKING_PAUSE", 0.001)


async def test_a_project_is_active_when_its_repository_is_there_and_the_log_tells_how_far() -> None:
    bench = Bench()
    bench.gateway.clones[URL] = [cloning(20), cloning(20), cloning(40)]
    bench.gateway.clones[URL].append(CloneState("done", "The repository is cloned."))
    await bench.create(source=SOURCE)
    project = await bench.reach(Desired.ACTIVE)
    assert (project.status, project.error) == (Status.ACTIVE, None)
    setup = bench.gateway.git[ADDRESS]
    assert (setup.url, setup.ref, setup.depth) == (URL, "main", 3)
    events = await bench.store.events("ada", "demo", 0, 500)
    told = [event.message for event in events if event.code.startswith("git_")]
    assert told == [cloning(20).detail, cloning(40).detail, "The repository is cloned."]
    assert events[-1].code == "active"


@pytest.mark.parametrize("asked", [False, True])
async def test_one_on_its_way_to_its_end_has_been_active_only_where_nobody_wanted_it_asleep(
    *, asked: bool
) -> None:
    bench = Bench()
    made = await bench.create(source=SOURCE)
    known = replace(made, status=Status.DEACTIVATING, desired=Desired.ACTIVE, generation=3)
    project = replace(known, observed_generation=2 if asked else 3)
    ready = Observation(Observed.READY, endpoint=ADDRESS)
    seen = with_git(project, ready, None)
    assert seen.state is (Observed.STARTING if asked else Observed.READY)
    assert (seen.error and seen.error.code) == ("agent_unreachable" if asked else None)
    now = bench.clock.now()
    outcome = outcomes.settled(project, Status.ACTIVE, ready, now, timedelta(minutes=1))
    assert outcome.last_activated_at == (now if asked else None)


@pytest.mark.parametrize(("code", "kept"), [("git_denied", True), ("agent_token_lost", False)])
async def test_what_was_told_before_of_the_clone_alone_counts_until_more_is_known(
    code: str, *, kept: bool
) -> None:
    error = ErrorInfo(code, "It went wrong.")
    project = replace(await Bench().create(source=SOURCE), status=Status.ACTIVE, error=error)
    ready = Observation(Observed.READY, endpoint=ADDRESS)
    for state in (None, cloning(20)):
        assert with_git(project, ready, state).error == (error if kept else None)


async def test_what_takes_longer_than_a_start_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    states = bench.gateway.clones[URL] = [cloning(0)] * 3 + [CloneState("done", "Cloned.")]
    original = bench.gateway.set_up_git

    async def slow(*args: object) -> CloneState:
        bench.clock.advance(PACE.activation_timeout / 2)
        return await original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.gateway, "set_up_git", slow)
    await bench.create(source=SOURCE)
    project = await bench.reach(Desired.ACTIVE)
    while project.status is not Status.ACTIVE:  # its lease ran out meanwhile
        assert project.status is Status.ACTIVATING
        await bench.loop.drain()
        project = await bench.project()
    assert len(states) == 1


async def test_a_clone_that_failed_is_told_and_the_project_can_be_used_and_tried_again() -> None:
    bench = Bench()
    bench.gateway.clones[URL] = [FAILED]
    await bench.create(source=SOURCE)
    project = await bench.reach(Desired.ACTIVE)
    assert project.status is Status.ACTIVE
    assert project.error is not None
    assert (project.error.code, project.error.hint) == ("git_denied", CAUSES["git_denied"])
    bench.clock.advance(PACE.resync * 2)
    bench.gateway.unreachable.add(ADDRESS)
    await bench.loop.drain()
    assert (await bench.project()).error == project.error  # an unknown is no news
    bench.gateway.unreachable.clear()
    bench.gateway.clones[URL] = [cloning(0), CloneState("done", "Cloned.")]
    for _ in range(2):
        bench.clock.advance(PACE.resync * 2)
        await bench.loop.drain()
    assert (await bench.project()).error is None


async def test_a_failure_of_which_the_agent_names_no_cause_is_one_of_git() -> None:
    project = await Bench().create(source=SOURCE)
    seen = with_git(project, Observation(Observed.READY), CloneState("failed", "It failed."))
    assert seen.error == ErrorInfo("git_failed", "It failed.")


async def test_one_that_is_cloned_anew_is_at_work_and_not_put_to_sleep() -> None:
    bench = Bench(pace=replace(PACE, idle=60.0))
    await bench.create(source=SOURCE)
    await bench.reach(Desired.ACTIVE)
    bench.gateway.clones[URL] = [cloning(20)]
    bench.gateway.idle_seconds = 3600
    bench.clock.advance(PACE.resync * 2)
    await bench.loop.drain()
    assert (await bench.project()).status is Status.ACTIVE


async def test_an_agent_that_cannot_be_told_holds_up_what_starts_from_a_repository_alone() -> None:
    bench = Bench()
    bench.gateway.unreachable.add(ADDRESS)
    await bench.create()
    assert (await bench.reach(Desired.ACTIVE)).status is Status.ACTIVE
    bench = Bench()
    bench.gateway.unreachable.add(ADDRESS)
    await bench.create(source=SOURCE)
    await bench.want(Desired.ACTIVE)
    working = asyncio.create_task(bench.loop.drain(), name="worker")
    with bench.store.subscribe(REF) as news:
        while (await bench.project()).status is not Status.ACTIVATING:
            await news.changed(5)
    bench.gateway.unreachable.clear()
    await bench.store.poke(REF, bench.clock.now())
    await working
    assert (await bench.project()).status is Status.ACTIVE


async def test_a_secret_reaches_what_runs_and_leaves_it() -> None:
    bench, mine = Bench(secret_key="s" * 32), ProjectRef("me", "demo")
    secrets = bench.use_cases.secrets
    await bench.create(mine)
    await bench.reach(Desired.ACTIVE, mine)
    setup = bench.gateway.git["memory://user-me/demo-api"]
    assert (setup.author, setup.credentials) == (("Me", "me@localhost"), [])
    await secrets.put(OPERATOR, "me", NewSecret("hub", "github.com", "glsecret"))
    await bench.loop.drain()
    (one,) = bench.gateway.git["memory://user-me/demo-api"].credentials
    assert (one.host, one.value) == ("github.com", "glsecret")
    await secrets.remove(OPERATOR, "me", "hub")
    await bench.loop.drain()
    assert not bench.gateway.git["memory://user-me/demo-api"].credentials


async def test_an_environment_that_nobody_wants_active_is_told_of_no_git() -> None:
    bench = Bench()
    await bench.create(source=SOURCE)
    await bench.reach(Desired.ACTIVE)
    bench.gateway.git.clear()
    project = await bench.reach(Desired.INACTIVE)
    assert (project.status, dict(bench.gateway.git)) == (Status.INACTIVE, {})
