"""Whom projects are shared with: people who may see one, or work in it, and do not own it, and
anybody who has a link that opens a preview.

A link is good for as long as it says, nobody has ended it, and whoever made it may do the same.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from greylag.domain.audit import AuditAction, AuditEvent, name_of
from greylag.domain.errors import (
    ConflictError,
    InvalidRequestError,
    LimitExceededError,
    MissingError,
    UnauthorizedError,
)
from greylag.domain.project import Project, ProjectRef
from greylag.domain.users import (
    Action,
    Member,
    MemberRole,
    Principal,
    Share,
    member_key,
    of_project,
)
from greylag.ports import Attempts, Clock, PeopleStore, ProjectStore
from greylag.services.access import Gate
from greylag.services.audit import Audit
from greylag.services.people import People

MOST_SHARES = 100
"""How many links of a project's may be good at once."""


@dataclass(frozen=True, slots=True)
class Members:
    """The use cases of sharing. Each takes the principal who asks, and authorizes first, but for
    those that a hand-over asks for. Errors are those of ``Projects``.
    """

    people: PeopleStore
    directory: People
    projects: ProjectStore
    gate: Gate
    clock: Clock

    async def of(self, principal: Principal, ref: ProjectRef) -> Sequence[Member]:
        """Return whom a project is shared with."""
        project = await self.gate.project(principal, ref, Action.MEMBERS_READ)
        return await self._members(ref, project.id)

    async def share(
        self, principal: Principal, ref: ProjectRef, user_id: str, role: MemberRole
    ) -> Member:
        """Share a project with a user, in this role from now on. Idempotent.

        Raises:
            UserNotFoundError: there is no such user.
            InvalidRequestError: it is the owner.
        """
        project = await self.gate.project(principal, ref, Action.MEMBERS_WRITE)
        if user_id == ref.user_id:
            raise InvalidRequestError("A project is not shared with its own owner.")
        await self.directory.get(user_id)
        new = Member(ref.user_id, ref.project_id, project.id, user_id, role)
        return await self._keep(principal, new)

    async def _keep(self, principal: Principal, new: Member) -> Member:
        on = name_of(ProjectRef(new.owner, new.project_id))
        attempts = Attempts("this member")
        while True:
            before = await self.people.find(Member, new.key)
            if before and before.record_id != new.record_id and await self.gate.is_of_now(before):
                has = f"The user {new.owner!r} has another project {new.project_id!r} by now."
                raise ConflictError(has, hint="Look at the project again.")
            wanted = new if before is None else replace(new, version=before.version)
            if wanted == before:
                return wanted
            event = self.gate.audit.event(
                principal, AuditAction.MEMBER_SET, on, member=new.user_id, role=new.role
            )
            if await self.people.put(wanted, self.clock.now(), audit=event):
                return wanted
            attempts.failed()

    async def carry(
        self, principal: Principal, ref: ProjectRef, owner: str
    ) -> Mapping[str, MemberRole]:
        """Write down with whom a project is shared once it is ``owner``'s, and return it: before it
        is handed over, as that may be cut off after; until then it means nothing. What is there of
        a hand-over that was cut off goes. The caller has asked whether it may.
        """
        project = await self.projects.get(ref.user_id, ref.project_id)
        there = ProjectRef(owner, ref.project_id)
        found = await self._members(ref, project.id)
        carried = {one.user_id: one for one in found if one.user_id != owner}
        for left in await self._members(there, project.id):
            if left.user_id not in carried:
                await self._drop(principal, there, project.id, left.user_id)
        for one in carried.values():
            await self._keep(principal, replace(one, owner=owner, version=0))
        return {name: one.role for name, one in carried.items()}

    async def settle(
        self,
        principal: Principal,
        ref: ProjectRef,
        given: Project,
        carried: Mapping[str, MemberRole],
    ) -> None:
        """Forget with whom a project was shared where it was, before it was ``given``, and follow
        there what has changed of that since it was ``carried``.
        """
        back = set(carried)
        for one in await self._members(ref, given.id):
            back.add(one.user_id)
            if one.user_id != given.user_id and one.role is not carried.get(one.user_id):
                await self._keep(principal, replace(one, owner=given.user_id, version=0))
            # Whoever removes it first decides: it is carried on, or taken back.
            if await self._drop(principal, ref, given.id, one.user_id):
                back.remove(one.user_id)
        for one in await self._members(given.ref, given.id):
            if one.user_id in back:
                await self._drop(principal, given.ref, given.id, one.user_id)

    async def drop(self, principal: Principal, ref: ProjectRef, record_id: str) -> None:
        """Forget with whom a project was to be shared under a name that it has not got."""
        for one in await self._members(ref, record_id):
            await self._drop(principal, ref, record_id, one.user_id)

    async def _drop(
        self, principal: Principal, ref: ProjectRef, record_id: str, user_id: str
    ) -> bool:
        # Another project of its name may have a member under the same key by now.
        key, of_it = member_key(ref.user_id, ref.project_id, user_id), {"record_id": record_id}
        event = self.gate.audit.event
        told = event(principal, AuditAction.MEMBER_REMOVE, name_of(ref), member=user_id)
        return await self.people.remove(Member, key, only=of_it, audit=told)

    async def _members(self, ref: ProjectRef, record_id: str) -> Sequence[Member]:
        found = await self.people.labelled(Member, of_project(ref.user_id, ref.project_id))
        return [one for one in found if one.record_id == record_id]

    async def unshare(self, principal: Principal, ref: ProjectRef, user_id: str) -> None:
        """Take a project back from a user, who may also leave it themselves.

        Raises:
            MissingError: it was not shared with them.
        """
        leaves = user_id == principal.user_id
        action = Action.MEMBERS_READ if leaves else Action.MEMBERS_WRITE
        project = await self.gate.project(principal, ref, action)
        if not await self._drop(principal, ref, project.id, user_id):
            raise MissingError(f"The project is not shared with {user_id!r}.")


# Links to previews.


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
    gate: Gate
    clock: Clock

    async def make(self, principal: Principal, ref: ProjectRef, new: NewShare) -> Share:
        """Share a preview from now on.

        Raises:
            LimitExceededError: there are as many as may be.
        """
        project = await self.gate.project(principal, ref, Action.PREVIEW_USE)
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
            share=share.key,
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
        project = await self.gate.project(principal, ref, Action.PREVIEW_USE)
        found = await self._good(project)
        return sorted(found, key=lambda one: one.created_at, reverse=True)

    async def end(self, principal: Principal, ref: ProjectRef, key: str) -> None:
        """End a share, for every process within a second.

        Raises:
            MissingError: the project has none of this name.
        """
        project = await self.gate.project(principal, ref, Action.PREVIEW_USE)
        share = await self.store.find(Share, key)
        if share is None or share.record_id != project.id:
            raise MissingError(f"Nothing is shared by the name {key!r}.")
        await self.store.remove(Share, key, audit=end_of(self.gate.audit, principal, share))

    async def check(self, maker: Principal, ref: ProjectRef, key: str) -> None:
        """Return when what ``maker`` shared as ``key`` is shared still.

        Raises:
            UnauthorizedError: it was ended.
        """
        share = await self.store.find(Share, key)
        project = await self.gate.project(maker, ref, Action.PREVIEW_USE)
        if share is None or share.record_id != project.id:
            raise UnauthorizedError("This is not shared any more.", hint="Ask for a new link.")

    async def _good(self, project: Project) -> Sequence[Share]:
        label = of_project(project.user_id, project.project_id)
        now = self.clock.now()
        found = await self.store.labelled(Share, label)
        return [one for one in found if one.record_id == project.id and one.expires_at > now]


def end_of(audit: Audit, principal: Principal, share: Share) -> AuditEvent:
    """Return what the audit trail is told when a principal ends a share."""
    on = shown_by(ProjectRef(share.owner, share.project_id), share.port)
    return audit.event(principal, AuditAction.PREVIEW_END, on, share=share.key, path=share.path)


def shown_by(ref: ProjectRef, port: int | None) -> str:
    """Return what the audit trail calls what a preview shows."""
    return f"{name_of(ref)}/files" if port is None else f"{name_of(ref)}/ports/{port}"
