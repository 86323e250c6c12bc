"""What an environment that answers is told of git, and what its clone means for the project."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog

from greylag.common.git import CloneState
from greylag.domain.errors import ErrorInfo, GreylagError, StoreUnavailableError
from greylag.domain.lifecycle import Observation, Observed
from greylag.domain.project import NewEvent, Project, Status

_log = structlog.get_logger(__name__)


async def with_git(
    project: Project,
    seen: Observation,
    set_up: Callable[[], Awaitable[CloneState]],
    seconds: float,
) -> Observation:
    """Return what was seen of a ready environment, and of what its workspace starts from.

    Until that is there, or has failed, a project that is being activated is not ready yet. One
    that is active stays so: what failed is told, and the environment can be used.

    Args:
        project: whose environment it is.
        seen: what was seen of it.
        set_up: tells it of its git, and returns what it answers.
        seconds: how long that may take.
    """
    try:
        async with asyncio.timeout(seconds):
            state = await set_up()
    except StoreUnavailableError:
        raise
    except (GreylagError, TimeoutError) as error:
        _log.warning("git_not_set_up", error=str(error))
        return _unknown(project, seen)
    return _read(project, seen, state)


def _unknown(project: Project, seen: Observation) -> Observation:
    if project.source is None or project.status is Status.ACTIVE:
        return replace(seen, error=seen.error or _kept(project))
    error = ErrorInfo("agent_unreachable", "The environment was not told yet what to clone.")
    return replace(seen, state=Observed.STARTING, endpoint=None, error=error)


def _read(project: Project, seen: Observation, state: CloneState) -> Observation:
    step = NewEvent(f"git_{state.status}", state.detail)
    match state.status:
        case "cloning" if project.status is Status.ACTIVE:
            return replace(seen, error=seen.error or _kept(project), working=True)
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


def _kept(project: Project) -> ErrorInfo | None:
    """Return what was told before of a clone that failed: of it nothing newer is known."""
    known = project.error is not None and project.error.code.startswith("git_")
    return project.error if known else None
