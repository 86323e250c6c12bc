"""Who may do what: the one place that decides it, before any use case reads or writes.

What somebody is to the thing that they ask for is their standing: its owner, an administrator, or
one of the members whom a project was shared with. Who has none is told what they would be told if
there were no such user or project. ``docs/people.md`` holds the table below as ``table`` writes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

import structlog

from greylag.domain.errors import (
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    MissingError,
    ProjectNotFoundError,
)
from greylag.domain.project import ProjectRef
from greylag.domain.users import (
    Action,
    Member,
    MemberRole,
    Principal,
    Scope,
    User,
    member_key,
    of_project,
    of_user,
)
from greylag.ports import Clock, PeopleStore, ProjectStore, UserDirectory
from greylag.services.people import no_such_user

MAX_REASON_LENGTH = 500
_ATTEMPTS = 5

_log = structlog.get_logger(__name__)


class Standing(StrEnum):
    """What a principal is to what they ask for. The operator counts as the owner of everything."""

    OWNER = "owner"
    ADMIN = "admin"
    EDITOR = "editor"
    VIEWER = "viewer"


_ALL = frozenset(Standing)
_OWNERS = frozenset({Standing.OWNER, Standing.ADMIN})
_AT_WORK = frozenset({Standing.OWNER, Standing.EDITOR})
_ADMINS = frozenset({Standing.ADMIN})

RULES: Mapping[Action, tuple[frozenset[Standing], Scope]] = {
    Action.PROJECTS_LIST: (_ALL, Scope.PROJECTS_READ),
    Action.PROJECTS_READ: (_ALL, Scope.PROJECTS_READ),
    Action.PROJECTS_WRITE: (_OWNERS, Scope.PROJECTS_WRITE),
    Action.PROJECTS_DELETE: (_OWNERS, Scope.PROJECTS_WRITE),
    Action.ENVIRONMENT_ACTIVATE: (_OWNERS | _AT_WORK, Scope.PROJECTS_WRITE),
    Action.ENVIRONMENT_DEACTIVATE: (_OWNERS | _AT_WORK, Scope.PROJECTS_WRITE),
    Action.LOGS_READ: (_ALL, Scope.PROJECTS_READ),
    Action.MEMBERS_READ: (_ALL, Scope.PROJECTS_READ),
    Action.MEMBERS_WRITE: (_OWNERS, Scope.PROJECTS_WRITE),
    Action.MESSAGES_SEND: (_AT_WORK, Scope.MESSAGES),
    Action.AGENT_READ: (_ALL, Scope.MESSAGES),
    Action.AGENT_WRITE: (_AT_WORK, Scope.MESSAGES),
    Action.FILES_READ: (_ALL, Scope.FILES),
    Action.FILES_WRITE: (_AT_WORK, Scope.FILES),
    Action.TERMINAL_USE: (_AT_WORK, Scope.FILES),
    Action.PREVIEW_USE: (_AT_WORK, Scope.FILES),
    Action.ACCOUNT_READ: (_OWNERS, Scope.ADMIN),
    Action.ACCOUNT_WRITE: (_OWNERS, Scope.ADMIN),
    Action.SECRETS_WRITE: (_OWNERS, Scope.ADMIN),
    Action.USERS_WRITE: (_ADMINS, Scope.ADMIN),
}
"""Whose standing lets them do it, and which scope a token needs besides."""

WITH_REASON = frozenset({Action.AGENT_READ, Action.FILES_READ})
"""What an administrator may do with another's project only by saying why, which is logged."""

_WHILE_DISABLED = frozenset(
    {Action.ENVIRONMENT_ACTIVATE, Action.MESSAGES_SEND, Action.PROJECTS_WRITE}
)


def table() -> str:
    """Return the rules as the table of the documentation."""
    lines = [
        f"| action | {' | '.join(Standing)} | scope of a token |",
        f"|---|{'---|' * len(Standing)}---|",
    ]
    for action, (standings, scope) in RULES.items():
        cells = [
            "with a reason"
            if standing is Standing.ADMIN and action in WITH_REASON
            else "yes"
            if standing in standings
            else "no"
            for standing in Standing
        ]
        lines.append(f"| `{action}` | {' | '.join(cells)} | `{scope}` |")
    return "\n".join(lines)


class Gate:
    """Decides for every use case, and keeps whom projects are shared with."""

    def __init__(
        self, people: PeopleStore, directory: UserDirectory, projects: ProjectStore, clock: Clock
    ) -> None:
        self._people = people
        self._directory = directory
        self._projects = projects
        self._clock = clock

    async def authorize(self, principal: Principal, action: Action, what: str | ProjectRef) -> User:
        """Return the owner when ``principal`` may do ``action``.

        Args:
            principal: who asks.
            action: what for.
            what: the user or the project that it is done with.

        Raises:
            UserNotFoundError: there is no such user, or the principal has nothing to do with them.
            ProjectNotFoundError: a token is not for this project.
            ForbiddenError: the principal may know of it and may not do this; one log line says so.
        """
        owner = _owner(what)
        standing = await self._standing(principal, what)
        if standing is None:
            _log.warning("action_refused", principal=principal.name, action=action, user_id=owner)
            raise no_such_user(owner)
        user = await self._directory.get(owner)
        self._check(principal, action, what, standing)
        if user.disabled and action in _WHILE_DISABLED:
            raise ForbiddenError(
                f"The user {owner} is disabled.", hint="An administrator can enable them again."
            )
        return user

    async def see(self, principal: Principal, what: str | ProjectRef) -> None:
        """Return when the principal may know of a user or a project; raises as ``authorize``."""
        if await self._standing(principal, what) is None:
            raise no_such_user(_owner(what))

    async def visible(self, principal: Principal) -> Sequence[User]:
        """Return the users of whose projects the principal may see any, in the directory's order;
        the principal's own user first.
        """
        users = await self._directory.users()
        if principal.is_admin or principal.user_id is None:
            return users
        shared = await self._people.labelled(Member, of_user(principal.user_id))
        owners = {one.owner for one in shared} if principal.projects is None else set()
        mine = [user for user in users if user.id == principal.user_id]
        return mine + [user for user in users if user.id in owners and user not in mine]

    async def only(self, principal: Principal, owner: str) -> frozenset[str] | None:
        """Return the ids of those of an owner's projects that the principal may see; ``None``: all
        of them.
        """
        if owner == principal.user_id:
            return principal.projects
        if principal.user_id is None or principal.is_admin:
            return None
        shared = await self._people.labelled(Member, of_user(principal.user_id))
        return frozenset(one.project_id for one in shared if one.owner == owner)

    async def members(self, principal: Principal, ref: ProjectRef) -> Sequence[Member]:
        """Return whom a project is shared with."""
        await self.authorize(principal, Action.MEMBERS_READ, ref)
        project = await self._projects.get(ref.user_id, ref.project_id)
        found = await self._people.labelled(Member, of_project(ref.user_id, ref.project_id))
        return [one for one in found if one.record_id == project.id]

    async def share(
        self, principal: Principal, ref: ProjectRef, user_id: str, role: MemberRole
    ) -> Member:
        """Share a project with a user, in this role from now on. Idempotent.

        Raises:
            UserNotFoundError: there is no such user.
            InvalidRequestError: it is the owner.
        """
        await self.authorize(principal, Action.MEMBERS_WRITE, ref)
        project = await self._projects.get(ref.user_id, ref.project_id)
        if user_id == ref.user_id:
            raise InvalidRequestError("A project is not shared with its own owner.")
        await self._directory.get(user_id)
        new = Member(ref.user_id, ref.project_id, project.id, user_id, role)
        for _ in range(_ATTEMPTS):
            before = await self._people.find(Member, new.key)
            wanted = new if before is None else replace(new, version=before.version)
            if wanted == before or await self._people.put(wanted, self._clock.now()):
                return wanted
        raise ConflictError("Others changed this member again and again.")

    async def unshare(self, principal: Principal, ref: ProjectRef, user_id: str) -> None:
        """Take a project back from a user, who may also leave it themselves.

        Raises:
            MissingError: it was not shared with them.
        """
        leaves = user_id == principal.user_id
        action = Action.MEMBERS_READ if leaves else Action.MEMBERS_WRITE
        await self.authorize(principal, action, ref)
        key = member_key(ref.user_id, ref.project_id, user_id)
        if not await self._people.remove(Member, key):
            raise MissingError(f"The project is not shared with {user_id!r}.")

    async def _standing(self, principal: Principal, what: str | ProjectRef) -> Standing | None:
        owner = _owner(what)
        if principal.user_id is None or principal.user_id == owner:
            return Standing.OWNER
        if principal.is_admin:
            return Standing.ADMIN
        if not isinstance(what, ProjectRef):
            return Standing.VIEWER if await self.only(principal, owner) else None
        key = member_key(owner, what.project_id, principal.user_id)
        member = await self._people.find(Member, key)
        if member is None or principal.projects is not None:
            return None
        try:
            project = await self._projects.get(owner, what.project_id)
        except ProjectNotFoundError:
            return None
        return Standing(member.role) if project.id == member.record_id else None

    def _check(
        self, principal: Principal, action: Action, what: str | ProjectRef, standing: Standing
    ) -> None:
        owner = _owner(what)
        standings, scope = RULES[action]
        if principal.projects is not None:
            if isinstance(what, ProjectRef) and what.project_id not in principal.projects:
                raise ProjectNotFoundError(f"User {owner!r} has no project {what.project_id!r}.")
            if isinstance(what, str) and action is not Action.PROJECTS_LIST:
                raise _refused(principal, action, owner, "This token is for some projects only.")
        if principal.scopes is not None and scope not in principal.scopes:
            raise _refused(principal, action, owner, f"This token lacks the scope {scope}.")
        if standings == _ADMINS and principal.is_admin:
            return  # who may be the owner too
        if standing is Standing.ADMIN and action in WITH_REASON:
            if principal.reason:
                _log.warning(
                    "read_with_reason",
                    principal=principal.name,
                    action=action,
                    user_id=owner,
                    reason=principal.reason,
                )
                return
            hint = "Say why in the header x-greylag-reason; it is logged."
            raise _refused(principal, action, owner, "Only with a reason may you read this.", hint)
        if standing not in standings:
            words = f"As {standing} of this you may not do {action}."
            raise _refused(principal, action, owner, words)


def _owner(what: str | ProjectRef) -> str:
    return what.user_id if isinstance(what, ProjectRef) else what


def _refused(
    principal: Principal, action: Action, owner: str, words: str, hint: str = ""
) -> ForbiddenError:
    _log.warning("action_refused", principal=principal.name, action=action, user_id=owner)
    return ForbiddenError(words, hint=hint or "Ask the owner, or an administrator.")
