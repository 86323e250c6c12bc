"""Random use of all stores at once: they answer alike, and as the model says."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.contract.store_adapters import ADAPTERS, at, make_project, open_store
from tests.contract.store_model import ModelStore, Ref
from tests.wishes import want

from greylag.domain.errors import (
    GreylagError,
    IdempotencyConflictError,
    LeaseLostError,
    ProjectDeletingError,
    ProjectExistsError,
    ProjectNotFoundError,
)
from greylag.domain.project import Desired, NewEvent, Project, ProjectRef, Status
from greylag.ports import Claim, IdempotencyKey, Outcome, PageQuery, ProjectStore

REFS = st.sampled_from([("ada", "z"), ("ada", "Z"), ("Ada", "z")])
SECONDS = st.integers(0, 40)
WORDS = {
    IdempotencyConflictError: "conflict",
    LeaseLostError: "lost",
    ProjectDeletingError: "deleting",
    ProjectExistsError: "exists",
    ProjectNotFoundError: "missing",
}


class StoresAgree(RuleBasedStateMachine):
    kinds: tuple[str, ...] = ("memory", "sqlite")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.open = AsyncExitStack()
        self.stores: list[ProjectStore] = []
        self.model = ModelStore()
        self.now = 0
        self.claims: list[tuple[Ref, int, int, Claim]] = []

    @initialize()
    def start(self) -> None:
        async def enter() -> None:
            for kind in self.kinds:
                context = open_store(kind, Path(self.folder.name))
                self.stores.append(await self.open.enter_async_context(context))

        self.runner.run(enter())

    def teardown(self) -> None:
        self.runner.run(self.open.aclose())
        self.runner.close()
        self.folder.cleanup()

    def both(self, call: Callable[[ProjectStore], Awaitable[Any]]) -> Any:
        """Return the one answer that all stores give; an error as its word."""

        async def ask(store: ProjectStore) -> Any:
            try:
                return await call(store)
            except GreylagError as error:
                return WORDS[type(error)]

        async def ask_all() -> list[Any]:
            return [await ask(store) for store in self.stores]

        first, *others = self.runner.run(ask_all())
        assert all(other == first for other in others)
        return first

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(ref=REFS, key=st.sampled_from([None, "k", "K"]), fingerprint=st.sampled_from("ff\u0444"))
    def create(self, ref: Ref, key: str | None, fingerprint: str) -> None:
        project = make_project(ref[1], ref[0], created=self.now)
        sent = IdempotencyKey(key, fingerprint) if key else None
        answer = self.both(lambda store: store.create(project, sent))
        expected = self.model.create(ref, key, fingerprint, self.now)
        got = answer if isinstance(answer, str) else ("new" if answer.new else "known")
        assert got == expected

    @rule(ref=REFS, desired=st.sampled_from(Desired), seconds=SECONDS, again=st.booleans())
    def want(self, ref: Ref, desired: Desired, seconds: int, again: bool) -> None:  # noqa: FBT001
        deadline = self.now + seconds
        answer = self.both(
            lambda s: want(s, *ref, desired, at(self.now), at(deadline), again=again)
        )
        expected = self.model.want(ref, desired.value, self.now, deadline, again=again)
        assert (answer if isinstance(answer, str) else "wanted") == expected

    @rule(lease=SECONDS)
    def claim(self, lease: int) -> None:
        answer = self.both(lambda store: store.claim_due("w", at(self.now), lease))
        expected = self.model.claim(self.now, lease)
        if expected is None:
            assert answer is None
            return
        ref, number = expected
        assert (answer.project.ref, answer.number) == (ProjectRef(*ref), number)
        self.claims.append((ref, self.model.projects[ref]["made"], number, answer))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), lease=SECONDS)
    def renew(self, data: st.DataObject, lease: int) -> None:
        ref, made, number, claim = data.draw(st.sampled_from(self.claims[-2:]))
        answer = self.both(lambda store: store.renew(claim, at(self.now), lease))
        if self.model.holds(ref, made, number):
            self.model.renew(ref, self.now, lease)
            self.claims.append((ref, made, number, answer))
        else:
            assert answer == "lost"

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        status=st.sampled_from(Status),
        due=st.none() | SECONDS,
        attempts=st.integers(0, 3),
        events=st.sampled_from([0, 1, 300]),
        release=st.booleans(),
    )
    def record(
        self,
        data: st.DataObject,
        status: Status,
        due: int | None,
        attempts: int,
        events: int,
        *,
        release: bool,
    ) -> None:
        ref, made, number, claim = data.draw(st.sampled_from(self.claims[-2:]))
        observed = claim.project.generation
        outcome = Outcome(
            status=status,
            observed_generation=observed,
            attempts=attempts,
            due_at=None if due is None else at(self.now + due),
            deadline_at=at(7),
            events=[NewEvent("e", "E")] * events,
        )
        answer = self.both(lambda s: s.record(claim, outcome, at(self.now), release=release))
        if not self.model.holds(ref, made, number):
            assert answer == "lost"
            return
        new = {
            "status": status.value,
            "observed": observed,
            "due": None if due is None else self.now + due,
            "attempts": attempts,
            "deadline": 7,
            "events": events,
        }
        self.model.record(ref, observed, new, self.now, release=release)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        ref, made, number, claim = data.draw(st.sampled_from(self.claims[-2:]))
        answer = self.both(lambda store: store.forget(claim))
        if self.model.holds(ref, made, number):
            self.model.forget(ref)
        else:
            assert answer == "lost"

    @rule(ref=REFS)
    def poke(self, ref: Ref) -> None:
        self.both(lambda store: store.poke(ProjectRef(*ref), at(self.now)))
        self.model.poke(ref, self.now)

    @rule()
    def poke_unsettled(self) -> None:
        found = self.model.unsettled()
        assert self.both(lambda store: store.poke_unsettled(at(self.now))) == len(found)
        for ref in found:
            self.model.poke(ref, self.now)

    @invariant()
    def the_queue_is_as_the_model_says(self) -> None:
        queue = self.model.queue()
        expected = at(queue[0][0]) if queue else None
        assert self.both(lambda store: store.next_due()) == expected

    @invariant()
    def the_projects_are_as_the_model_says(self) -> None:
        for user in ("ada", "Ada"):
            page = self.both(methodcaller("page", user, PageQuery(limit=10)))
            expected = {ref: p for ref, p in self.model.projects.items() if ref[0] == user}
            assert len(page.projects) == len(expected)
            for project in page.projects:
                self._compare(project, expected[user, project.project_id])

    def _compare(self, project: Project, model: dict[str, Any]) -> None:
        assert project.desired.value == model["desired"]
        assert project.status.value == model["status"]
        assert project.generation == model["generation"]
        assert project.observed_generation == model["observed"]
        assert project.attempts == model["attempts"]
        assert project.due_at == (None if model["due"] is None else at(model["due"]))
        assert project.deadline_at == (None if model["deadline"] is None else at(model["deadline"]))
        lease = project.lease and (project.lease.number, project.lease.until)
        assert lease == (model["lease"] and (model["lease"][0], at(model["lease"][1])))
        events = self.both(lambda store: store.events(*_pair(project), 0, 1000))
        assert [event.seq for event in events] == model["log"]


def _pair(project: Project) -> Ref:
    return project.user_id, project.project_id


class AllStoresAgree(StoresAgree):
    """The servers' stores are slower to ask, so they get fewer examples."""

    kinds = ADAPTERS


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


TestStoresAgree = pytest.mark.slow(StoresAgree.TestCase)
TestStoresAgree.settings = _settings(60)
TestAllStoresAgree = pytest.mark.slow(AllStoresAgree.TestCase)
TestAllStoresAgree.settings = _settings(12)
