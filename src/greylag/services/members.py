"""Whom projects are shared with: people who may see one, or work in it, and do not own it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from greylag.domain.audit import AuditAction, name_of
from greylag.domain.errors import ConflictError, InvalidRequestError, MissingError
from greylag.domain.project import Project, ProjectRef
from greylag.domain.users import Action, Member, MemberRole, Principal, member_key, of_project
from greylag.ports import Attempts, Clock, PeopleStore, ProjectStore
from greylag.services.access import Gate
from greylag.services.people import People


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
        await self.gate.authorize(principal, Action.MEMBERS_READ, ref)
        project = await self.projects.get(ref.user_id, ref.project_id)
        return await self._members(ref, project.id)

    async def share(
        self, principal: Principal, ref: ProjectRef, user_id: str, role: MemberRole
    ) -> Member:
        """Share a project with a user, in this role from now on. Idempotent.

        Raises:
            UserNotFoundError: there is no such user.
            InvalidRequestError: it is the owner.
        """
        await self.gate.authorize(principal, Action.MEMBERS_WRITE, ref)
        project = await self.projects.get(ref.user_id, ref.project_id)
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
            known = before is None or before.record_id == new.record_id
            if before is not None and not known and await self.gate.is_of_now(before):
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
                await self._drop(principal, left)
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
            if await self._drop(principal, one):
                back.remove(one.user_id)
        for one in await self._members(given.ref, given.id):
            if one.user_id in back:
                await self._drop(principal, one)

    async def drop(self, principal: Principal, ref: ProjectRef, record_id: str) -> None:
        """Forget with whom a project was to be shared under a name that it has not got."""
        for one in await self._members(ref, record_id):
            await self._drop(principal, one)

    async def _drop(self, principal: Principal, one: Member) -> bool:
        # Another project of its name may have a member under the same key by now.
        on = name_of(ProjectRef(one.owner, one.project_id))
        told = self.gate.audit.event(principal, AuditAction.MEMBER_REMOVE, on, member=one.user_id)
        of_it = {"record_id": one.record_id}
        return await self.people.remove(Member, one.key, only=of_it, audit=told)

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
        await self.gate.authorize(principal, action, ref)
        project = await self.projects.get(ref.user_id, ref.project_id)
        key, of_it = member_key(ref.user_id, ref.project_id, user_id), {"record_id": project.id}
        event = self.gate.audit.event(
            principal, AuditAction.MEMBER_REMOVE, name_of(ref), member=user_id
        )
        if not await self.people.remove(Member, key, only=of_it, audit=event):
            raise MissingError(f"The project is not shared with {user_id!r}.")
