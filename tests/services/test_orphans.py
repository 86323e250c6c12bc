"""Environments without a record are found, and one is removed without harm to any that has one."""

import asyncio
from dataclasses import replace

import pytest
from tests.clocks import FakeClock
from tests.contract.store_adapters import at, claim, make_project
from tests.fakes.cluster import MemoryCluster
from tests.fakes.store import MemoryStore
from tests.wishes import hand_over

from greylag.common.clock import SystemClock
from greylag.domain.errors import (
    ClusterError,
    ClusterUnavailableError,
    ConflictError,
    ErrorInfo,
    LeaseLostError,
    ProjectExistsError,
    ProjectNotFoundError,
)
from greylag.domain.lifecycle import Observed, Verb
from greylag.domain.project import (
    Desired,
    Lease,
    Orphan,
    Project,
    ProjectRef,
    Status,
    new_record_id,
)
from greylag.ports import AuditFilter, Clock, Outcome
from greylag.services.orphans import PAUSE_SECONDS, Orphans

PATIENCE = 10
LOST = Orphan("ada", "lost", "user-ada", "lost-api")


class Scene:
    """A store and a cluster, and the use case over both."""

    def __init__(self, *, auto: bool = True, clock: Clock | None = None) -> None:
        self.store = MemoryStore()
        self.cluster = MemoryCluster(auto=auto)
        self.clock = clock or SystemClock()
        self.orphans = Orphans(
            self.store,
            self.cluster,
            self.clock,
            place="memory",
            namespace_prefix="user-",
            worker="operator",
            longest=PATIENCE,
        )

    async def lose(self, project_id: str = "lost", *, number: int = 9) -> Project:
        """Start an environment under a late claim of a record that is no more."""
        lease = Lease("dead", number, self.clock.now())
        project = make_project(project_id, lease=lease)
        await self.cluster.start(project.environment)
        self.cluster.advance(project.ref)
        return project

    async def keep(self, project_id: str = "kept") -> Project:
        """Start an environment that has a record."""
        project = make_project(project_id, due_at=at(0))
        await self.store.create(project)
        await self.cluster.start(project.environment)
        return project

    async def removing(self) -> Project:
        """Return the record of the removal, once it is there."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await self.store.get("ada", "lost")
                except ProjectNotFoundError:
                    await asyncio.sleep(0)

    async def nothing_is_kept(self) -> None:
        """See that the record of the removal is gone."""
        with pytest.raises(ProjectNotFoundError):
            await self.store.get("ada", "lost")


async def test_only_what_has_no_record_is_found_with_its_names_and_in_order() -> None:
    scene = Scene()
    await scene.keep()
    await scene.lose()
    await scene.lose("bygone")
    bygone = Orphan("ada", "bygone", "user-ada", "bygone-api")
    assert await scene.orphans.found() == [bygone, LOST]
    assert LOST.ref == ProjectRef("ada", "lost")


async def test_a_running_one_is_stopped_and_deleted_and_no_other_is_touched() -> None:
    scene = Scene()
    kept = await scene.keep()
    lost = await scene.lose()
    await scene.orphans.remove(LOST)
    verbs = [call.verb for call in scene.cluster.calls[lost.ref]]
    assert verbs == [Verb.START, Verb.STOP, Verb.DELETE]
    assert await scene.cluster.inventory() == (kept.ref,)
    assert [call.verb for call in scene.cluster.calls[kept.ref]] == [Verb.START]
    assert await scene.store.get("ada", "kept") == kept
    await scene.nothing_is_kept()
    assert await scene.orphans.found() == []


async def test_one_that_has_a_record_by_now_is_refused_and_left_alone() -> None:
    scene = Scene()
    lost = await scene.lose()
    found = await scene.orphans.found()
    again = make_project("lost")
    await scene.store.create(again)
    with pytest.raises(ConflictError, match="has a record by now"):
        await scene.orphans.remove(found[0])
    assert [call.verb for call in scene.cluster.calls[lost.ref]] == [Verb.START]
    assert await scene.store.get("ada", "lost") == again


async def test_one_that_is_gone_already_is_no_failure() -> None:
    scene = Scene()
    await scene.orphans.remove(LOST)
    await scene.nothing_is_kept()


async def test_meanwhile_the_id_is_taken_and_no_worker_interferes() -> None:
    scene = Scene()
    lost = await scene.lose()
    go_on = scene.cluster.hang(lost.ref, Verb.STOP)
    removal = asyncio.create_task(scene.orphans.remove(LOST))
    record = await scene.removing()
    assert record.desired is Desired.DELETED
    with pytest.raises(ProjectExistsError):
        await scene.store.create(make_project("lost"))
    await scene.store.poke(record.ref, scene.clock.now())
    assert await scene.store.claim_due("worker", scene.clock.now(), 15) is None
    go_on.set()
    await removal
    # Then it is free: what a project made anew has is not refused by any older claim.
    anew = make_project("lost")
    await scene.store.create(anew)
    await scene.cluster.prepare(anew.environment)
    assert await scene.orphans.found() == []


async def test_a_step_that_fails_is_tried_again_after_a_pause() -> None:
    scene = Scene(clock=FakeClock())
    began = scene.clock.monotonic()
    lost = await scene.lose()
    scene.cluster.fail_next(lost.ref, Verb.STOP, ClusterUnavailableError("It is away."))
    await scene.orphans.remove(LOST)
    assert await scene.cluster.inventory() == ()
    assert scene.clock.monotonic() - began == PAUSE_SECONDS


async def test_what_does_not_end_in_time_is_told_and_stays_an_orphan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    scene = Scene(auto=False, clock=clock)

    async def nothing_changes(_: object, seconds: float) -> None:
        clock.advance(seconds)

    monkeypatch.setattr(scene.cluster, "changed", nothing_changes)
    lost = await scene.lose()
    with pytest.raises(ClusterError) as told:
        await scene.orphans.remove(LOST)
    assert told.value.info.code == "removal_stuck"
    assert (await scene.cluster.observe(lost.environment)).state is Observed.STOPPING
    await scene.nothing_is_kept()
    assert await scene.orphans.found() == [LOST]


async def test_an_environment_of_which_nothing_is_known_is_not_taken_for_gone() -> None:
    scene = Scene(clock=FakeClock())
    lost = await scene.lose()
    scene.cluster.lose(lost.ref, ErrorInfo("cluster_unavailable", "Nothing is known."))
    with pytest.raises(ClusterError, match="Nothing is known") as told:
        await scene.orphans.remove(LOST)
    assert told.value.info.code == "cluster_unavailable"
    scene.cluster.find(lost.ref)
    assert await scene.orphans.found() == [LOST]


async def test_what_can_never_be_removed_is_told_at_once() -> None:
    scene = Scene()
    lost = await scene.lose()
    forbidden = ClusterError("It is not allowed.", code="forbidden", terminal=True)
    scene.cluster.fail_next(lost.ref, Verb.STOP, forbidden)
    with pytest.raises(ClusterError, match="not allowed"):
        await scene.orphans.remove(LOST)
    await scene.nothing_is_kept()


async def test_one_that_is_elsewhere_than_its_names_say_is_told() -> None:
    class Elsewhere(MemoryCluster):
        async def inventory(self) -> tuple[ProjectRef, ...]:
            return (LOST.ref,)

    scene = Scene()
    elsewhere = Orphans(
        scene.store,
        Elsewhere(auto=True),
        scene.clock,
        place="memory",
        namespace_prefix="other-",
        worker="operator",
        longest=PATIENCE,
    )
    with pytest.raises(ClusterError, match="other-ada/lost-api"):
        await elsewhere.remove(replace(LOST, namespace="other-ada"))
    await scene.nothing_is_kept()


async def test_an_adopted_one_goes_on_as_it_is_under_its_own_record_id() -> None:
    scene = Scene()
    lost = await scene.lose()
    await scene.orphans.adopt(LOST)
    adopted = await scene.store.get("ada", "lost")
    assert (adopted.id, adopted.names, adopted.name) == (lost.id, lost.names, lost.name)
    assert adopted.desired is Desired.ACTIVE
    assert await scene.orphans.found() == []
    claim = await scene.store.claim_due("worker", scene.clock.now(), 15)
    assert claim is not None
    assert claim.number == 10, "the environment has seen 9"
    await scene.orphans.adopt(LOST)
    assert [call.verb for call in scene.cluster.calls[lost.ref]] == [Verb.START]


async def test_anothers_is_shown_never_deleted_and_adopted_only_when_it_is_named() -> None:
    scene = Scene()
    lost = await scene.lose()
    scene.cluster.foreign["ada"] = "0ther"
    others = replace(LOST, instance="0ther")
    assert await scene.orphans.found() == [others]
    for work in (
        scene.orphans.remove(others),
        scene.orphans.adopt(others),
        scene.orphans.adopt(others, "yet-an0ther"),
    ):
        with pytest.raises(ConflictError, match="another Greylag"):
            await work
    assert [call.verb for call in scene.cluster.calls[lost.ref]] == [Verb.START]
    await scene.nothing_is_kept()
    await scene.orphans.adopt(others, "0ther")
    assert (await scene.store.get("ada", "lost")).id == lost.id
    assert await scene.orphans.found() == []


async def test_an_adoption_that_was_killed_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    await scene.lose()
    scene.cluster.foreign["ada"] = "0ther"

    async def killed(_: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(scene.store, "create", killed)
        with pytest.raises(asyncio.CancelledError):
            await scene.orphans.adopt(LOST, "0ther")
    assert await scene.orphans.found() == [LOST]
    await scene.orphans.adopt(LOST)
    assert await scene.orphans.found() == []


async def test_what_has_another_record_by_now_is_not_adopted() -> None:
    scene = Scene()
    await scene.lose()
    await scene.store.create(replace(make_project("lost"), id=new_record_id(scene.clock.now())))
    with pytest.raises(ConflictError, match="has a record by now"):
        await scene.orphans.adopt(LOST)


async def test_a_worker_that_takes_a_removal_over_is_left_to_it() -> None:
    scene = Scene()
    lost = await scene.lose()
    go_on = scene.cluster.hang(lost.ref, Verb.STOP)
    removal = asyncio.create_task(scene.orphans.remove(LOST))
    lease = (await scene.removing()).lease
    assert lease is not None
    # As it is for a process that slept past the end of its lease.
    claim = await scene.store.claim_due("worker", lease.until, 15)
    assert claim is not None
    assert claim.number == lease.number + 1
    go_on.set()
    with pytest.raises(LeaseLostError):
        await removal
    assert (await scene.store.get("ada", "lost")).id == claim.project.id


async def test_a_removal_that_is_cancelled_leaves_no_record() -> None:
    scene = Scene()
    lost = await scene.lose()
    scene.cluster.hang(lost.ref, Verb.STOP)
    removal = asyncio.create_task(scene.orphans.remove(LOST))
    await scene.removing()
    removal.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removal
    await scene.nothing_is_kept()
    assert await scene.orphans.found() == [LOST]


async def test_the_audit_trail_tells_who_removed_and_adopted_what() -> None:
    scene = Scene()
    await scene.lose()
    gone = replace(LOST, project_id="gone")
    await scene.orphans.adopt(LOST)
    with pytest.raises(ClusterError):
        await scene.orphans.adopt(gone)
    await scene.lose("other")
    await scene.orphans.remove(replace(LOST, project_id="other"))
    told = [one for _, one in await scene.store.audit_entries(AuditFilter(), 9)]
    assert {one["actor"]["kind"] for one in told} == {"system"}
    assert [(one["action"], one["object"], one["result"]) for one in told] == [
        ("environment.adopt", "project/ada/lost", "begun"),
        ("environment.adopt", "project/ada/lost", "done"),
        ("environment.adopt", "project/ada/gone", "begun"),
        ("environment.adopt", "project/ada/gone", "failed"),
        ("environment.delete", "project/ada/other", "begun"),
        ("environment.delete", "project/ada/other", "done"),
    ]


async def test_what_was_handed_over_is_no_orphan_and_is_not_adopted_over() -> None:
    scene = Scene()
    project = await scene.keep()
    await scene.store.record(
        await claim(scene.store, 0),
        Outcome(status=Status.INACTIVE, observed_generation=1),
        at(0),
        release=True,
    )
    await hand_over(scene.store, "ada", "kept", "bob", at(1))
    assert await scene.orphans.found() == []
    kept = Orphan("ada", "kept", "user-ada", "kept-api")
    await scene.orphans.adopt(kept)  # its record is there
    with pytest.raises(ConflictError):
        await scene.orphans.remove(kept)
    given = await scene.store.get("bob", "kept")
    assert (given.id, given.environment_user) == (project.id, "ada")
    # Bob's own lost environment of this id is another one.
    lost = make_project("kept", "bob")
    await scene.cluster.start(lost.environment)
    (orphan,) = await scene.orphans.found()
    assert orphan.ref == lost.ref
    with pytest.raises(ConflictError):
        await scene.orphans.adopt(orphan)
