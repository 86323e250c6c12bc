"""A user's secrets: what git in their environments tells the hosts that they name.

They can be written and taken away, never read: only environments of the user's own are told them,
on agentd's side, where no tool can see them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import structlog

from greylag.common.git import GitCredential, GitSetup
from greylag.common.sealing import SealError, Sealing
from greylag.domain.audit import AuditAction, AuditEvent, name_of
from greylag.domain.errors import (
    ConflictError,
    InvalidRequestError,
    LimitExceededError,
    MissingError,
    RefusalError,
    StoreUnavailableError,
    UserNotFoundError,
)
from greylag.domain.names import slug
from greylag.domain.project import Project, check_host
from greylag.domain.users import (
    Action,
    NotificationTarget,
    Principal,
    PushKey,
    UserSecret,
    of_user,
)
from greylag.ports import Attempts, Clock, PeopleStore, RecordUnreadableError
from greylag.services.access import Gate
from greylag.services.people import People
from greylag.services.projects import Projects

NAME_FORM = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
USERNAME_FORM = r"^[!-9;-~]{1,200}$"
DEFAULT_USERNAME = "x-access-token"
MAX_VALUE_LENGTH = 4096
MOST_SECRETS = 50
_PAUSE = 60.0
_S = TypeVar("_S", UserSecret, NotificationTarget, PushKey)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A secret to keep, under a name of the user's."""

    name: str
    host: str
    value: str = field(repr=False)
    username: str = DEFAULT_USERNAME


@dataclass(frozen=True, slots=True)
class Secrets:
    """The use cases of secrets. Each takes the principal, and authorizes first.

    ``sealing`` is ``None`` where nothing can be sealed.
    """

    people: PeopleStore
    directory: People
    projects: Projects
    gate: Gate
    clock: Clock
    sealing: Sealing | None

    async def listed(self, principal: Principal, user_id: str) -> Sequence[UserSecret]:
        """Return what there is, by name."""
        user = await self.gate.authorize(principal, Action.ACCOUNT_READ, user_id)
        return await self._of(user.id)

    async def put(self, principal: Principal, user_id: str, new: NewSecret) -> UserSecret:
        """Keep a secret, in place of the one of its name; what runs is told within moments.

        Raises:
            InvalidRequestError: the name, the host, the user or the value can be none.
            ConflictError: there is another one for this host.
            LimitExceededError: there are too many.
            RefusalError: ``secrets_off``: nothing can be sealed here.
        """
        user = await self.gate.authorize(principal, Action.SECRETS_WRITE, user_id)
        _check(new)
        if self.sealing is None:
            raise RefusalError("Secrets cannot be kept here.", "secrets_off")
        sealed = self.sealing.seal(new.value, _purpose(user.id, new.name, new.host))
        told = self.gate.audit.event(
            principal,
            AuditAction.SECRET_SET,
            name_of(user.id),
            name=new.name,
            host=new.host,
            username=new.username,
        )
        action, right = AuditAction.SECRET_SET, Action.SECRETS_WRITE
        async with self.gate.limited(principal, action, user.id, right=right, counted=user.id):
            one = await self._put(user.id, new, sealed, told)
        await self.projects.look_again(user.id)
        return one

    async def _put(self, user_id: str, new: NewSecret, sealed: str, told: AuditEvent) -> UserSecret:
        attempts = Attempts("this secret")
        while True:
            before = _before(await self._of(user_id), new)
            now = self.clock.now()
            one = UserSecret(
                user_id=user_id,
                name=new.name,
                host=new.host,
                username=new.username,
                sealed=sealed,
                created_at=before.created_at if before else now,
                updated_at=now,
                version=before.version if before else 0,
            )
            if await self.people.put(one, now, audit=told):
                return one
            attempts.failed()

    async def remove(self, principal: Principal, user_id: str, name: str) -> None:
        """Take a secret away; what runs forgets it within moments.

        Raises:
            MissingError: there is none of this name.
        """
        user = await self.gate.authorize(principal, Action.SECRETS_WRITE, user_id)
        on = name_of(user.id)
        told = self.gate.audit.event(principal, AuditAction.SECRET_REMOVE, on, name=name)
        if not await self.people.remove(UserSecret, f"{user.id}/{name}", audit=told):
            raise MissingError(f"The user has no secret {name!r}.")
        await self.projects.look_again(user.id)

    async def setup(self, project: Project) -> GitSetup:
        """Return what git in a project's environment is to have; for the reconciler alone."""
        source = project.source
        kept = await self._of(project.user_id)
        return GitSetup(
            url=source.url if source else None,
            ref=source.ref if source else None,
            depth=source.depth if source else None,
            author=await self._author(project.user_id),
            credentials=[one for each in kept if (one := self._opened(each))],
        )

    async def _author(self, user_id: str) -> tuple[str, str]:
        try:
            owner = await self.directory.get(user_id)
        except UserNotFoundError:
            return "", ""
        return owner.display_name, owner.email or f"{slug(owner.id, 60)}@localhost"

    def _opened(self, kept: UserSecret) -> GitCredential | None:
        if self.sealing is None:
            return None
        try:
            purpose = _purpose(kept.user_id, kept.name, kept.host)
            value = self.sealing.open(kept.sealed, purpose)
        except SealError as error:
            _log.warning(
                "secret_unreadable", user_id=kept.user_id, name=kept.name, reason=str(error)
            )
            return None
        return GitCredential(kept.name, kept.host, kept.username, value)

    async def seal_anew(self) -> None:
        """Seal by the first key whatever an older one has sealed, notifications' addresses too, so
        that the older one can go. A store that cannot be reached is waited for.
        """
        while self.sealing is not None and self.sealing.has_old_keys:
            try:
                count = await self._seal_anew(self.sealing, UserSecret)
                count += await self._seal_anew(self.sealing, NotificationTarget)
                count += await self._seal_anew(self.sealing, PushKey)
            except StoreUnavailableError as error:
                _log.warning("not_sealed_anew", error=str(error), tried_again=True)
                await self.clock.sleep(_PAUSE)
            else:
                _log.info("sealed_anew", count=count)
                return

    async def _seal_anew(self, sealing: Sealing, kind: type[_S]) -> int:
        count = 0
        for listed in await self.people.labelled(kind):
            try:
                # As it is now: what was removed and set anew since then has the same version.
                kept = await self.people.find(kind, listed.key)
            except RecordUnreadableError:
                continue
            anew = _by_first_key(sealing, kept) if kept is not None else None
            # What somebody writes at this moment is left to the next start.
            if anew is not None and await self.people.put(anew, self.clock.now()):
                count += 1
        return count

    async def _of(self, user_id: str) -> Sequence[UserSecret]:
        return await self.people.labelled(UserSecret, of_user(user_id))


def _by_first_key(sealing: Sealing, kept: _S) -> _S | None:
    """Return what an older key has sealed sealed by the first one, ``None`` for all else: what no
    key opens stays as it is, since its key may come back.
    """
    try:
        sealed = sealing.renewed(kept.sealed)
    except SealError:
        return None
    return None if sealed is None else replace(kept, sealed=sealed)


def _purpose(user_id: str, name: str, host: str) -> str:
    return f"git secret {name} of {user_id} for {host}"


def _before(known: Sequence[UserSecret], new: NewSecret) -> UserSecret | None:
    """Return the secret that a new one takes the place of."""
    for one in known:
        if one.host == new.host and one.name != new.name:
            raise ConflictError(
                f"The secret {one.name} is for {new.host} already.",
                hint="Delete it first, or put the new value under its name.",
            )
    before = next((one for one in known if one.name == new.name), None)
    if before is None and len(known) >= MOST_SECRETS:
        raise LimitExceededError(f"A user may have {MOST_SECRETS} secrets.", hint="Delete one.")
    return before


def _check(new: NewSecret) -> None:
    """Raise ``InvalidRequestError`` for what can be no secret; the value is not repeated."""
    if not re.fullmatch(NAME_FORM, new.name):
        raise InvalidRequestError("The name must be 1 to 64 letters, digits or . _ -.")
    check_host(new.host)
    if not re.fullmatch(USERNAME_FORM, new.username):
        raise InvalidRequestError("username must be 1 to 200 plain characters without a colon.")
    value = new.value
    if not 1 <= len(value) <= MAX_VALUE_LENGTH or not (value.isascii() and value.isprintable()):
        raise InvalidRequestError(
            f"value must be one line of 1 to {MAX_VALUE_LENGTH} plain characters."
        )
