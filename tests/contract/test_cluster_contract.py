"""What every cluster promises."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cluster.environments import PATIENCE, accepted, doing, reaches
from tests.contract.cluster_adapters import CLUSTERS, named_for, open_cluster
from tests.contract.store_adapters import make_project

from greylag.domain.errors import ClusterError, LeaseLostError, NotActiveError
from greylag.domain.lifecycle import Observed
from greylag.domain.project import Lease, Project
from greylag.ports import Cluster


@pytest.fixture(params=CLUSTERS)
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    """Each cluster in turn, empty."""
    async with open_cluster(request.param, tmp_path / "environments") as opened:
        yield opened


@pytest.fixture
def project(cluster: Cluster) -> Project:
    return named_for(cluster, make_project())


async def state(cluster: Cluster, project: Project) -> Observed:
    return (await cluster.observe(project.environment)).state


async def test_what_was_never_made_is_absent(cluster: Cluster, project: Project) -> None:
    assert await state(cluster, project) is Observed.ABSENT
    assert list(await cluster.inventory()) == []


async def test_what_is_absent_may_be_stopped_and_deleted(
    cluster: Cluster, project: Project
) -> None:
    await cluster.stop(project.environment)
    await cluster.delete(project.environment)
    assert await state(cluster, project) is Observed.ABSENT


async def test_a_prepared_environment_is_stopped_and_listed(
    cluster: Cluster, project: Project
) -> None:
    await cluster.prepare(project.environment)
    await cluster.prepare(project.environment)
    await reaches(cluster, project, Observed.STOPPED)
    assert list(await cluster.inventory()) == [project.ref]


async def test_an_environment_says_what_a_lost_record_said(
    cluster: Cluster, project: Project
) -> None:
    project = replace(project, lease=Lease("worker", 7, project.created_at), name="Größe")
    await cluster.prepare(project.environment)
    (found,) = await cluster.found()
    assert (found.ref, found.names, found.name) == (project.ref, project.names, project.name)
    assert (found.record_id, found.claim) == (project.id, 7)
    assert (found.wanted, found.instance) == (False, None)
    await cluster.take_over(found)
    assert [*await cluster.found()] == [found]


async def test_a_started_environment_becomes_ready_with_endpoint_and_steps(
    cluster: Cluster, project: Project
) -> None:
    await cluster.start(project.environment)
    seen = await reaches(cluster, project, Observed.READY)
    assert seen.endpoint is not None
    assert seen.error is None
    codes = [step.code for step in seen.steps]
    assert codes.index("process_started") < codes.index("agent_ready")


async def test_a_ready_environment_is_reached_at_its_endpoint(
    cluster: Cluster, project: Project
) -> None:
    await cluster.start(project.environment)
    seen = await reaches(cluster, project, Observed.READY)
    address = await cluster.reach(project.environment)
    assert address.url == seen.endpoint
    assert address.token
    assert address.token not in repr(address)


async def test_a_running_environment_is_left_alone_by_start_and_prepare(
    cluster: Cluster, project: Project
) -> None:
    await cluster.start(project.environment)
    before = await reaches(cluster, project, Observed.READY)
    address = await cluster.reach(project.environment)
    assert await doing(cluster.start(project.environment), cluster.start(project.environment)) == [
        None,
        None,
    ]
    await cluster.prepare(project.environment)
    assert await cluster.observe(project.environment) == before
    assert await cluster.reach(project.environment) == address


async def test_a_stopped_environment_is_stopped_and_starts_again(
    cluster: Cluster, project: Project
) -> None:
    await cluster.start(project.environment)
    await reaches(cluster, project, Observed.READY)
    await cluster.stop(project.environment)
    await cluster.stop(project.environment)
    await reaches(cluster, project, Observed.STOPPED)
    await cluster.start(project.environment)
    await reaches(cluster, project, Observed.READY)


async def test_start_of_a_stopping_environment_is_refused_for_now(
    cluster: Cluster, project: Project
) -> None:
    await cluster.start(project.environment)
    await reaches(cluster, project, Observed.READY)
    await cluster.stop(project.environment)
    with pytest.raises(ClusterError) as refused:
        await cluster.start(project.environment)
    assert refused.value.info.code == "environment_stopping"
    assert not refused.value.terminal


async def test_a_starting_environment_can_be_stopped(cluster: Cluster, project: Project) -> None:
    await cluster.start(project.environment)
    await cluster.stop(project.environment)
    await reaches(cluster, project, Observed.STOPPED)


async def test_only_what_does_not_run_can_be_deleted(cluster: Cluster, project: Project) -> None:
    await cluster.start(project.environment)
    await reaches(cluster, project, Observed.READY)
    with pytest.raises(ClusterError) as refused:
        await cluster.delete(project.environment)
    assert refused.value.info.code == "environment_running"
    assert await state(cluster, project) is Observed.READY


async def test_a_deleted_environment_is_absent_and_can_be_made_anew(
    cluster: Cluster, project: Project
) -> None:
    await cluster.prepare(project.environment)
    await accepted(cluster.delete, project)
    await cluster.delete(project.environment)
    assert await state(cluster, project) is Observed.ABSENT
    assert list(await cluster.inventory()) == []
    await accepted(cluster.prepare, project)
    await reaches(cluster, project, Observed.STOPPED)


async def test_what_does_not_run_cannot_be_reached(cluster: Cluster, project: Project) -> None:
    with pytest.raises(NotActiveError):
        await cluster.reach(project.environment)
    await cluster.prepare(project.environment)
    with pytest.raises(NotActiveError):
        await cluster.reach(project.environment)


async def test_projects_of_two_users_with_one_id_are_two_environments(cluster: Cluster) -> None:
    hers = named_for(cluster, make_project("demo", "ada"))
    his = named_for(cluster, make_project("demo", "bob"))
    await cluster.prepare(hers.environment)
    assert await state(cluster, his) is Observed.ABSENT
    await cluster.prepare(his.environment)
    await accepted(cluster.delete, hers)
    assert list(await cluster.inventory()) == [his.ref]


async def test_changed_returns_after_its_time_when_nothing_changes(
    cluster: Cluster, project: Project
) -> None:
    await cluster.prepare(project.environment)
    loop = asyncio.get_running_loop()
    waited = 0.0
    async with asyncio.timeout(PATIENCE):
        while waited < 0.1:  # a cluster's own controllers may still be at it
            await cluster.observe(project.environment)
            began = loop.time()
            await cluster.changed(project.environment, timeout=0.2)
            waited = loop.time() - began


async def test_a_change_between_observe_and_changed_is_not_missed(
    cluster: Cluster, project: Project
) -> None:
    await cluster.prepare(project.environment)
    await cluster.observe(project.environment)
    await cluster.start(project.environment)
    async with asyncio.timeout(PATIENCE):
        await cluster.changed(project.environment, timeout=10 * PATIENCE)


async def test_an_environment_that_never_ran_has_an_empty_log(
    cluster: Cluster, project: Project
) -> None:
    async with cluster.logs(project.environment, follow=False, tail=10) as lines:
        assert [line async for line in lines] == []
    await cluster.prepare(project.environment)
    async with cluster.logs(project.environment, follow=False, tail=10) as lines:
        assert [line async for line in lines] == []


async def test_close_ends_changes_and_leaves_environments_alone(
    cluster: Cluster, project: Project
) -> None:
    await cluster.prepare(project.environment)
    listening = asyncio.create_task(anext(cluster.changes(), None))
    await asyncio.sleep(0)
    await cluster.close()
    async with asyncio.timeout(PATIENCE):
        assert await listening is None


async def test_a_follower_of_the_log_may_leave_at_any_time(
    cluster: Cluster, project: Project
) -> None:
    await cluster.prepare(project.environment)
    async with cluster.logs(project.environment, follow=True, tail=10) as lines:
        waiting = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()


async def test_a_verb_under_an_older_claim_does_nothing(cluster: Cluster, project: Project) -> None:
    def under(number: int) -> Project:
        return replace(project, lease=Lease("worker", number, project.created_at))

    await cluster.prepare(under(7).environment)
    await cluster.prepare(under(7).environment)
    for verb in (cluster.prepare, cluster.start, cluster.stop, cluster.delete):
        with pytest.raises(LeaseLostError):
            await verb(under(6).environment)
    await reaches(cluster, project, Observed.STOPPED)
    await accepted(cluster.delete, under(8))
    await reaches(cluster, project, Observed.ABSENT)
    with pytest.raises(LeaseLostError):
        await cluster.start(under(7).environment)
    await reaches(cluster, project, Observed.ABSENT)
