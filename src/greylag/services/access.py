"""Who may do what: the one place that decides it, before any use case reads or writes.

What somebody is to the thing that they ask for is their standing: its owner, an administrator, or
one of the members whom a project was shared with. Who has none is told what they would be told if
there were no such user or project. ``docs/people.md`` holds the table below.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from zlib import crc32

import structlog

from greylag.common.concurrent import both, to_its_end
from greylag.domain.audit import name_of
from greylag.domain.errors import (
    ConflictError,
    ForbiddenError,
    GreylagError,
    LimitExceededError,
    ProjectNotFoundError,
    StoreUnavailableError,
    UnauthorizedError,
)
from greylag.domain.project import Project, ProjectRef
from greylag.domain.users import (
    Action,
    Member,
    Principal,
    Role,
    Scope,
    User,
    member_key,
    of_user,
)
from greylag.ports import (
    Clock,
    Duty,
    PeopleStore,
    ProjectStore,
    RecordUnreadableError,
)
from greylag.services.audit import Audit
from greylag.services.people import People, no_such_user

MAX_REASON_LENGTH = 500
COUNTING = "count"
COUNTED_AT_ONCE = 64
"""How many duties of this name share out whose things are counted; a store keeps them all."""
_COUNTING_SECONDS = 10.0
_LOOK_SECONDS = 0.05
_LOOKED_SECONDS = 0.5
_MOST_LOOKED = 10_000
_ANEW = datetime.max.replace(tzinfo=UTC)  # whoever did it before, it is to be done again

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
    Action.PROJECTS_HAND_OVER: (_ADMINS, Scope.ADMIN),
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
    Action.NOTIFICATIONS_WRITE: (frozenset({Standing.OWNER}), Scope.ADMIN),
    Action.USERS_WRITE: (_ADMINS, Scope.ADMIN),
    Action.AUDIT_READ: (_ADMINS, Scope.ADMIN),
}
"""Whose standing lets them do it, and which scope a token needs besides."""

WITH_REASON = frozenset({Action.AGENT_READ, Action.FILES_READ})
"""What an administrator may do with another's project only by saying why, which is audited."""

_WHILE_DISABLED = frozenset(
    {Action.ENVIRONMENT_ACTIVATE, Action.MESSAGES_SEND, Action.PROJECTS_WRITE}
)


class Gate:
    """Decides for every use case."""

    def __init__(
        self, people: PeopleStore, directory: People, projects: ProjectStore, clock: Clock
    ) -> None:
        self._people = people
        self._directory = directory
        self._projects = projects
        self._clock = clock
        self._turns = [asyncio.Lock() for _ in range(COUNTED_AT_ONCE)]
        self._looked: dict[Member, tuple[float, bool]] = {}
        self.audit = Audit(projects, clock)

    async def authorize(self, principal: Principal, action: Action, what: str | ProjectRef) -> User:
        """Return the owner when ``principal`` may do ``action``.

        Args:
            principal: who asks.
            action: what for.
            what: the user or the project that it is done with.

        Raises:
            UserNotFoundError: there is no such user, or the principal has nothing to do with them.
            ProjectNotFoundError: a token is not for this project.
            ForbiddenError: the principal may know of it and may not do this.
        """
        owner = _owner(what)
        found = await self._standings(principal, what)
        if not found:
            raise await self.refused(principal, action, what, no_such_user(owner))
        user = await self._directory.get(owner)
        refusal = _refusal(principal, action, what, found)
        if refusal is None and user.disabled and action in _WHILE_DISABLED:
            hint = "An administrator can enable them again."
            refusal = ForbiddenError(f"The user {owner} is disabled.", hint=hint)
        if refusal is not None:
            raise await self.refused(principal, action, what, refusal)
        if _as_admin_alone(action, found):
            reason = principal.reason_for(owner)
            await self.audit.repeatedly(
                self.audit.event(principal, action, name_of(what), reason=reason)
            )
        return user

    async def project(self, principal: Principal, ref: ProjectRef, action: Action) -> Project:
        """Return a project with which the principal may do this.

        Raises:
            UserNotFoundError, ForbiddenError: as ``authorize`` does.
            ProjectNotFoundError: the user has no such project.
        """
        # Both may wait for a store that is far: neither waits for the other.
        reading = self._projects.get(ref.user_id, ref.project_id)
        _, project = await both(self.authorize(principal, action, ref), reading)
        return project

    async def may(self, principal: Principal, action: Action, what: str | ProjectRef) -> bool:
        """Tell whether a principal's standing lets them do it, so that a page offers no more."""
        standings, scope = RULES[action]
        granted = principal.scopes is None or scope in principal.scopes
        return granted and not standings.isdisjoint(await self._standings(principal, what))

    async def check_receives(self, user_id: str) -> None:
        """Return when a project may be handed over to a user.

        Raises:
            UserNotFoundError: there is none of this id.
            ConflictError: they are disabled.
        """
        if (await self._directory.get(user_id)).disabled:
            disabled = f"The user {user_id!r} is disabled."
            raise ConflictError(disabled, hint="Choose another user.")

    async def administrate(self, principal: Principal, action: Action) -> None:
        """Return when ``principal`` may do ``action``, which is about no user of its own.

        Raises:
            ForbiddenError: they may not.
        """
        if not principal.is_admin:
            raise await self.refused(principal, action, "", _no_administrator(action, principal))

    async def refused(
        self, principal: Principal, action: str, what: str | ProjectRef, error: GreylagError
    ) -> GreylagError:
        """Return ``error``, by which an action is refused, once the audit trail was told of it."""
        name = name_of(what) if what else ""
        about = {"principal": principal.name, "action": action, "user_id": _owner(what)}
        _log.warning("action_refused", **about)
        await self.audit.refused(principal, action, name, error.info.code)
        return error

    @asynccontextmanager
    async def limited(
        self,
        principal: Principal,
        action: str,
        what: str | ProjectRef,
        *,
        right: Action | None = None,
        counted: str | None = None,
    ) -> AsyncIterator[None]:
        """Tell the audit trail of a limit by which the block refuses an action.

        With ``counted``, whose things the block counts and adds to, such blocks of one user (and of
        some others) come one after another in all processes of a store, so that no two of them find
        the same room. The turn of one that died, or takes longer than ten seconds, goes to the
        next. When it has come, a user's sign-in, and the ``right`` to it in the role that they have
        then, have to count still.

        Raises:
            ConflictError: others went first for too long.
            UnauthorizedError: the token or the sign-in ended meanwhile.
            GreylagError: as ``authorize``.
        """
        try:
            if counted is None:
                yield
                return
            async with self._turn(counted):
                if right is not None:
                    await self.authorize(await self.as_of_now(principal), right, what)
                yield
        except LimitExceededError as error:
            await self.refused(principal, action, what, error)
            raise

    @asynccontextmanager
    async def _turn(self, user_id: str) -> AsyncIterator[None]:
        slot = crc32(user_id.encode(errors="replace")) % COUNTED_AT_ONCE
        name, holder = f"{COUNTING} {slot}", secrets.token_hex(8)
        end, away = self._clock.monotonic() + 2 * _COUNTING_SECONDS, False
        async with self._turns[slot]:
            # Who leaves at any moment must give up what the store may have given them by then.
            try:
                try:
                    await self._come_first(name, holder, end)
                except StoreUnavailableError:
                    away = True  # and would be waited for again
                    raise
                yield
            finally:
                if not away:
                    await to_its_end(self._give_up(name, holder), "end of a turn to count")

    async def _come_first(self, name: str, holder: str, end: float) -> None:
        while not await to_its_end(self._is_taken(name, holder), "turn to count"):
            if self._clock.monotonic() >= end:
                others = "Other requests that count go first."
                raise ConflictError(others, hint="Try again in a moment.")
            await self._clock.sleep(_LOOK_SECONDS)

    async def _is_taken(self, name: str, holder: str) -> bool:
        now = self._clock.now()
        return Duty.MINE is await self._projects.take_duty(
            name, holder, since=_ANEW, now=now, seconds=_COUNTING_SECONDS
        )

    async def _give_up(self, name: str, holder: str) -> None:
        with suppress(StoreUnavailableError):  # it runs out by itself
            await self._projects.finish_duty(name, holder, self._clock.now())

    async def as_of_now(self, principal: Principal) -> Principal:
        """Return a principal in the role that they have now.

        Raises:
            UnauthorizedError: the token or sign-in that they came by does not count any more.
        """
        role: Role | None = principal.role
        if principal.user_id is not None:
            role = await self._directory.role_now(principal.user_id, principal.sign_in)
        elif principal.sign_in:
            name, _, seconds = principal.sign_in.rpartition(" ")
            signed_at = datetime.fromtimestamp(int(seconds), UTC)
            role = None if await self._projects.is_revoked(name, signed_at) else role
        if role is None:
            raise UnauthorizedError("The token or sign-in does not count any more.")
        return replace(principal, role=role)

    @staticmethod
    def is_lasting(principal: Principal, owner: str) -> bool:
        """Tell whether nothing but the principal's own end takes from them what they may do with
        what is an owner's.
        """
        return principal.user_id in {None, owner}

    async def check_again(
        self, principal: Principal, action: Action | None, what: str | ProjectRef
    ) -> None:
        """Return when the principal, who was allowed it, may still do ``action`` (``None``: know of
        the user or project; without a name: administrate), for the reason that they give now.

        Raises:
            UserNotFoundError: they have nothing to do with it any more.
            ForbiddenError: they have, but may not do this any more.
        """
        standings = await self._standings(principal, what)
        if not standings:
            raise (
                _no_administrator(action, principal)
                if action and not what
                else no_such_user(_owner(what))
            )
        if action is None:
            return
        if RULES[action][0].isdisjoint(standings):
            named = " and ".join(sorted(standings))
            raise _forbidden(f"As {named} of this you may not do {action} any more.")
        if _as_admin_alone(action, standings) and not principal.reason_for(_owner(what)):
            raise _no_reason()

    async def is_foreign(self, principal: Principal, what: str | ProjectRef) -> bool:
        """Tell whether the principal sees it as an administrator alone."""
        return await self._standings(principal, what) == _ADMINS

    async def visible(self, principal: Principal) -> Sequence[User]:
        """Return the users of whose projects the principal may see any, in the directory's order;
        the principal's own user first.
        """
        users = await self._directory.users()
        own = principal.user_id
        if principal.is_admin or own is None:
            return sorted(users, key=lambda user: user.id != own)
        owners = await self._sharing(own) if principal.projects is None else set[str]()
        seen = [user for user in users if user.id == own or user.id in owners]
        return sorted(seen, key=lambda user: user.id != own)

    async def _sharing(self, user_id: str, owner: str | None = None) -> set[str]:
        """Return who shares projects with a user, of all or of one ``owner`` alone."""
        owners = set[str]()
        for one in await self._people.labelled(Member, of_user(user_id)):
            wanted = owner in {None, one.owner} and one.owner not in owners
            if wanted and await self._was_of_now(one):
                owners.add(one.owner)
        return owners

    async def _was_of_now(self, one: Member) -> bool:
        """Tell what ``is_of_now`` told within half a second: each look of each open page asks it
        for all who share with somebody.
        """
        now = self._clock.monotonic()
        until, found = self._looked.get(one, (now, False))
        if now >= until:
            found = await self.is_of_now(one)
            if len(self._looked) >= _MOST_LOOKED:
                self._looked.clear()
            self._looked[one] = now + _LOOKED_SECONDS, found
        return found

    async def is_of_now(self, one: Member) -> bool:
        """Tell whether it is of the project that has this name now, and of none that had it."""
        try:
            project = await self._projects.get(one.owner, one.project_id)
        except ProjectNotFoundError:
            return False
        except RecordUnreadableError:
            return True  # whoever asks for it is told of that
        return project.id == one.record_id

    async def only(self, principal: Principal, owner: str) -> frozenset[str] | None:
        """Return the ids of those of an owner's projects that the principal may see; ``None``: all
        of them. Some may be of projects that are gone.
        """
        if owner == principal.user_id:
            return principal.projects
        if principal.user_id is None or principal.is_admin:
            return None
        if principal.projects is not None:
            return frozenset()
        shared = await self._people.labelled(Member, of_user(principal.user_id))
        return frozenset(one.project_id for one in shared if one.owner == owner)

    async def _standings(self, principal: Principal, what: str | ProjectRef) -> frozenset[Standing]:
        """Return all that a principal is to it: an administrator may be its owner or a member."""
        owner = _owner(what)
        admin = _ADMINS if principal.is_admin else frozenset[Standing]()
        if principal.user_id is None or principal.user_id == owner:
            return admin | {Standing.OWNER}
        if not isinstance(what, ProjectRef):
            alone = admin or principal.projects is not None
            sees = not alone and await self._sharing(principal.user_id, owner)
            return frozenset({Standing.VIEWER}) if sees else admin
        key = member_key(owner, what.project_id, principal.user_id)
        member = await self._people.find(Member, key)
        if member is None or principal.projects is not None:
            return admin
        return admin | {Standing(member.role)} if await self.is_of_now(member) else admin


def _owner(what: str | ProjectRef) -> str:
    return what.user_id if isinstance(what, ProjectRef) else what


def _refusal(
    principal: Principal, action: Action, what: str | ProjectRef, found: frozenset[Standing]
) -> GreylagError | None:
    """Return why somebody who is all this to it may not do ``action``; ``None``: they may."""
    if (beyond := _beyond_token(principal, action, what)) is not None:
        return beyond
    if found.isdisjoint(RULES[action][0]):
        (standing, *_) = (one for one in Standing if one in found)
        return _forbidden(f"As {standing} of this you may not do {action}.")
    if _as_admin_alone(action, found) and not principal.reason_for(_owner(what)):
        return _no_reason()
    return None


def _as_admin_alone(action: Action, found: frozenset[Standing]) -> bool:
    """Tell whether it is by being an administrator alone that one reads what needs a reason."""
    return action in WITH_REASON and found & RULES[action][0] == _ADMINS


def _beyond_token(
    principal: Principal, action: Action, what: str | ProjectRef
) -> GreylagError | None:
    """Return why the token that somebody comes by is not for this, if it is one and is not."""
    _, scope = RULES[action]
    if principal.projects is not None:
        if isinstance(what, ProjectRef) and what.project_id not in principal.projects:
            return ProjectNotFoundError(
                f"User {what.user_id!r} has no project {what.project_id!r}."
            )
        if isinstance(what, str) and action is not Action.PROJECTS_LIST:
            return _forbidden("This token is for some projects only.")
    if principal.scopes is not None and scope not in principal.scopes:
        return _forbidden(f"This token lacks the scope {scope}.")
    return None


def _forbidden(words: str, hint: str = "Ask the owner, or an administrator.") -> ForbiddenError:
    return ForbiddenError(words, hint=hint)


def _no_reason() -> ForbiddenError:
    hint = "Say why, on the page or in the header x-greylag-reason; it is audited."
    return _forbidden("Only with a reason may you read this.", hint)


def _no_administrator(action: Action, principal: Principal) -> ForbiddenError:
    hint = f"Ask an administrator of this Greylag; a token needs the scope {RULES[action][1]}."
    if principal.role is Role.ADMIN and principal.projects is not None:
        hint = "Use a token that is not for some projects alone."
    return _forbidden(f"Only an administrator may do {action}.", hint)
