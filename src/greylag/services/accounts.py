"""What people see and change of users: their own account, and as administrators those of all and
the audit trail.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from greylag.domain.audit import AuditAction, AuditBounds, name_of
from greylag.domain.errors import (
    ConflictError,
    InvalidRequestError,
    MissingError,
    UserNotFoundError,
)
from greylag.domain.project import Project, ProjectRef
from greylag.domain.users import (
    Action,
    ApiToken,
    DeviceLogin,
    Look,
    Member,
    NotificationTarget,
    Principal,
    Session,
    Share,
    User,
    UserSecret,
    of_project,
    of_user,
)
from greylag.ports import (
    RECENT_SECONDS,
    AnyKept,
    AuditFilter,
    AuditStore,
    Clock,
    Kept,
    NumberedEntry,
    PageQuery,
    PeopleStore,
)
from greylag.services.access import MAX_REASON_LENGTH, Gate
from greylag.services.notifications import Notifications
from greylag.services.people import People, UserEdit
from greylag.services.projects import Projects
from greylag.services.sharing import end_of

LOOK = timedelta(hours=1)
"""How long an administrator looks at another's projects before they are asked again."""
EXPORT_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Accounts:
    """The use cases of users and their sessions. Each takes the principal, and authorizes first;
    it fails as ``Gate.authorize`` does.
    """

    people: People
    gate: Gate
    projects: Projects
    store: PeopleStore
    notifications: Notifications
    clock: Clock

    async def me(self, principal: Principal) -> User | None:
        """Return the user who asks; ``None`` for the operator."""
        return None if principal.user_id is None else await self.people.get(principal.user_id)

    async def show(self, principal: Principal, user_id: str) -> User:
        """Return a user with all that an administrator, or they themselves, may see of them."""
        return await self.gate.authorize(principal, Action.ACCOUNT_READ, user_id)

    async def all(self, principal: Principal) -> Sequence[User]:
        """Return all users with all that administrators see of them.

        Raises:
            ForbiddenError: whoever asks is none.
        """
        await self.gate.administrate(principal, Action.USERS_WRITE)
        return await self.people.users()

    async def make(self, principal: Principal, user: User) -> User:
        """Add a user; fails as ``People.make`` does besides.

        Raises:
            ConflictError: something is left of somebody who had this id.
        """
        await self.gate.administrate(principal, Action.USERS_WRITE)
        if await self._is_left(user.id):
            await self._check_no_projects(user.id, left=True)
            raise ConflictError(
                f"Tokens, secrets or shares are left of a user {user.id!r} before.",
                hint="Remove that user first, or choose another id.",
            )
        return await self.people.make(user, by=principal)

    async def edit(self, principal: Principal, user_id: str, edit: UserEdit) -> User:
        """Change a user. One who is disabled comes in no more, and what runs of theirs is stopped.

        Raises:
            ConflictError: administrators would shut themselves out.
        """
        await self.gate.authorize(principal, Action.USERS_WRITE, user_id)
        if edit.disabled and user_id == principal.user_id:
            raise ConflictError("You cannot disable yourself.", hint="Another administrator can.")
        changed = await self.people.edit(user_id, edit, by=principal)
        if changed.disabled:
            await self.projects.sleep_all(principal, user_id)
        return changed

    async def remove(self, principal: Principal, user_id: str) -> None:
        """Remove a user with their sessions, tokens, secrets and notifications, with what was
        shared with them and the links that they made; or what is left of one whom the settings name
        no more. One that is refused leaves all as it is.

        Raises:
            ConflictError: they have projects, or the settings name them, or it is who asks.
            RecordUnreadableError: something cannot be read that is theirs, or may be.
        """
        left = principal.is_admin and await self._is_left(user_id)
        if not left:
            await self.gate.authorize(principal, Action.USERS_WRITE, user_id)
        if user_id == principal.user_id:
            raise ConflictError("You cannot remove yourself.", hint="Another administrator can.")
        await self._check_no_projects(user_id, left=left)
        self.people.check_removable(user_id)
        # What is passed over now, whoever has this id next would get once it can be read.
        await self._kept_of(user_id)
        await self._shared_by(user_id, strict=True)
        if not left:
            await self._shut_out(principal, user_id)
        await self._remove_all(principal, user_id)
        await self.people.remove(user_id, by=principal)

    async def _is_left(self, user_id: str) -> bool:
        """Tell whether there is no such user and something that was theirs."""
        with suppress(UserNotFoundError):
            await self.people.get(user_id)
            return False
        if await self.projects.has_any(user_id):
            return True
        return any([*await self._kept_of(user_id), await self._shared_by(user_id, strict=False)])

    async def _kept_of(self, user_id: str) -> Sequence[Sequence[AnyKept]]:
        """Return what is kept under a user's id, or fail where not all of it can be read."""
        kinds = (Session, ApiToken, DeviceLogin, UserSecret, NotificationTarget, Member)
        return [await self._of(kind, user_id) for kind in kinds]

    async def _of(self, kind: type[Kept], user_id: str) -> Sequence[Kept]:
        return await self.store.labelled(kind, of_user(user_id), strict=True)

    async def _shared_by(self, user_id: str, *, strict: bool) -> Sequence[Share]:
        """Return the links to previews that are good with a user's rights; ``strict``: or fail
        where one of anybody cannot be read.
        """
        found = await self.store.labelled(Share, strict=strict)
        return [one for one in found if one.by == user_id]

    async def _remove_all(self, principal: Principal, user_id: str) -> None:
        event = self.gate.audit.event
        for login in await self._of(DeviceLogin, user_id):
            await self.store.remove(DeviceLogin, login.key)
        for token in await self._of(ApiToken, user_id):
            told = event(principal, AuditAction.TOKEN_REVOKE, name_of(user_id), token=token.id)
            await self.store.remove(ApiToken, token.key, audit=told)
        for secret in await self._of(UserSecret, user_id):
            told = event(principal, AuditAction.SECRET_REMOVE, name_of(user_id), name=secret.name)
            await self.store.remove(UserSecret, secret.key, audit=told)
        await self.notifications.remove_all(principal, user_id)
        for member in await self._of(Member, user_id):
            on = name_of(ProjectRef(member.owner, member.project_id))
            told = event(principal, AuditAction.MEMBER_REMOVE, on, member=user_id)
            await self.store.remove(Member, member.key, audit=told)
        for share in await self._shared_by(user_id, strict=True):
            await self._end_link(principal, share)

    async def _shut_out(self, principal: Principal, user_id: str) -> None:
        """Disable a user who is to be removed, and return once they can have made no project."""
        before = await self.people.get(user_id)
        await self.people.edit(user_id, UserEdit(disabled=True), by=principal)
        # Until then another process may still let them in.
        await self.clock.sleep(RECENT_SECONDS)
        try:
            await self._check_no_projects(user_id, left=False)
        except ConflictError:
            again = UserEdit(disabled=before.disabled)
            await self.people.edit(user_id, again, by=principal)
            raise

    async def _check_no_projects(self, user_id: str, *, left: bool) -> None:
        if not await self.projects.has_any(user_id):
            return
        if left:
            raise ConflictError(
                f"Projects are left of a user {user_id!r}, whom nothing names any more.",
                hint="Name them in GREYLAG_USERS or GREYLAG_USERS_FILE again: then the projects are"
                " theirs, and can be handed over or deleted.",
            )
        if not (await self.projects.store.page(user_id, PageQuery(limit=1))).projects:
            raise ConflictError(
                f"The user {user_id!r} has a project that cannot be read.",
                hint="`greylag doctor` names it: correct or remove its record first.",
            )
        raise ConflictError(
            f"The user {user_id!r} has projects.",
            hint="Hand them over or delete them first, or disable the user instead.",
        )

    async def must_sleep(self, project: Project) -> bool:
        """Want a project inactive whose owner is disabled, and tell whether it had to be; for the
        reconciler alone: whoever disabled the owner may have been cut off before, and an activation
        may have come after.
        """
        with suppress(UserNotFoundError):
            if (await self.people.get(project.user_id)).disabled:
                await self.projects.sleep(project)
                return True
        return False

    async def hand_over(self, principal: Principal, ref: ProjectRef, user_id: str) -> Project:
        """Give a project that sleeps to another user, with its files and conversations, and return
        it. Whom it is shared with it stays shared with; links to its previews end, and secrets and
        tokens of the owner before are of no use in it any more.

        Raises:
            ConflictError: it does not sleep, or the user is disabled, or has one of this id.
            LimitExceededError: they have as many projects as they may.
        """
        await self.gate.authorize(principal, Action.PROJECTS_HAND_OVER, ref)
        user = await self.people.get(user_id)
        if user.id == ref.user_id:
            has = f"The user {user.id!r} has this project already."
            raise ConflictError(has, hint="Choose another user.")
        project = await self.projects.store.get(ref.user_id, ref.project_id)
        # Where it goes, links are left of when it was there, if its way from there was cut off.
        await self._end_links(principal, ProjectRef(user.id, ref.project_id), project.id)
        given = await self.projects.give(principal, ref, user)
        await self._end_links(principal, ref, project.id)
        return given

    async def _end_links(self, principal: Principal, ref: ProjectRef, record_id: str) -> None:
        """End the links to a project's previews under a name that it has not got."""
        for share in await self.store.labelled(Share, of_project(ref.user_id, ref.project_id)):
            if share.record_id == record_id:
                await self._end_link(principal, share)

    async def _end_link(self, principal: Principal, share: Share) -> None:
        told = end_of(self.gate.audit, principal, share)
        await self.store.remove(Share, share.key, audit=told)

    async def sessions(self, principal: Principal, user_id: str) -> Sequence[Session]:
        """Return a user's sessions that go on, the newest first."""
        await self.gate.authorize(principal, Action.ACCOUNT_READ, user_id)
        return await self.people.sessions(user_id)

    async def end_session(self, principal: Principal, user_id: str, session: str) -> None:
        """End a session, for every process, at once.

        Raises:
            MissingError: there is none of this id.
        """
        await self.gate.authorize(principal, Action.ACCOUNT_WRITE, user_id)
        if not await self.people.end_sessions(user_id, session, by=principal):
            raise MissingError(f"The user has no session {session!r}.")

    async def end_other_sessions(self, principal: Principal, user_id: str) -> None:
        """End all of a user's sessions but the one that the principal comes by, if it is theirs."""
        await self.gate.authorize(principal, Action.ACCOUNT_WRITE, user_id)
        await self.people.end_sessions(user_id, but=principal.session_id, by=principal)

    async def look_at(self, principal: Principal, user_id: str, reason: str) -> None:
        """Have an administrator's browser look at another's projects, for an hour at most.

        Args:
            principal: the administrator; they come by a session.
            user_id: at whose.
            reason: why, to read conversations and files as well; may be empty.
        """
        user = await self.gate.authorize(principal, Action.USERS_WRITE, user_id)
        session = principal.session_id
        if principal.user_id is None or session is None or user_id == principal.user_id:
            raise InvalidRequestError(
                "Only an administrator in a browser switches to another user.",
                hint="Programs give the reason in the header x-greylag-reason.",
            )
        if len(reason) > MAX_REASON_LENGTH:
            raise InvalidRequestError(f"A reason has {MAX_REASON_LENGTH} characters at most.")
        look = Look(user_id, user.display_name, reason, self.clock.now() + LOOK)
        event = self.gate.audit.event(
            principal, AuditAction.LOOK_START, name_of(user_id), reason=reason
        )
        await self.people.keep_look(principal.user_id, session, look, event)

    async def end_look(self, principal: Principal) -> None:
        """End the look that the principal's session has, if it has one."""
        session = principal.session_id
        if principal.look is None or principal.user_id is None or session is None:
            return
        on = name_of(principal.look.user_id)
        event = self.gate.audit.event(principal, AuditAction.LOOK_END, on)
        await self.people.keep_look(principal.user_id, session, None, event)


# Who reads what was done: administrators, page by page, or all of it.


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Entries, the newest first; ``cursor`` asks for older ones, if there are."""

    entries: Sequence[NumberedEntry]
    cursor: int | None
    bounds: AuditBounds


@dataclass(frozen=True, slots=True)
class AuditReader:
    """Reads the audit trail, for administrators."""

    store: AuditStore
    gate: Gate

    async def page(
        self, principal: Principal, asked: AuditFilter, limit: int, before: int | None
    ) -> AuditPage:
        """Return one page, of entries with numbers below ``before``."""
        await self.gate.administrate(principal, Action.AUDIT_READ)
        bounds = await self.store.audit_bounds()
        before = bounds.end.number + 1 if before is None else before
        found = await self.store.audit_entries(asked, limit + 1, before=before)
        shown = found[:limit]
        cursor = shown[-1][0] if len(found) > limit else None
        return AuditPage(shown, cursor, bounds)

    async def export(
        self, principal: Principal, asked: AuditFilter
    ) -> AsyncIterator[Sequence[NumberedEntry]]:
        """Return all entries up to now, the oldest first, some at a time."""
        await self.gate.administrate(principal, Action.AUDIT_READ)
        return self._batches(asked, await self.store.audit_bounds())

    async def _batches(
        self, asked: AuditFilter, bounds: AuditBounds
    ) -> AsyncIterator[Sequence[NumberedEntry]]:
        after = bounds.start.number
        while after < bounds.end.number:
            batch = await self.store.audit_entries(asked, EXPORT_AT_ONCE, after=after)
            kept = [one for one in batch if one[0] <= bounds.end.number]
            if not kept:
                return
            yield kept
            after = kept[-1][0]
