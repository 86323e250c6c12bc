"""Links that open a preview for anybody who has one: made, listed, ended, and looked at each time.

A link is good for as long as it says, nobody has ended it, and whoever made it may do the same.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from greylag.domain.audit import AuditAction, name_of
from greylag.domain.errors import LimitExceededError, MissingError, UnauthorizedError
from greylag.domain.project import Project, ProjectRef
from greylag.domain.users import Action, Principal, Share, of_project
from greylag.ports import Clock, PeopleStore
from greylag.services.access import Gate
from greylag.services.projects import Projects

MOST_SHARES = 100
"""How many of a project's may be good at once."""


@dataclass(frozen=True, slots=True)
class NewShare:
    """What is to be shared, as ``Share`` has it, and for how many seconds."""

    port: int | None
    path: str
    origin: str
    seconds: int


@dataclass(frozen=True, slots=True)
class Shares:
    """The use cases of shared previews. Each fails as ``Projects.get`` does."""

    store: PeopleStore
    projects: Projects
    gate: Gate
    clock: Clock

    async def make(self, principal: Principal, ref: ProjectRef, new: NewShare) -> Share:
        """Share a preview from now on.

        Raises:
            LimitExceededError: there are as many as may be.
        """
        project = await self.projects.get(principal, ref, Action.PREVIEW_USE)
        now = self.clock.now()
        share = Share(
            key=secrets.token_urlsafe(12),
            owner=ref.user_id,
            project_id=ref.project_id,
            record_id=project.id,
            port=new.port,
            path=new.path,
            origin=new.origin,
            by=principal.user_id,
            created_at=now,
            expires_at=now + timedelta(seconds=new.seconds),
        )
        told = self.gate.audit.event(
            principal,
            AuditAction.PREVIEW_LINK,
            shown_by(ref, new.port),
            path=new.path,
            share_seconds=new.seconds,
        )
        action, right = AuditAction.PREVIEW_LINK, Action.PREVIEW_USE
        async with self.gate.limited(principal, action, ref, right=right, counted=ref.user_id):
            if len(await self._good(project)) >= MOST_SHARES:
                raise LimitExceededError(
                    f"{MOST_SHARES} previews of this project are shared.", hint="End one first."
                )
            await self.store.put(share, now, audit=told)
        return share

    async def listed(self, principal: Principal, ref: ProjectRef) -> Sequence[Share]:
        """Return what is shared of a project, the newest first."""
        project = await self.projects.get(principal, ref, Action.PREVIEW_USE)
        found = await self._good(project)
        return sorted(found, key=lambda one: one.created_at, reverse=True)

    async def end(self, principal: Principal, ref: ProjectRef, key: str) -> None:
        """End a share, for every process within a second.

        Raises:
            MissingError: the project has none of this name.
        """
        project = await self.projects.get(principal, ref, Action.PREVIEW_USE)
        share = await self.store.find(Share, key)
        if share is None or share.record_id != project.id:
            raise MissingError(f"Nothing is shared by the name {key!r}.")
        on = shown_by(ref, share.port)
        event = self.gate.audit.event
        told = event(principal, AuditAction.PREVIEW_END, on, path=share.path)
        await self.store.remove(Share, key, audit=told)

    async def check(self, maker: Principal, ref: ProjectRef, key: str) -> None:
        """Return when what ``maker`` shared as ``key`` is shared still.

        Raises:
            UnauthorizedError: it was ended.
        """
        share = await self.store.find(Share, key)
        project = await self.projects.get(maker, ref, Action.PREVIEW_USE)
        if share is None or share.record_id != project.id:
            raise UnauthorizedError("This is not shared any more.", hint="Ask for a new link.")

    async def _good(self, project: Project) -> Sequence[Share]:
        label = of_project(project.user_id, project.project_id)
        now = self.clock.now()
        found = await self.store.labelled(Share, label)
        return [one for one in found if one.record_id == project.id and one.expires_at > now]


def shown_by(ref: ProjectRef, port: int | None) -> str:
    """Return what the audit trail calls what a preview shows."""
    return f"{name_of(ref)}/files" if port is None else f"{name_of(ref)}/ports/{port}"
