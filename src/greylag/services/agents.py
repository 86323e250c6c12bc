"""What runs in a project's environment: its agent's API and turns, and its log."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from greylag.common.agent_api import Decision, Turn
from greylag.domain.errors import NotActiveError
from greylag.domain.project import Project, ProjectRef, Status
from greylag.domain.users import Action, Principal
from greylag.ports import (
    AgentAddress,
    AgentAnswer,
    AgentGateway,
    AgentRequest,
    AgentStatus,
    Cluster,
)
from greylag.services.projects import Projects

MAX_LOG_LINES = 10_000


class Agents:
    """The use cases of what runs in an environment.

    Each fails as ``Projects`` does for a wrong user or project, as its method of ``AgentGateway``
    does, and by ``NotActiveError`` when the environment does not run.
    """

    def __init__(self, projects: Projects, cluster: Cluster, gateway: AgentGateway) -> None:
        self._projects = projects
        self._cluster = cluster
        self._gateway = gateway

    async def address(
        self, principal: Principal, ref: ProjectRef, action: Action = Action.AGENT_READ
    ) -> AgentAddress:
        """Return where the project's agent answers a principal who may do ``action`` with it."""
        project = await self._projects.get(principal, ref, action)
        return await self.reach(project)

    async def reach(self, project: Project) -> AgentAddress:
        """Return where an active project's agent answers."""
        if project.status is not Status.ACTIVE:
            why = f" {project.error.message}" if project.error is not None else ""
            raise NotActiveError(
                f"Project {project.project_id} is {project.status}, not active.{why}"
            )
        return await self._cluster.reach(project.environment)

    async def status(self, principal: Principal, ref: ProjectRef) -> AgentStatus:
        """Return what answers in the environment."""
        return await self._gateway.status(await self.address(principal, ref))

    async def relay(
        self, principal: Principal, ref: ProjectRef, request: AgentRequest
    ) -> AbstractAsyncContextManager[AgentAnswer]:
        """Return the agent's answer to an operation of its API, to be opened."""
        reads = request.operation.method == "GET"
        action = Action.AGENT_READ if reads else Action.AGENT_WRITE
        at = await self.address(principal, ref, action)
        return self._gateway.relay(at, request)

    async def stream_turn(
        self, principal: Principal, ref: ProjectRef, turn_id: str, after: str | None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a turn's events again, as whole SSE frames, from the one after id ``after``."""
        at = await self.address(principal, ref)
        return self._gateway.stream_turn(at, turn_id, after)

    async def cancel_turn(self, principal: Principal, ref: ProjectRef, turn_id: str) -> Turn:
        """Ask a turn to end."""
        at = await self.address(principal, ref, Action.AGENT_WRITE)
        return await self._gateway.cancel_turn(at, turn_id)

    async def confirm(
        self,
        principal: Principal,
        ref: ProjectRef,
        turn_id: str,
        confirmation_id: str,
        *,
        decision: Decision,
    ) -> None:
        """Answer a turn's question whether a tool may run."""
        at = await self.address(principal, ref, Action.AGENT_WRITE)
        await self._gateway.confirm(at, turn_id, confirmation_id, decision)

    async def logs(
        self, principal: Principal, ref: ProjectRef, *, follow: bool, tail: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the environment's log: its last ``tail`` lines (10,000 at most), then what comes."""
        project = await self._projects.get(principal, ref, Action.LOGS_READ)
        return self._cluster.logs(project.environment, follow=follow, tail=min(tail, MAX_LOG_LINES))
