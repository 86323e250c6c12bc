"""Links that open a preview for anybody who has one: made, listed, ended, and looked at each time.

A link is good for as long as it says, nobody has ended it, and whoever made it may do the same.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from greylag.domain.errors import LimitExceededError, MissingError, UnauthorizedError
from greylag.domain.project import Project, ProjectRef
from greylag.domain.users import Action, Principal, Share, of_project
from greylag.ports import Clock, PeopleStore
from greylag.services.people import People
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


class Shares:
    """The use cases of shared previews. Each fails as ``Projects.get`` does."""

    def __init__(
        self, store: PeopleStore, projects: Projects, people: People, clock: Clock
    ) -> None:
        self._store = store
        self._projects = projects
        self._people = people
        self._clock = clock

    async def make(self, principal: Principal, ref: ProjectRef, new: NewShare) -> Share:
        """Share a preview from now on.

        Raises:
            LimitExceededError: there are as many as may be.
        """
        project = await self._projects.get(principal, ref, Action.PREVIEW_USE)
        if len(await self._good(project)) >= MOST_SHARES:
            raise LimitExceededError(
                f"{MOST_SHARES} previews of this project are shared.", hint="End one first."
            )
        now = self._clock.now()
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
        await self._store.put(share, now)
        return share

    async def listed(self, principal: Principal, ref: ProjectRef) -> Sequence[Share]:
        """Return what is shared of a project, the newest first."""
        project = await self._projects.get(principal, ref, Action.PREVIEW_USE)
        found = await self._good(project)
        return sorted(found, key=lambda one: one.created_at, reverse=True)

    async def end(self, principal: Principal, ref: ProjectRef, key: str) -> None:
        """End a share, for every process within a second.

        Raises:
            MissingError: the project has none of this name.
        """
        project = await self._projects.get(principal, ref, Action.PREVIEW_USE)
        share = await self._store.find(Share, key)
        if share is None or share.record_id != project.id:
            raise MissingError(f"Nothing is shared by the name {key!r}.")
        await self._store.remove(Share, key)

    async def check(self, by: str | None, ref: ProjectRef, action: Action, key: str | None) -> None:
        """Return when what ``by`` opened of a project, or shared as ``key``, may still be seen.

        Raises:
            UnauthorizedError: the share was ended, or ``by`` comes in no more.
        """
        if by is not None and await self._people.active(by) is None:
            raise UnauthorizedError("Whoever opened this may not come in any more.", hint="")
        project = await self._projects.get(Principal("preview", by), ref, action)
        if key is not None:
            share = await self._store.find(Share, key)
            if share is None or share.record_id != project.id:
                raise UnauthorizedError("This is not shared any more.", hint="Ask for a new link.")

    async def _good(self, project: Project) -> Sequence[Share]:
        label = of_project(project.user_id, project.project_id)
        now = self._clock.now()
        found = await self._store.labelled(Share, label)
        return [one for one in found if one.record_id == project.id and one.expires_at > now]
