"""What an environment that answers is told of git, and what its clone means for the project."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from greylag.common.git import CloneState, GitSetup
from greylag.domain.errors import ErrorInfo, GreylagError, StoreUnavailableError
from greylag.domain.lifecycle import Observation, Observed, Step
from greylag.domain.project import Project, Status
from greylag.ports import AgentGateway, Cluster

GitSetups = Callable[[Project], Awaitable[GitSetup | None]]
"""Tells what a project's git is to have; ``None``: nothing is known of that."""

_log = structlog.get_logger(__name__)


async def no_setups(_project: Project) -> None:
    """Know nothing of git."""


@dataclass(frozen=True, slots=True)
class AskingGit:
    """Asks environments of their git: of whom, what to tell them, and seconds that it may take."""

    cluster: Cluster
    agents: AgentGateway
    setups: GitSetups
    seconds: float

    async def with_git(self, project: Project, seen: Observation) -> Observation:
        """Return what was seen of a ready environment, and of what its workspace starts from.

        Until that is there, or has failed, a project that is being activated is not ready yet. One
        that is active stays so: what failed is told, and the environment can be used.
        """
        try:
            async with asyncio.timeout(self.seconds):
                setup = await self.setups(project)
                if setup is None:
                    return seen
                at = await self.cluster.reach(project.environment)
                state = await self.agents.set_up_git(at, setup)
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
    step = Step(f"git_{state.status}", state.detail)
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
