"""What people see and change of users: their own account, and as administrators those of all."""

from collections.abc import Sequence

from greylag.domain.errors import ConflictError, ForbiddenError, MissingError
from greylag.domain.users import (
    Action,
    ApiToken,
    Member,
    Principal,
    Session,
    User,
    UserSecret,
    of_user,
)
from greylag.ports import PeopleStore
from greylag.services.access import Gate
from greylag.services.people import People, UserEdit
from greylag.services.projects import Projects


class Accounts:
    """The use cases of users and their sessions. Each takes the principal, and authorizes first;
    it fails as ``Gate.authorize`` does.
    """

    def __init__(self, people: People, gate: Gate, projects: Projects, store: PeopleStore) -> None:
        self._people = people
        self._gate = gate
        self._projects = projects
        self._store = store

    async def me(self, principal: Principal) -> User | None:
        """Return the user who asks; ``None`` for the operator."""
        return None if principal.user_id is None else await self._people.get(principal.user_id)

    async def show(self, principal: Principal, user_id: str) -> User:
        """Return a user with all that an administrator, or they themselves, may see of them."""
        return await self._gate.authorize(principal, Action.ACCOUNT_READ, user_id)

    async def make(self, principal: Principal, user: User) -> User:
        """Add a user; fails as ``People.make`` does besides."""
        if not principal.is_admin:
            raise ForbiddenError(
                "Only an administrator adds users.", hint="Ask an administrator of this Greylag."
            )
        return await self._people.make(user)

    async def edit(self, principal: Principal, user_id: str, edit: UserEdit) -> User:
        """Change a user. One who is disabled comes in no more, and what runs of theirs is stopped.

        Raises:
            ConflictError: administrators would shut themselves out.
        """
        await self._gate.authorize(principal, Action.USERS_WRITE, user_id)
        if edit.disabled and user_id == principal.user_id:
            raise ConflictError("You cannot disable yourself.", hint="Another administrator can.")
        changed = await self._people.edit(user_id, edit)
        if changed.disabled:
            await self._projects.sleep_all(user_id)
        return changed

    async def remove(self, principal: Principal, user_id: str) -> None:
        """Remove a user with their sessions, tokens, secrets and what was shared with them.

        Raises:
            ConflictError: they have projects.
            InvalidRequestError: the settings name them.
        """
        await self._gate.authorize(principal, Action.USERS_WRITE, user_id)
        if await self._projects.has_any(user_id):
            raise ConflictError(
                f"The user {user_id!r} has projects.",
                hint="Export or delete them first, or disable the user instead.",
            )
        label = of_user(user_id)
        for token in await self._store.labelled(ApiToken, label):
            await self._store.remove(ApiToken, token.key)
        for secret in await self._store.labelled(UserSecret, label):
            await self._store.remove(UserSecret, secret.key)
        for member in await self._store.labelled(Member, label):
            await self._store.remove(Member, member.key)
        await self._people.remove(user_id)

    async def sessions(self, principal: Principal, user_id: str) -> Sequence[Session]:
        """Return a user's sessions that go on, the newest first."""
        await self._gate.authorize(principal, Action.ACCOUNT_READ, user_id)
        return await self._people.sessions(user_id)

    async def end_session(self, principal: Principal, user_id: str, session: str) -> None:
        """End a session, for every process, at once.

        Raises:
            MissingError: there is none of this id.
        """
        await self._gate.authorize(principal, Action.ACCOUNT_WRITE, user_id)
        if not await self._people.end_sessions(user_id, session):
            raise MissingError(f"The user has no session {session!r}.")
