"""What to do next for a project: one pure answer to every pair of wanted and observed state."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import assert_never

from greylag.common.git import CloneState
from greylag.domain.errors import ErrorInfo
from greylag.domain.project import Desired, NewEvent, Project, Status

MAX_RESTARTS = 5


class Observed(StrEnum):
    """What the cluster says of an environment. ``UNKNOWN`` is never taken for ``ABSENT``."""

    ABSENT = "absent"
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"
    UNKNOWN = "unknown"


PROCESS_STARTED = NewEvent("process_started", "The environment's process has started.")
API_ANSWERS = NewEvent("api_answers", "The agent's API answers.")
AGENT_READY = NewEvent("agent_ready", "The agent is ready.")


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at an environment.

    ``endpoint`` is set when it is ready; ``error`` tells why it failed, is unknown, or does not get
    on, and ``terminal`` that a retry cannot help; ``steps`` are those on its way to ready that it
    has reached so far, in order; ``outdated`` names the settings that a ready one should have and
    has not; ``working`` says that it is at work which may take longer than a start, and ends by
    itself; ``unheard`` that it runs, and only has not answered whoever looks yet.
    """

    state: Observed
    endpoint: str | None = None
    error: ErrorInfo | None = None
    terminal: bool = False
    steps: tuple[NewEvent, ...] = ()
    outdated: str | None = None
    working: bool = False
    unheard: bool = False


class Verb(StrEnum):
    """What the reconciler can ask of a cluster. Each is idempotent."""

    PREPARE = "prepare"
    START = "start"
    STOP = "stop"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Act:
    """Do one thing, then look again."""

    verb: Verb


@dataclass(frozen=True, slots=True)
class Settle:
    """What is wanted is so: record ``status`` and rest."""

    status: Status


@dataclass(frozen=True, slots=True)
class Wait:
    """It is on its way: look again when something changes."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Nothing is known now, or a step failed: try again later."""

    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class Fail:
    """It cannot be had: record the error. ``terminal``: rest until something changes."""

    error: ErrorInfo
    terminal: bool


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing is left of a deleted project: remove its record."""


Plan = Act | Settle | Wait | Retry | Fail | Forget

_NO_REASON = ErrorInfo("environment_failed", "The environment ended without saying why.")
_UNKNOWN = ErrorInfo("cluster_unavailable", "The state of the environment is not known now.")


def plan(project: Project, seen: Observation, now: datetime) -> Plan:
    """Return what to do for ``project``, given one observation made just before ``now``.

    Pure and total: it never raises, and doing its answer again does no harm.
    """
    if seen.state is Observed.UNKNOWN:
        return Retry(seen.error or _UNKNOWN)
    match project.desired:
        case Desired.ACTIVE:
            return _towards_active(project, seen, now)
        case Desired.INACTIVE:
            return _towards_inactive(seen)
        case Desired.DELETED:
            return _towards_deleted(seen)
        case _:
            assert_never(project.desired)


def _towards_active(project: Project, seen: Observation, now: datetime) -> Plan:
    match seen.state:
        case Observed.READY:
            # What is stopped is started with what is set now.
            anew = seen.outdated is not None and project.refresh == seen.outdated
            return Act(Verb.STOP) if anew else Settle(Status.ACTIVE)
        case _ if project.error_terminal and project.error is not None:
            return Fail(project.error, terminal=True)
        case _ if seen.terminal:
            return Fail(seen.error or _NO_REASON, terminal=True)
        case Observed.FAILED if project.attempts >= MAX_RESTARTS:
            return Fail(seen.error or _NO_REASON, terminal=True)
        case Observed.STARTING | Observed.STOPPING:
            late = _is_late(project, now) and not seen.working
            return Fail(_late(seen), terminal=False) if late else Wait()
        case _:
            return Act(Verb.START)


def _towards_inactive(seen: Observation) -> Plan:
    match seen.state:
        case Observed.ABSENT:
            return Act(Verb.PREPARE)
        case Observed.STOPPED:
            return Settle(Status.INACTIVE)
        case Observed.STOPPING:
            return Wait()
        case _:
            return Act(Verb.STOP)


def _towards_deleted(seen: Observation) -> Plan:
    match seen.state:
        case Observed.ABSENT:
            return Forget()
        case Observed.STOPPED:
            return Act(Verb.DELETE)
        case Observed.STOPPING:
            return Wait()
        case _:
            return Act(Verb.STOP)


def _is_late(project: Project, now: datetime) -> bool:
    return project.deadline_at is not None and now >= project.deadline_at


def _late(seen: Observation) -> ErrorInfo:
    if seen.error is not None:
        return seen.error
    reached = f" The last step reached: {seen.steps[-1].message}" if seen.steps else ""
    return ErrorInfo(
        "activation_timeout",
        f"The environment did not become ready in time.{reached}",
        "`greylag logs` shows what it says; activate again to go on waiting.",
    )


# What the clone of a repository means for a project.


def with_git(project: Project, seen: Observation, state: CloneState | None) -> Observation:
    """Return what was seen of a ready environment, and of what its workspace starts from.

    Until that is there, or has failed, a project that is being activated is not ready yet. One
    that is active stays so: what failed is told, and the environment can be used. ``state`` is what
    the environment answered when it was told of its git, ``None`` where it could not be told.
    """
    if state is None:
        return _untold(project, seen)
    step = NewEvent(f"git_{state.status}", state.detail)
    match state.status:
        case "cloning" if project.status is Status.ACTIVE:
            return replace(seen, error=seen.error or _known_failure(project), working=True)
        case "cloning":
            steps = (*seen.steps, step)
            return replace(seen, state=Observed.STARTING, endpoint=None, steps=steps, working=True)
        case "failed":
            error = ErrorInfo(state.code or "git_failed", state.detail, state.hint)
            return replace(seen, error=seen.error or error)
        case "done":
            return replace(seen, steps=(*seen.steps, step))
        case _:
            return seen


def _untold(project: Project, seen: Observation) -> Observation:
    if project.source is None or project.has_come_up:
        return replace(seen, error=seen.error or _known_failure(project))
    error = ErrorInfo("agent_unreachable", "The environment was not told yet what to clone.")
    return replace(seen, state=Observed.STARTING, endpoint=None, error=error)


def _known_failure(project: Project) -> ErrorInfo | None:
    """Return what was told before of a clone that failed: of it nothing newer is known."""
    known = project.error is not None and project.error.code.startswith("git_")
    return project.error if known else None
