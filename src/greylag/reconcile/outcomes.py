"""What to write after each step of a pass: pure functions from a project to an outcome."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from greylag.domain.errors import ErrorInfo
from greylag.domain.lifecycle import MAX_RESTARTS, Observation, Verb
from greylag.domain.project import Desired, NewEvent, Project, Status
from greylag.ports import OBSERVED, Outcome

STABLE_AFTER = timedelta(seconds=60)

_DOING = {
    Verb.PREPARE: NewEvent("preparing", "Preparing the environment."),
    Verb.START: NewEvent("starting", "Starting the environment."),
    Verb.STOP: NewEvent("stopping", "Stopping the environment."),
    Verb.DELETE: NewEvent("deleting", "Deleting the environment and its volume."),
}
_ENDED_UNASKED = NewEvent(
    "ended_unasked", "The environment ended, or was changed, unasked; it is set right."
)
_PREPARED = NewEvent("prepared", "The environment is prepared.")
_REFRESHING = NewEvent(
    "refreshing", "Starting the environment anew, with the settings that it lacks."
)
RESTORED = NewEvent(
    "records_restored",
    "Greylag's records were put back from an older copy; it has taken this environment over again.",
)
UNUSED = NewEvent(
    "unused", "Nobody has used the environment for long; it is put to sleep until it is needed."
)
GONE = ErrorInfo(
    "environment_gone",
    "Somebody removed the environment, and the workspace's files with it; it is made anew, empty.",
    "Restore the files from a backup of your own if there is one.",
)
STOPPED = ErrorInfo(
    "environment_drifted",
    "The environment was stopped, though Greylag was not asked for that.",
    "Greylag starts it again by itself.",
)
_REACHED = {
    Status.ACTIVE: NewEvent("active", "The environment is active."),
    Status.INACTIVE: NewEvent("inactive", "The environment is inactive; its volume is kept."),
}


def unchanged(project: Project, events: Sequence[NewEvent] = ()) -> Outcome:
    """Return the outcome that leaves the observed half as it is."""
    return Outcome(**{name: getattr(project, name) for name in OBSERVED}, events=events)


def settled(
    project: Project, status: Status, seen: Observation, now: datetime, recheck: timedelta
) -> Outcome:
    """Return the outcome of having reached what is wanted."""
    active = status is Status.ACTIVE
    since = project.last_activated_at
    stable = project.status is status and since is not None and now - since >= STABLE_AFTER
    # What is wrong with an environment though it runs is told once, and kept as long as it is so.
    wrong = seen.error if active else None
    outcome = replace(
        _because(unchanged(project), wrong),
        status=status,
        endpoint=seen.endpoint if active else None,
        outdated=seen.outdated,
        error=wrong,
        error_terminal=False,
        observed_generation=project.generation,
        attempts=project.attempts if active and not stable else 0,
        deadline_at=None,
        due_at=now + recheck if active else None,
    )
    if status is project.status and project.settled:
        return outcome
    if not active and since is None:
        return replace(outcome, events=[_PREPARED])
    outcome = replace(outcome, events=[_REACHED[status], *outcome.events])
    if status is project.status:
        return outcome
    if active and project.starts_anew:
        return outcome  # its end did not come about
    if active:
        return replace(outcome, last_activated_at=now)
    return replace(outcome, last_deactivated_at=now)


def waiting(
    project: Project,
    steps: Sequence[NewEvent],
    now: datetime,
    timeout: timedelta,
    why: ErrorInfo | None = None,
) -> Outcome | None:
    """Return the outcome of an environment that is on its way, ``None`` when nothing is new.

    ``why`` is what keeps it; of one that was active, why it is so no more.
    """
    towards = Status.ACTIVATING if project.desired is Desired.ACTIVE else Status.DEACTIVATING
    if project.status is towards:
        news = why is not None and (project.error is None or project.error.code != why.code)
        if not steps and not news:
            return None
        return _because(unchanged(project, steps), why if news else None)
    outcome = replace(unchanged(project, steps), status=towards, endpoint=None)
    if not project.settled:
        return outcome
    if project.desired is not Desired.DELETED:
        # Nobody asked for this change, so nobody set a deadline.
        outcome = replace(outcome, deadline_at=now + timeout)
    return _because(outcome, why)


def goes_on(project: Project) -> bool:
    """Tell whether what is wanted has failed, and goes on being tried.

    A step is then told of once the cluster has taken it: told at each try, it would push its cause
    out of the log.
    """
    return project.status is Status.ERROR and project.settled


def doing(project: Project, verb: Verb) -> NewEvent:
    """Return what the log is told of a step; a stop of what is to be active is a new start."""
    anew = verb is Verb.STOP and project.desired is Desired.ACTIVE
    return _REFRESHING if anew else _DOING[verb]


def acting(
    project: Project,
    verb: Verb,
    now: datetime,
    timeout: timedelta,
    why: ErrorInfo | None = None,
) -> Outcome:
    """Return the outcome of setting about ``verb``, written before it is done.

    ``why`` is what was observed to be wrong, if anything.
    """
    outcome = unchanged(project, [] if goes_on(project) else [doing(project, verb)])
    if verb is Verb.PREPARE:
        return _because(outcome, why)
    if verb is Verb.START:
        if project.status is Status.ACTIVE:
            # Nobody asked, so nobody set a deadline.
            outcome = replace(outcome, events=[_ENDED_UNASKED], deadline_at=now + timeout)
        outcome = _because(outcome, why)
        return replace(outcome, status=Status.ACTIVATING, endpoint=None)
    if project.sleeps_unasked:
        outcome = replace(outcome, deadline_at=now + timeout)
    if verb is Verb.STOP and project.desired is Desired.ACTIVE:
        events = [] if project.status is Status.DEACTIVATING else outcome.events
        # What had failed for good ran: it must not keep what is stopped from its start.
        outcome = replace(outcome, events=events, deadline_at=now + timeout, error_terminal=False)
    return replace(outcome, status=Status.DEACTIVATING, endpoint=None)


def _because(outcome: Outcome, why: ErrorInfo | None) -> Outcome:
    """Return the outcome with what it is because of, told before it unless that is known."""
    if why is None or why == outcome.error:
        return outcome
    event = NewEvent(why.code, why.message, why.hint)
    return replace(outcome, error=why, events=[event, *outcome.events])


def retry(project: Project, error: ErrorInfo, now: datetime, pause: timedelta) -> Outcome:
    """Return the outcome of a step that failed or an environment of which nothing is known.

    The status stays, as an unknown is never an absence; past its deadline the change counts as
    failed, so that nobody waits for it for ever, and goes on being tried.
    """
    events = [] if error == project.error else [NewEvent(error.code, error.message, error.hint)]
    outcome = replace(
        unchanged(project, events),
        error=error,
        attempts=min(project.attempts + 1, MAX_RESTARTS - 1),
        due_at=now + pause,
    )
    late = project.deadline_at is not None and now >= project.deadline_at
    if late and not project.settled:
        return replace(outcome, status=Status.ERROR, observed_generation=project.generation)
    return outcome


def failed(
    project: Project, error: ErrorInfo, *, terminal: bool, due_at: datetime | None
) -> Outcome:
    """Return the outcome of a change that cannot be had (``terminal``: however often tried)."""
    told = project.status is Status.ERROR or project.observed_generation >= project.generation
    known = told and error == project.error
    events = [] if known else [NewEvent(error.code, error.message, error.hint)]
    return replace(
        unchanged(project, events),
        status=Status.ERROR,
        endpoint=None,
        error=error,
        error_terminal=terminal,
        observed_generation=project.generation,
        due_at=due_at,
    )
