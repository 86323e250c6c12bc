"""Letting a program in that has no browser: it shows a code, and a person confirms it elsewhere.

The program gets a secret and a code for people. Whoever has signed in and confirms the code lets it
in as themselves: for the secret it then gets a token of theirs, once. Both last ten minutes.
"""

import secrets
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog

from greylag.domain.audit import AuditAction, name_of
from greylag.domain.errors import ForbiddenError, MissingError
from greylag.domain.names import check_name
from greylag.domain.users import ApiToken, DeviceLogin, Principal, Scope, of_code
from greylag.ports import Clock, PeopleStore
from greylag.services.access import Gate
from greylag.services.audit import event_of
from greylag.services.people import People, digest
from greylag.services.tokens import NewToken, Tokens, beyond_role

LASTS = timedelta(minutes=10)
CODE_LENGTH = 8
# No vowels, so that it is no word; nothing that looks like something else (RFC 8628, section 6.1).
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class NewLogin:
    """What a program asks for: how it calls itself, and what it would like to do."""

    name: str
    scopes: frozenset[Scope]


class DeviceLogins:
    """The use cases of a login by a code. The web bounds how often each is tried."""

    def __init__(
        self,
        store: PeopleStore,
        people: People,
        tokens: Tokens,
        gate: Gate,
        clock: Clock,
    ) -> None:
        self._gate = gate
        self._store = store
        self._people = people
        self._tokens = tokens
        self._clock = clock

    async def begin(self, new: NewLogin, client: str) -> tuple[str, DeviceLogin]:
        """Return the secret by which a program asks again, and what is kept of it.

        Raises:
            InvalidRequestError: the name can be none.
        """
        check_name(new.name)
        secret, now = secrets.token_urlsafe(32), self._clock.now()
        letters = "".join(secrets.choice(_LETTERS) for _ in range(CODE_LENGTH))
        login = DeviceLogin(
            key=digest(secret),
            code=f"{letters[:4]}-{letters[4:]}",
            name=new.name,
            scopes=tuple(sorted(new.scopes)),
            address=client,
            expires_at=now + LASTS,
        )
        await self._store.put(login, now)
        return secret, login

    async def waiting(self, code: str) -> DeviceLogin:
        """Return the program that shows a code and that nobody has answered.

        Raises:
            MissingError: there is none.
        """
        found = await self._store.labelled(DeviceLogin, of_code(code.strip().upper()))
        # Two of one code would each take the other's answer.
        if len(found) != 1 or found[0].user_id or self._clock.now() >= found[0].expires_at:
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
            raise await self._gate.refused(principal, action, own or "", refusal)
        login, now = await self.waiting(code), self._clock.now()
        user = await self._people.get(own)
        if allow and (beyond := beyond_role(principal, user, login.scopes)) is not None:
            raise await self._gate.refused(principal, action, own, beyond)
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
            answered = replace(login, user_id=own)
            done = await self._store.put(answered, now, audit=told)
        else:
            done = await self._store.remove(DeviceLogin, login.key, audit=told)
        if not done:
            raise MissingError("Somebody else has answered this code.")
        _log.info("device_answered", user_id=own, name=login.name, allow=allow)

    async def redeem(self, secret: str) -> tuple[str, ApiToken] | None:
        """Return the token for a program's secret, once; ``None`` while nobody has answered.

        Raises:
            MissingError: it was turned away, its time is over, or it has its token.
        """
        over = MissingError(
            "This login was turned away, or its time is over.", hint="Start it again."
        )
        login = await self._store.find(DeviceLogin, digest(secret))
        if login is None or self._clock.now() >= login.expires_at:
            raise over
        if login.user_id is None:
            return None
        user = await self._people.active(login.user_id)
        if not await self._store.remove(DeviceLogin, login.key) or user is None:
            raise over
        new = NewToken(login.name, frozenset(login.scopes))
        program = Principal(user.display_name, user.id, user.role, address=login.address)
        return await self._tokens.make(program, new)
