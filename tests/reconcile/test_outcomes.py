"""What is written after a step, where a whole pass hardly comes to it."""

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.contract.store_adapters import at, make_project

from greylag.domain.errors import ErrorInfo
from greylag.domain.lifecycle import Observation, Observed, Verb
from greylag.domain.project import Desired, Project, Status
from greylag.reconcile import outcomes
from greylag.reconcile.outcomes import STABLE_AFTER

NOW = at(0)
MINUTE = timedelta(minutes=1)
PULLING = ErrorInfo("image_not_pulled", "The image cannot be pulled: try 1.")
PROJECT = make_project(desired=Desired.ACTIVE, generation=2, observed_generation=2)
ACTIVE = replace(PROJECT, status=Status.ACTIVE, last_activated_at=NOW - STABLE_AFTER, attempts=3)


@pytest.mark.parametrize(
    ("project", "attempts"),
    [
        (ACTIVE, 0),
        (replace(ACTIVE, last_activated_at=NOW - STABLE_AFTER + timedelta(seconds=1)), 3),
        (replace(ACTIVE, status=Status.ACTIVATING), 3),
    ],
)
def test_failures_count_until_it_has_been_active_for_long(project: Project, attempts: int) -> None:
    ready = Observation(Observed.READY)
    assert outcomes.settled(project, Status.ACTIVE, ready, NOW, MINUTE).attempts == attempts


def test_a_wish_back_before_anything_was_done_is_told_and_is_no_new_activation() -> None:
    project = replace(ACTIVE, generation=4)
    outcome = outcomes.settled(project, Status.ACTIVE, Observation(Observed.READY), NOW, MINUTE)
    assert [event.code for event in outcome.events] == ["active"]
    assert outcome.last_activated_at == ACTIVE.last_activated_at


@pytest.mark.parametrize(
    ("verb", "desired", "status"),
    [
        (Verb.START, Desired.ACTIVE, Status.ACTIVATING),
        (Verb.STOP, Desired.INACTIVE, Status.DEACTIVATING),
        (Verb.DELETE, Desired.DELETED, Status.DEACTIVATING),
    ],
)
def test_what_is_set_about_is_on_its_way_and_found_nowhere(
    verb: Verb, desired: Desired, status: Status
) -> None:
    project = replace(ACTIVE, desired=desired, endpoint="http://127.0.0.1:1")
    outcome = outcomes.acting(project, verb, NOW, MINUTE)
    assert (outcome.status, outcome.endpoint) == (status, None)


@pytest.mark.parametrize("known", [None, ErrorInfo("unschedulable", "There is no room.")])
def test_of_one_on_its_way_each_cause_is_told_once(known: ErrorInfo | None) -> None:
    project = replace(PROJECT, status=Status.ACTIVATING, error=known)
    outcome = outcomes.waiting(project, [], NOW, MINUTE, PULLING)
    assert outcome is not None
    assert ([event.code for event in outcome.events], outcome.error) == ([PULLING.code], PULLING)
    again = replace(PULLING, message="The image cannot be pulled: try 2.")
    assert outcomes.waiting(replace(project, error=PULLING), [], NOW, MINUTE, again) is None
