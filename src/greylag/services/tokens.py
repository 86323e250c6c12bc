"""API tokens: what programs come by, each with a user's rights or less.

A token is ``glg_``, 43 characters of 256 random bits, and 6 of a checksum over them, so that who
looks for leaked ones finds no other text, and a mistyped one costs no question to the store. Only
its hash is kept.

A program that has no browser gets one by a code that it shows: whoever has signed in and confirms
the code elsewhere lets it in as themselves; for its secret it then gets a token of theirs, once.
"""

import re
import secrets
import string
import zlib
from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from datetime import UTC, datetime, timedelta

import structlog

from greylag.common.concurrent import to_its_end
from greylag.domain.audit import AuditAction, AuditEvent, name_of
from greylag.domain.errors import (
    ForbiddenError,
    InvalidRequestError,
    LimitExceededError,
    MissingError,
    UserNotFoundError,
)
from greylag.domain.names import check_id, check_name
from greylag.domain.users import (
    LOGIN_LASTS,
    Action,
    ApiToken,
    DeviceLogin,
    Principal,
    Role,
    Scope,
    User,
    of_code,
    of_user,
)
from greylag.ports import Clock, PeopleStore
from greylag.services.access import Gate
from greylag.services.audit import event_of
from greylag.services.people import SEEN_EVERY, People, digest

PREFIX = "glg_"
PLACE = r"^[0-9]{18}-[0-9a-f]{16}$"
FORM = re.compile(r"glg_([0-9A-Za-z]{43})([0-9A-Za-z]{6})")
ID_LENGTH = 16
MAX_PROJECTS = 100
MOST_TOKENS = 500
"""How many of a user's may count at once."""
DAYS = 90
LOGIN_CODE_LENGTH = 8
# No vowels, so that it is no word; nothing that looks like something else (RFC 8628, section 6.1).
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
_EPOCH = datetime.fromtimestamp(0, UTC)
_log = structlog.get_logger(__name__)
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase


def new_token() -> str:
    """Return a new token."""
    body = _base62(secrets.randbits(256), 43)
    return f"{PREFIX}{body}{_checksum(body)}"


def is_token(text: str) -> bool:
    """Tell whether a text is of the form that all tokens have, its checksum too."""
    found = FORM.fullmatch(text)
    return found is not None and _checksum(found[1]) == found[2]


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), 6)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, rest = divmod(number, 62)
        digits.append(_DIGITS[rest])
    return "".join(reversed(digits))


@dataclass(frozen=True, slots=True)
class NewToken:
    """What a client asks for.

    Attributes:
        expires_in_days: by default 90, or as many as may be.
        user_id: whose, by default of who asks.
        projects: the ids of those that it is for; ``None``: all.
    """

    name: str
    scopes: frozenset[Scope]
    expires_in_days: float | None = None
    user_id: str | None = None
    projects: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """The use cases of tokens. Each takes the principal, and authorizes first."""

    store: PeopleStore
    people: People
    gate: Gate
    clock: Clock
    _: KW_ONLY
    longest: timedelta

    @property
    def longest_days(self) -> float:
        """How many days a token lasts at most."""
        return self.longest / timedelta(days=1)

    async def make(
        self, principal: Principal, new: NewToken, *, answers: DeviceLogin | None = None
    ) -> tuple[str, ApiToken]:
        """Make a token, and return it, which is never shown again, and what is kept of it.

        Args:
            principal: who asks.
            new: what it is to be.
            answers: the login that ends by it.

        Raises:
            InvalidRequestError: the name, the scopes or the time can be none.
            ForbiddenError: it would be somebody else's, or could do more than who asks.
            LimitExceededError: the user has as many as may be.
            MissingError: the login has ended otherwise.
        """
        check_name(new.name)
        user = await self._owner(principal, new.user_id, Action.ACCOUNT_WRITE)
        self._check(new)
        if (refusal := _refusal(principal, user, new)) is not None:
            raise await self.gate.refused(principal, AuditAction.TOKEN_CREATE, user.id, refusal)
        text = new_token()
        token = self._record(user, text, new)
        event = self.gate.audit.event(
            principal,
            AuditAction.TOKEN_CREATE,
            name_of(user.id),
            token=token.id,
            name=token.name,
            scopes=token.scopes,
            projects=token.projects,
            expires_at=token.expires_at,
        )
        action = AuditAction.TOKEN_CREATE
        right = Action.ACCOUNT_WRITE
        async with self.gate.limited(principal, action, user.id, right=right, counted=user.id):
            if len(await self._counting(of_user(user.id))) >= MOST_TOKENS:
                raise LimitExceededError(
                    f"A user may have {MOST_TOKENS} tokens.", hint="Revoke one first."
                )
            await to_its_end(self._keep(principal, token, event, answers), "a token")
        return text, token

    async def _keep(
        self, by: Principal, token: ApiToken, event: AuditEvent, answers: DeviceLogin | None
    ) -> None:
        # The token first: a login without it would be lost.
        await self.store.put(token, token.created_at, audit=event)
        if answers is not None and not await self.store.remove(DeviceLogin, answers.key):
            on = name_of(token.user_id)
            ended = self.gate.audit.event(by, AuditAction.TOKEN_REVOKE, on, token=token.id)
            await self.store.remove(ApiToken, token.key, audit=ended)
            raise _login_over()

    def _record(self, user: User, text: str, new: NewToken) -> ApiToken:
        now = self.clock.now()
        return ApiToken(
            key=digest(text),
            id=secrets.token_hex(ID_LENGTH // 2),
            user_id=user.id,
            user_since=user.created_at,
            name=new.name,
            scopes=tuple(sorted(new.scopes)),
            projects=None if new.projects is None else tuple(sorted(new.projects)),
            created_at=now,
            expires_at=now + timedelta(days=self._days(new)),
        )

    async def listed(self, principal: Principal, user_id: str | None) -> Sequence[ApiToken]:
        """Return a user's tokens that count, the newest first; to the operator, who has none, those
        of all users.
        """
        label = None
        if user_id is not None or principal.user_id is not None:
            user = await self._owner(principal, user_id, Action.ACCOUNT_READ)
            label = of_user(user.id)
        found = await self._counting(label)
        return sorted(found, key=_place, reverse=True)

    async def page(
        self, principal: Principal, user_id: str | None, limit: int, after: str | None
    ) -> tuple[Sequence[ApiToken], str | None]:
        """Return ``limit`` of the same at most, those that come after a place, and the place that
        asks for more, if there are.
        """
        listed = await self.listed(principal, user_id)
        found = [one for one in listed if after is None or _place(one) < after]
        shown = found[:limit]
        return shown, _place(shown[-1]) if len(found) > limit else None

    async def _counting(self, label: str | None) -> Sequence[ApiToken]:
        now = self.clock.now()
        found = await self.store.labelled(ApiToken, label)
        return [one for one in found if one.expires_at > now]

    async def revoke(self, principal: Principal, token_id: str) -> None:
        """End a token, for every process within a second. Each may end itself.

        Raises:
            MissingError: there is none of this id, or it is another's.
        """
        found = await self.store.labelled(ApiToken, f"id {token_id}")
        missing = MissingError(f"There is no token {token_id!r}.")
        if not found:
            raise missing
        if principal.via != f"token {token_id}":
            try:
                await self.gate.authorize(principal, Action.ACCOUNT_WRITE, found[0].user_id)
            except UserNotFoundError:
                raise missing from None
        on = name_of(found[0].user_id)
        event = self.gate.audit.event(principal, AuditAction.TOKEN_REVOKE, on, token=token_id)
        await self.store.remove(ApiToken, found[0].key, audit=event)

    async def principal(self, text: str, client: str) -> Principal | None:
        """Return who comes by a token from an address; ``None`` when it does not count."""
        if not is_token(text):
            return None
        token = await self.people.token(digest(text))
        user = None if token is None else await self.people.owner(token)
        if token is None or user is None:
            return None
        now = self.clock.now()
        if token.used_at is None or now - token.used_at >= SEEN_EVERY:
            # Of two that see it at once one writes; the other's news is the same.
            await self.store.put(replace(token, used_at=now, address=client), now)
        return Principal(
            user.display_name,
            user.id,
            user.role,
            f"token {token.id}",
            frozenset(token.scopes),
            None if token.projects is None else frozenset(token.projects),
            sign_in=f"token {token.key}",
            address=client,
        )

    def _days(self, new: NewToken) -> float:
        asked = new.expires_in_days
        return min(DAYS, self.longest_days) if asked is None else asked

    async def _owner(self, principal: Principal, user_id: str | None, action: Action) -> User:
        wanted = user_id or principal.user_id
        if wanted is None:
            raise InvalidRequestError(
                "The operator has no tokens: say which user's.", hint="Name a user in `user`."
            )
        return await self.gate.authorize(principal, action, wanted)

    def _check(self, new: NewToken) -> None:
        if not new.scopes:
            raise InvalidRequestError("A token needs a scope.")
        if not 0 < self._days(new) <= self.longest_days:
            raise InvalidRequestError(
                f"A token lasts {self.longest_days:g} days at most here.",
                hint="Ask for fewer days; GREYLAG_TOKEN_DAYS sets how many may be.",
            )
        if new.projects is not None and not 1 <= len(new.projects) <= MAX_PROJECTS:
            raise InvalidRequestError(f"projects must name 1 to {MAX_PROJECTS} projects.")
        for project_id in new.projects or ():
            check_id(project_id, "projects")


def _place(token: ApiToken) -> str:
    """Return where a token is among others, of the form ``PLACE``."""
    return f"{(token.created_at - _EPOCH) // timedelta(microseconds=1):018}-{token.id}"


def beyond_role(
    principal: Principal, user: User, scopes: Collection[Scope]
) -> ForbiddenError | None:
    """Return why somebody who is no administrator by their groups may not let in an administrator:
    a token has the role that the user has without groups.
    """
    if Scope.ADMIN in scopes and user.role is Role.ADMIN and principal.role is not Role.ADMIN:
        return ForbiddenError(
            "As you have signed in you are no administrator, and the token would be one.",
            hint="Leave out the scope admin, or ask an administrator.",
        )
    return None


def _refusal(principal: Principal, user: User, new: NewToken) -> ForbiddenError | None:
    """Return why somebody may not make this token; ``None``: they may."""
    others = principal.user_id not in {None, user.id}
    if others and not user.service:
        return ForbiddenError(
            "An administrator makes tokens of service accounts, not of people.",
            hint="Make a service account: POST /api/users with `service`.",
        )
    if (administrator := beyond_role(principal, user, new.scopes)) is not None:
        return administrator
    # One that is for some projects alone makes none: the gate lets it do nothing of this kind.
    if principal.scopes is not None and not new.scopes <= principal.scopes:
        return ForbiddenError(
            "A token makes none that may do more than itself.",
            hint="Sign in, or use a token that may do all this.",
        )
    return None


@dataclass(frozen=True, slots=True)
class DeviceLogins:
    """The use cases of a login by a code. The web bounds how often each is tried."""

    store: PeopleStore
    people: People
    tokens: Tokens
    gate: Gate
    clock: Clock

    async def begin(
        self, name: str, scopes: frozenset[Scope], client: str
    ) -> tuple[str, DeviceLogin]:
        """Return the secret by which a program asks again, and what is kept of it.

        Args:
            name: how the program calls itself.
            scopes: what it would like to do.
            client: the address that it comes from.

        Raises:
            InvalidRequestError: the name can be none.
        """
        check_name(name)
        secret, now = secrets.token_urlsafe(32), self.clock.now()
        letters = "".join(secrets.choice(_LETTERS) for _ in range(LOGIN_CODE_LENGTH))
        login = DeviceLogin(
            key=digest(secret),
            code=f"{letters[:4]}-{letters[4:]}",
            name=name,
            scopes=tuple(sorted(scopes)),
            address=client,
            expires_at=now + LOGIN_LASTS,
        )
        await self.store.put(login, now)
        return secret, login

    async def waiting(self, code: str) -> DeviceLogin:
        """Return the program that shows a code and that nobody has answered.

        Raises:
            MissingError: there is none.
        """
        found = await self.store.labelled(DeviceLogin, of_code(code.strip().upper()))
        # Two of one code would each take the other's answer.
        if len(found) != 1 or found[0].user_id or self.clock.now() >= found[0].expires_at:
            raise MissingError(
                "No program waits with this code.", hint="Start anew: a code lasts ten minutes."
            )
        return found[0]

    async def answer(self, principal: Principal, code: str, *, allow: bool) -> None:
        """Let the program that shows a code in as the principal, or turn it away.

        Raises:
            MissingError: there is none.
            ForbiddenError: the principal is no person who has signed in, or the program would be
                an administrator and they are none.
        """
        action, own = AuditAction.LOGIN_ANSWER, principal.user_id
        if own is None or principal.session_id is None:
            refusal = ForbiddenError(
                "Only somebody who has signed in lets a program in.",
                hint="Sign in with the identity provider.",
            )
            raise await self.gate.refused(principal, action, own or "", refusal)
        login, now = await self.waiting(code), self.clock.now()
        user = await self.people.get(own)
        if allow and (beyond := beyond_role(principal, user, login.scopes)) is not None:
            raise await self.gate.refused(principal, action, own, beyond)
        told = event_of(
            principal,
            now,
            action,
            name_of(own),
            allow=allow,
            name=login.name,
            scopes=login.scopes,
            address=login.address,
        )
        if allow:
            answered = replace(login, user_id=own, user_since=user.created_at)
            done = await self.store.put(answered, now, audit=told)
        else:
            done = await self.store.remove(DeviceLogin, login.key, audit=told)
        if not done:
            raise MissingError("Somebody else has answered this code.")
        _log.info("device_answered", user_id=own, name=login.name, allow=allow)

    async def redeem(self, secret: str) -> tuple[str, ApiToken] | None:
        """Return the token for a program's secret, once; ``None`` while nobody has answered.

        Raises:
            MissingError: it was turned away, its time is over, or it has its token.
        """
        login = await self.store.find(DeviceLogin, digest(secret))
        if login is None or self.clock.now() >= login.expires_at:
            raise _login_over()
        if login.user_id is None:
            return None
        user = await self.people.owner(login)
        if user is None:
            await self.store.remove(DeviceLogin, login.key)
            raise _login_over()
        new = NewToken(login.name, frozenset(login.scopes))
        program = Principal(user.display_name, user.id, user.role, address=login.address)
        return await self.tokens.make(program, new, answers=login)


def _login_over() -> MissingError:
    return MissingError("This login was turned away, or its time is over.", hint="Start it again.")
