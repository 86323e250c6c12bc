"""The cluster in memory: what tests can do to it."""

import asyncio

import pytest
from tests.contract.store_adapters import make_project
from tests.fakes.cluster import MemoryCluster

from greylag.domain.errors import ClusterError, ErrorInfo
from greylag.domain.lifecycle import API_ANSWERS, PROCESS_STARTED, Observed, Verb

PROJECT = make_project()
REF = PROJECT.ref
BROKEN = ErrorInfo("image_not_found", "There is no such image.")


async def started() -> MemoryCluster:
    cluster = MemoryCluster()
    await cluster.start(PROJECT.environment)
    return cluster


async def state(cluster: MemoryCluster) -> Observed:
    return (await cluster.observe(PROJECT.environment)).state


async def test_without_auto_only_the_test_moves_an_environment_on() -> None:
    cluster = await started()
    assert await state(cluster) is Observed.STARTING
    assert await state(cluster) is Observed.STARTING
    cluster.advance(REF)
    assert await state(cluster) is Observed.READY
    await cluster.stop(PROJECT.environment)
    assert await state(cluster) is Observed.STOPPING
    cluster.advance(REF)
    assert await state(cluster) is Observed.STOPPED
    cluster.advance(REF)
    assert await state(cluster) is Observed.STOPPED


async def test_a_starting_environment_reports_its_steps() -> None:
    cluster = await started()
    cluster.reach_step(REF, API_ANSWERS)
    assert (await cluster.observe(PROJECT.environment)).steps == (PROCESS_STARTED, API_ANSWERS)


async def test_its_address_names_namespace_and_deployment() -> None:
    cluster = await started()
    cluster.advance(REF)
    assert (await cluster.reach(PROJECT.environment)).url == "memory://user-ada/demo-api"


async def test_a_fault_fails_the_next_verb_once_and_changes_nothing() -> None:
    cluster = MemoryCluster()
    cluster.fail_next(REF, Verb.START, ClusterError("No room.", code="quota_exceeded"))
    with pytest.raises(ClusterError, match="No room"):
        await cluster.start(PROJECT.environment)
    assert await state(cluster) is Observed.ABSENT
    await cluster.start(PROJECT.environment)
    assert await state(cluster) is Observed.STARTING


async def test_a_hanging_verb_goes_on_when_it_is_let() -> None:
    cluster = MemoryCluster()
    gate = cluster.hang(REF, Verb.START)
    starting = asyncio.create_task(cluster.start(PROJECT.environment))
    await asyncio.sleep(0)
    assert await state(cluster) is Observed.ABSENT
    gate.set()
    await starting
    assert await state(cluster) is Observed.STARTING


async def test_a_lost_environment_is_unknown_until_it_is_found() -> None:
    cluster = await started()
    cluster.lose(REF)
    assert await state(cluster) is Observed.UNKNOWN
    cluster.find(REF)
    assert await state(cluster) is Observed.STARTING


async def test_changes_tell_of_ends_and_vanishing_once_each() -> None:
    cluster = await started()
    changes = cluster.changes()
    cluster.end(REF, BROKEN, terminal=True)
    cluster.vanish(REF)
    assert await anext(changes) == REF
    cluster.vanish(REF)
    assert await anext(changes) == REF
    await cluster.close()
    assert [ref async for ref in changes] == []


async def test_a_failed_environment_tells_why() -> None:
    cluster = await started()
    cluster.end(REF, BROKEN, terminal=True)
    seen = await cluster.observe(PROJECT.environment)
    assert (seen.state, seen.error, seen.terminal) == (Observed.FAILED, BROKEN, True)


async def test_verbs_that_overlap_can_be_told_from_the_calls() -> None:
    cluster = MemoryCluster()
    await cluster.start(PROJECT.environment)
    await asyncio.gather(cluster.stop(PROJECT.environment), cluster.stop(PROJECT.environment))
    start, first, second = cluster.calls[REF]
    assert (start.verb, start.began, start.ended) == (Verb.START, 1, 2)
    assert first.ended is not None
    assert second.began < first.ended


async def test_the_log_is_followed_as_it_is_said() -> None:
    cluster = await started()
    for line in (b"one", b"two"):
        cluster.say(REF, line)
    async with cluster.logs(PROJECT.environment, follow=True, tail=1) as lines:
        assert await anext(lines) == b"two\n"
        waiting = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0)
        cluster.say(REF, b"three")
        assert await waiting == b"three\n"
        await cluster.close()
        assert [line async for line in lines] == []
