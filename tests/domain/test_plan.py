"""``plan``: one answer to every pair of wanted and observed, and following it always arrives."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greylag.domain.errors import ErrorInfo
from greylag.domain.lifecycle import (
    MAX_RESTARTS,
    Act,
    Fail,
    Forget,
    Observation,
    Observed,
    Plan,
    Retry,
    Settle,
    Verb,
    Wait,
    plan,
)
from greylag.domain.names import environment_names
from greylag.domain.project import Desired, NewEvent, Project, Status

NOW = datetime(2025, 1, 1, tzinfo=UTC)
BROKEN = ErrorInfo("image_not_found", "There is no such image.")
PROJECT = Project(
    id="0" * 24,
    user_id="ada",
    project_id="demo",
    name="Demo",
    names=environment_names("ada", "demo"),
    created_at=NOW,
    updated_at=NOW,
)
START, STOP, PREPARE, DELETE = (
    Act(verb) for verb in (Verb.START, Verb.STOP, Verb.PREPARE, Verb.DELETE)
)
UNKNOWN = Retry(ErrorInfo("cluster_unavailable", "The state of the environment is not known now."))

EXPECTED: dict[tuple[Desired, Observed], Plan] = {
    (Desired.ACTIVE, Observed.ABSENT): START,
    (Desired.ACTIVE, Observed.STOPPED): START,
    (Desired.ACTIVE, Observed.STARTING): Wait(),
    (Desired.ACTIVE, Observed.READY): Settle(Status.ACTIVE),
    (Desired.ACTIVE, Observed.STOPPING): Wait(),
    (Desired.ACTIVE, Observed.FAILED): START,
    (Desired.ACTIVE, Observed.UNKNOWN): UNKNOWN,
    (Desired.INACTIVE, Observed.ABSENT): PREPARE,
    (Desired.INACTIVE, Observed.STOPPED): Settle(Status.INACTIVE),
    (Desired.INACTIVE, Observed.STARTING): STOP,
    (Desired.INACTIVE, Observed.READY): STOP,
    (Desired.INACTIVE, Observed.STOPPING): Wait(),
    (Desired.INACTIVE, Observed.FAILED): STOP,
    (Desired.INACTIVE, Observed.UNKNOWN): UNKNOWN,
    (Desired.DELETED, Observed.ABSENT): Forget(),
    (Desired.DELETED, Observed.STOPPED): DELETE,
    (Desired.DELETED, Observed.STARTING): STOP,
    (Desired.DELETED, Observed.READY): STOP,
    (Desired.DELETED, Observed.STOPPING): Wait(),
    (Desired.DELETED, Observed.FAILED): STOP,
    (Desired.DELETED, Observed.UNKNOWN): UNKNOWN,
}

ERRORS = st.none() | st.just(BROKEN)
MOMENTS = st.sampled_from([NOW - timedelta(seconds=1), NOW, NOW + timedelta(seconds=1)])
PROJECTS = st.builds(
    replace,
    st.just(PROJECT),
    desired=st.sampled_from(Desired),
    status=st.sampled_from(Status),
    error=ERRORS,
    error_terminal=st.booleans(),
    attempts=st.integers(0, MAX_RESTARTS + 2),
    deadline_at=st.none() | MOMENTS,
)
OBSERVATIONS = st.builds(
    Observation,
    state=st.sampled_from(Observed),
    endpoint=st.none() | st.just("http://127.0.0.1:1"),
    error=ERRORS,
    terminal=st.booleans(),
    steps=st.sampled_from([(), (NewEvent("scheduled", "It has a place."),)]),
)


def wanting(desired: Desired, **fields: object) -> Project:
    return replace(PROJECT, desired=desired, **fields)  # type: ignore[arg-type]  # fields of Project


def test_the_table_has_every_pair() -> None:
    assert set(EXPECTED) == {(wanted, seen) for wanted in Desired for seen in Observed}


@pytest.mark.parametrize(("wanted", "seen"), EXPECTED)
def test_each_pair_has_its_answer(wanted: Desired, seen: Observed) -> None:
    assert plan(wanting(wanted), Observation(seen), NOW) == EXPECTED[wanted, seen]


@given(PROJECTS, OBSERVATIONS, MOMENTS)
def test_it_answers_everything_and_always_the_same(
    project: Project, seen: Observation, now: datetime
) -> None:
    assert plan(project, seen, now) == plan(project, seen, now)


@given(PROJECTS, OBSERVATIONS, MOMENTS)
def test_what_is_not_known_is_only_looked_at_again(
    project: Project, seen: Observation, now: datetime
) -> None:
    answer = plan(project, replace(seen, state=Observed.UNKNOWN), now)
    assert answer == Retry(seen.error or UNKNOWN.error)


@given(PROJECTS, OBSERVATIONS, MOMENTS)
def test_nothing_is_done_that_was_not_wanted(
    project: Project, seen: Observation, now: datetime
) -> None:
    answer = plan(project, seen, now)
    if answer in {START, Settle(Status.ACTIVE)} or isinstance(answer, Fail):
        assert project.desired is Desired.ACTIVE
    if answer in {DELETE, Forget()}:
        assert project.desired is Desired.DELETED
    if answer == STOP:
        assert project.desired is not Desired.ACTIVE
    if answer == Forget():
        assert seen.state is Observed.ABSENT


@given(PROJECTS, OBSERVATIONS, MOMENTS)
def test_a_terminal_error_rests_until_a_new_wish(
    project: Project, seen: Observation, now: datetime
) -> None:
    failed = replace(project, desired=Desired.ACTIVE, error=BROKEN, error_terminal=True)
    if seen.state not in {Observed.READY, Observed.UNKNOWN}:
        assert plan(failed, seen, now) == Fail(BROKEN, terminal=True)


@pytest.mark.parametrize("state", [Observed.ABSENT, Observed.STARTING, Observed.FAILED])
def test_an_observed_error_that_no_retry_mends_is_terminal(state: Observed) -> None:
    seen = Observation(state, error=BROKEN, terminal=True)
    assert plan(wanting(Desired.ACTIVE), seen, NOW) == Fail(BROKEN, terminal=True)


def test_a_start_is_tried_so_often_and_no_more() -> None:
    seen = Observation(Observed.FAILED, error=BROKEN)
    last = wanting(Desired.ACTIVE, attempts=MAX_RESTARTS - 1)
    assert plan(last, seen, NOW) == START
    spent = wanting(Desired.ACTIVE, attempts=MAX_RESTARTS)
    assert plan(spent, seen, NOW) == Fail(BROKEN, terminal=True)


@pytest.mark.parametrize("state", [Observed.STARTING, Observed.STOPPING])
def test_what_is_late_is_an_error_that_says_how_far_it_came(state: Observed) -> None:
    project = wanting(Desired.ACTIVE, deadline_at=NOW)
    seen = Observation(state, steps=(NewEvent("pulled", "The image is here."),))
    assert plan(project, seen, NOW - timedelta(milliseconds=1)) == Wait()
    answer = plan(project, seen, NOW)
    assert isinstance(answer, Fail)
    assert not answer.terminal
    assert answer.error.code == "activation_timeout"
    assert "The image is here." in answer.error.message
    known = replace(seen, error=BROKEN)
    assert plan(project, known, NOW) == Fail(BROKEN, terminal=False)


@dataclass
class World:
    """An environment that does what the verbs say, in its own time.

    It fails its next ``failures`` starts; each other look at it finds nothing when ``flaky``.
    """

    state: Observed
    failures: int
    flaky: bool
    looks: int = 0

    def look(self) -> Observation:
        self.looks += 1
        if self.flaky and self.looks % 2:
            return Observation(Observed.UNKNOWN)
        return Observation(self.state, error=BROKEN if self.state is Observed.FAILED else None)

    def obey(self, verb: Verb) -> None:
        match verb, self.state:
            case Verb.PREPARE, Observed.ABSENT:
                self.state = Observed.STOPPED
            case Verb.START, Observed.ABSENT | Observed.STOPPED | Observed.FAILED:
                self.state = Observed.STARTING
            case Verb.STOP, Observed.STARTING | Observed.READY | Observed.FAILED:
                self.state = Observed.STOPPING
            case Verb.DELETE, Observed.STOPPED:
                self.state = Observed.ABSENT

    def go_on(self) -> None:
        if self.state is Observed.STOPPING:
            self.state = Observed.STOPPED
        elif self.state is Observed.STARTING:
            self.state = Observed.FAILED if self.failures else Observed.READY
            self.failures = max(0, self.failures - 1)


@given(
    st.sampled_from(Desired),
    st.sampled_from([state for state in Observed if state is not Observed.UNKNOWN]),
    st.integers(0, MAX_RESTARTS + 2),
    st.booleans(),
)
def test_following_the_plan_always_arrives(
    wanted: Desired,
    state: Observed,
    failures: int,
    flaky: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    world, project = World(state, failures, flaky), wanting(wanted)
    answer: Plan = Wait()
    for _ in range(2 * (3 * MAX_RESTARTS + 6)):
        answer = plan(project, world.look(), NOW)
        if isinstance(answer, Settle | Forget | Fail):
            break
        if isinstance(answer, Act):
            world.obey(answer.verb)
            attempts = project.attempts + (answer.verb is Verb.START)
            project = replace(project, attempts=attempts)
        world.go_on()
    expected: dict[Desired, set[Plan]] = {
        Desired.ACTIVE: {Settle(Status.ACTIVE), Fail(BROKEN, terminal=True)},
        Desired.INACTIVE: {Settle(Status.INACTIVE)},
        Desired.DELETED: {Forget()},
    }
    assert answer in expected[wanted]
    if failures < MAX_RESTARTS:
        assert not isinstance(answer, Fail)
