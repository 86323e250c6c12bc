"""Who there is, and who has signed in: users of the settings and of the store, and sessions.

A user of the settings is in the store once something of theirs is changed; then the store's word
counts. What ends a session or disables a user counts for every process within a second: what was
read is held for half of one at most.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from greylag.domain.audit import SYSTEM, Actor, AuditAction, AuditEvent, name_of
from greylag.domain.errors import ConflictError, MissingError, SignInRefusedError, UserNotFoundError
from greylag.domain.names import check_id, check_name, slug
from greylag.domain.users import (
    ApiToken,
    DeviceLogin,
    Identity,
    Limits,
    Look,
    Principal,
    Role,
    Session,
    SignUp,
    User,
    of_identity,
    of_user,
)
from greylag.ports import Attempts, Clock, PeopleStore
from greylag.services.audit import event_of

By = Principal | Actor
"""Who does something, for the audit trail."""
SESSION_PREFIX = "gls_"
SESSION_FORM = re.compile(rf"{SESSION_PREFIX}[0-9A-Za-z_-]{{43}}")
SEEN_EVERY = timedelta(minutes=1)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInLimits:
    """Who becomes a user by signing in, and how long a sign-in lasts."""

    sign_up: SignUp = SignUp.AUTO
    idle: timedelta = timedelta(days=7)
    longest: timedelta = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class UserEdit:
    """What an administrator changes of a user; ``None`` leaves it as it is."""

    display_name: str | None = None
    role: Role | None = None
    disabled: bool | None = None
    email: str | None = None
    limits: Limits | None = None


class People:
    """The users, and the sessions of those who have signed in.

    It asks nobody whether they may: ``services/access.py`` does, before.
    """

    def __init__(
        self,
        store: PeopleStore,
        seeds: Sequence[User],
        clock: Clock,
        limits: SignInLimits | None = None,
    ) -> None:
        self._store = store
        self._seeds = {user.id: user for user in seeds}
        self._clock = clock
        self._limits = limits or SignInLimits()

    async def users(self) -> Sequence[User]:
        """Return all users: those of the settings in their order, then the others by their ids."""
        kept = {user.id: user for user in await self._store.labelled(User)}
        return list((self._seeds | kept).values())

    async def get(self, user_id: str) -> User:
        """Return one user; ``UserNotFoundError`` when there is none of this id."""
        found = await self._store.find(User, user_id) or self._seeds.get(user_id)
        if found is None:
            raise no_such_user(user_id)
        return found

    async def named(self, name: str) -> User:
        """Return the user of this id, or of this whole email address.

        Raises:
            UserNotFoundError: it names nobody.
            ConflictError: the address is of several.
        """
        try:
            return await self.get(name)
        except UserNotFoundError:
            found = [one for one in await self.users() if one.email and one.email == name.lower()]
        if len(found) > 1:
            raise ConflictError("Several users have this address.", hint="Give the user's id.")
        if found:
            return found[0]
        raise UserNotFoundError(
            f"There is no user {name!r}.", hint="Give their id, or their whole email address."
        )

    async def active(self, user_id: str) -> User | None:
        """Return a user who may come in; ``None`` when there is none such, or they are disabled."""
        try:
            user = await self.get(user_id)
        except UserNotFoundError:
            return None
        return None if user.disabled else user

    async def owner(self, one: Session | ApiToken | DeviceLogin) -> User | None:
        """Return the user who may come in by it; ``None``: nobody may. It is not another's who was
        given the same id later.
        """
        user = None if one.user_id is None else await self.active(one.user_id)
        return user if user is not None and _is_theirs(user, one) else None

    async def make(self, user: User, *, by: By = SYSTEM) -> User:
        """Add a user, as an administrator has entered them.

        Raises:
            InvalidRequestError: the id or the name can be none.
            ConflictError: there is one of this id.
        """
        check_id(user.id, "id")
        check_name(user.display_name, "display_name")
        now = self._clock.now()
        made = replace(user, origin="admin", created_at=now, version=0)
        event = self._event(by, AuditAction.USER_CREATE, made.id, **_shown(made))
        if made.id in self._seeds or not await self._store.put(made, now, audit=event):
            raise ConflictError(f"There is a user {made.id!r} already.", hint="Choose another id.")
        return replace(made, version=1)

    async def edit(self, user_id: str, edit: UserEdit, *, by: By = SYSTEM) -> User:
        """Change a user. One who is disabled comes in no more, by no session and no token."""
        if edit.display_name is not None:
            check_name(edit.display_name, "display_name")
        given = {name: getattr(edit, name) for name in UserEdit.__slots__}
        changes = {name: value for name, value in given.items() if value is not None}
        attempts = Attempts(f"the user {user_id!r}")
        while True:
            before = await self.get(user_id)
            after = replace(before, **changes)
            if after == before or await self._written(after, by, before):
                return after
            attempts.failed()

    def check_removable(self, user_id: str) -> None:
        """Raise ``ConflictError`` for a user whom the settings name."""
        if user_id in self._seeds:
            raise ConflictError(
                f"The settings name the user {user_id!r}.",
                hint="Disable them; or take them out of GREYLAG_USERS or GREYLAG_USERS_FILE, and"
                " then remove what is left of them in the same way.",
            )

    async def remove(self, user_id: str, *, by: By = SYSTEM) -> None:
        """Remove a user with their sessions. The caller has asked whether they are removable,
        disabled them, and removed what else is theirs.
        """
        await self.end_sessions(user_id, by=by)
        event = self._event(by, AuditAction.USER_REMOVE, user_id)
        await self._store.remove(User, user_id, audit=event)

    # Signing in by an identity provider, and the sessions that this makes.

    async def sign_in(self, identity: Identity, *, role: Role | None, client: str) -> str:
        """Sign somebody in, and return the secret of their new session, which their browser keeps.

        They are found by how they signed in before, else by the email address that an administrator
        has entered for them, else made, where the settings let people sign up by themselves.

        Args:
            identity: who it is; the provider's word has been checked.
            role: what their groups say; ``None`` where groups do not say it, then their own counts.
            client: the address that they come from.

        Raises:
            SignInRefusedError: they are no user and become none, or are disabled.
        """
        user = await self._entered(identity, client)
        return await self._begin(user, role, identity, client)

    async def by_session(self, secret: str, client: str) -> Principal | None:
        """Return who comes by a session's secret; ``None`` when there is none such any more."""
        session = await self.session(digest(secret))
        user = None if session is None else await self.owner(session)
        if session is None or user is None:
            return None
        now = self._clock.now()
        if now - session.seen_at >= SEEN_EVERY:
            # Of two that see it at once one writes; the other's news is the same.
            await self._store.put(replace(session, seen_at=now, address=client), now)
        return Principal(
            user.display_name,
            user.id,
            _role(user, session),
            f"session {session.id}",
            sign_in=f"session {session.key}",
            address=client,
            look=session.look if session.look and now < session.look.until else None,
        )

    async def session(self, key: str) -> Session | None:
        """Return the session of this key, if it goes on."""
        session = await self._store.find(Session, key)
        return session if session and self._is_going_on(session, self._clock.now()) else None

    async def token(self, key: str) -> ApiToken | None:
        """Return the token of this key, if it counts."""
        token = await self._store.find(ApiToken, key)
        return token if token and self._clock.now() < token.expires_at else None

    async def role_now(self, user_id: str, sign_in: str) -> Role | None:
        """Return the role of a user by a ``Principal.sign_in`` of theirs ("": any); ``None`` when
        it has ended, or they may not come in.
        """
        kind, _, key = sign_in.partition(" ")
        if kind not in {"session", "token"}:
            user = await self.active(user_id)
            return None if user is None else user.role
        one = await (self.session(key) if kind == "session" else self.token(key))
        user = None if one is None else await self.owner(one)
        return _role(user, one) if user and one else None

    async def sessions(self, user_id: str) -> Sequence[Session]:
        """Return a user's sessions that go on, the newest first."""
        now = self._clock.now()
        found = await self._store.labelled(Session, of_user(user_id))
        going_on = [one for one in found if self._is_going_on(one, now)]
        return sorted(going_on, key=lambda one: one.created_at, reverse=True)

    async def keep_look(
        self, user_id: str, session_id: str, look: Look | None, event: AuditEvent | None = None
    ) -> None:
        """Have a user's session of this id look at another's projects, ``None``: no more.

        Raises:
            MissingError: there is none of this id.
        """
        attempts = Attempts("this session")
        while True:
            found = [one for one in await self.sessions(user_id) if one.id == session_id]
            if not found:
                raise MissingError(f"The user has no session {session_id!r}.")
            if await self._store.put(replace(found[0], look=look), self._clock.now(), audit=event):
                return
            attempts.failed()

    async def end_session(self, secret: str, client: str = "") -> None:
        """End the session of this secret, for every process. Idempotent."""
        session = await self._store.find(Session, digest(secret))
        if session is not None:
            user = await self.owner(session)
            name = user.display_name if user is not None else ""
            by = Actor(name, "user", session.user_id, f"session {session.id}", client)
            await self._end(session, by)

    async def end_sessions(
        self,
        user_id: str,
        session_id: str | None = None,
        *,
        but: str | None = None,
        by: By = SYSTEM,
    ) -> int:
        """End a user's session of this id, by default all ``but`` one; return how many."""
        found = await self._store.labelled(Session, of_user(user_id))
        ended = [one for one in found if session_id in {None, one.id} and one.id != but]
        for one in ended:
            await self._end(one, by)
        return len(ended)

    async def end_told(self, issuer: str, subject: str | None, session: str | None) -> None:
        """End sessions by what the provider knows them by (back-channel logout). Idempotent.

        Args:
            issuer: the provider.
            subject: whose; ``None`` where it does not say.
            session: which one; ``None``: all of this subject's.
        """
        names = _provider_names(issuer, subject, session)
        for one in await self._store.labelled(Session, names[-1]) if names else ():
            if set(names) <= set(one.provider):
                await self._end(one, Actor(issuer, "provider"))

    async def _entered(self, identity: Identity, client: str) -> User:
        """Return the user whom this is, as the provider tells of them now."""
        attempts = Attempts("your account", SignInRefusedError)
        while True:
            before = await self._known(identity) or self._newcomer(identity)
            if before.disabled:
                raise SignInRefusedError(
                    "This account is disabled.", hint="Ask an administrator of this Greylag."
                )
            email = identity.email or before.email
            user = replace(
                before, identity=identity.key, email=email, groups=tuple(identity.groups)
            )
            by = Actor(user.display_name, "user", user.id, address=client)
            if user == before or await self._written(user, by, before):
                return user
            attempts.failed()

    async def _known(self, identity: Identity) -> User | None:
        found = await self._store.labelled(User, of_identity(identity.key))
        if found:
            return found[0]
        if identity.email is None or self._limits.sign_up is SignUp.CLOSED:
            return None
        invited = [user for user in await self.users() if user.email == identity.email]
        # Somebody who has signed in otherwise is never taken over by an address.
        free = [user for user in invited if user.identity is None and not user.service]
        return free[0] if free else None

    def _newcomer(self, identity: Identity) -> User:
        if self._limits.sign_up is not SignUp.AUTO:
            invited = self._limits.sign_up is SignUp.INVITED
            asking = "Ask an administrator to enter you with your email address."
            hint = asking if invited else "Nobody new is let in here."
            raise SignInRefusedError("You are not a user of this Greylag.", hint=hint)
        # Made of the identity, so that of two first sign-ins at once only one makes a user.
        tail = hashlib.sha256(identity.key.encode()).hexdigest()[:10]
        return User(
            f"{slug(identity.name, 20)}-{tail}",
            identity.name,
            origin="sign_in",
            created_at=self._clock.now(),
        )

    async def _begin(self, user: User, role: Role | None, identity: Identity, client: str) -> str:
        secret = SESSION_PREFIX + secrets.token_urlsafe(32)
        now = self._clock.now()
        session = Session(
            key=digest(secret),
            user_id=user.id,
            user_since=user.created_at,
            role=role,
            created_at=now,
            seen_at=now,
            expires_at=now + self._limits.longest,
            address=client,
            provider=_provider_names(
                identity.issuer, identity.provider_subject, identity.provider_session
            ),
        )
        by = Actor(user.display_name, "user", user.id, f"session {session.id}", client)
        event = self._event(by, AuditAction.SESSION_START, user.id, role=role or user.role)
        await self._store.put(session, now, audit=event)
        _log.info("signed_in", user_id=user.id, role=role or user.role, session=session.id)
        return secret

    async def _written(self, user: User, by: By, before: User) -> bool:
        """Write a user over what was read as them; return whether nobody was faster."""
        known, shown = _shown(before), _shown(user)
        changed = {name: value for name, value in shown.items() if value != known[name]}
        is_new = user.version == 0 and user.id not in self._seeds
        change = AuditAction.USER_CREATE if is_new else AuditAction.USER_EDIT
        event = self._event(by, change, user.id, **(shown if is_new else changed))
        return await self._store.put(user, self._clock.now(), audit=event)

    async def _end(self, session: Session, by: By) -> None:
        event = self._event(by, AuditAction.SESSION_END, session.user_id, session=session.id)
        await self._store.remove(Session, session.key, audit=event)

    def _event(self, by: By, change: AuditAction, user_id: str, **changed: Any) -> AuditEvent:
        return event_of(by, self._clock.now(), change, name_of(user_id), **changed)

    def _is_going_on(self, session: Session, now: datetime) -> bool:
        return now < min(session.expires_at, session.seen_at + self._limits.idle)


def _is_theirs(user: User, one: Session | ApiToken | DeviceLogin) -> bool:
    """Tell whether it is of this user, and not of one who had the same id before."""
    if one.user_since is not None:
        return one.user_since == user.created_at
    # Of a user of the settings, who have no beginning; or from before this was written down.
    return user.created_at is None or one.created_at >= user.created_at


def _role(user: User, by: Session | ApiToken) -> Role:
    """Return the role that a user has by what they came in by: groups count for a session alone."""
    return (by.role if isinstance(by, Session) else None) or user.role


def _shown(user: User) -> dict[str, Any]:
    """Return what the audit trail tells of a user."""
    return {
        "name": user.display_name,
        "role": user.role,
        "disabled": user.disabled,
        "service": user.service,
        "email": user.email,
        "identity": user.identity,
        "groups": user.groups,
        "limits": asdict(user.limits),
    }


def no_such_user(user_id: str) -> UserNotFoundError:
    """Return the error that tells that there is none, and that a stranger must not tell from it."""
    return UserNotFoundError(f"There is no user {user_id!r}.")


def digest(secret: str) -> str:
    """Return what is kept of a secret of 256 bits, by which it is found."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _provider_names(issuer: str, subject: str | None, session: str | None) -> tuple[str, ...]:
    names = [f"subject {issuer} {subject}"] if subject else []
    return (*names, f"session {issuer} {session}") if session else tuple(names)
