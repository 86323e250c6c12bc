"""Signing in by an identity provider: who may come in, as whom, and in which role."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime
from typing import Any, TypeGuard

import structlog

from greylag.domain.audit import AuditAction, anonymous
from greylag.domain.errors import (
    IdentityProviderUnavailableError,
    SignInFailedError,
    SignInRefusedError,
)
from greylag.domain.names import MAX_NAME_LENGTH
from greylag.domain.users import Identity, Role
from greylag.ports import AuthorizationRequest, Clock, IdentityProvider, Revocations
from greylag.services.audit import Audit
from greylag.services.people import People

_log = structlog.get_logger(__name__)

_GOOGLE = "https://accounts.google.com"
_MAX_SUBJECT = 255
"""OpenID Connect Core 1.0, section 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInRules:
    """What the operator has said of claims. Empty sets ask for nothing.

    Attributes:
        user_claim: names the person, for good.
        allowed_groups: one of them is needed.
        allowed_domains: the verified email address is to be of one of them; in small letters.
        admin_groups: whoever is in one is an administrator.
        user_groups: whoever is in one is a user, and who is in none of these two may not come in.
    """

    user_claim: str = "sub"
    name_claim: str = "name"
    groups_claim: str = "groups"
    allowed_groups: frozenset[str] = frozenset()
    allowed_domains: frozenset[str] = frozenset()
    admin_groups: frozenset[str] = frozenset()
    user_groups: frozenset[str] = frozenset()

    @property
    def by_groups(self) -> bool:
        """Whether groups decide anything."""
        return bool(self.allowed_groups or self.admin_groups or self.user_groups)

    @property
    def wanted(self) -> frozenset[str]:
        """The claims that must be known, so that one which is lacking is asked for."""
        by_email = self.allowed_domains or self.user_claim == "email"
        email = {"email", "email_verified"} if by_email else set()
        groups = {self.groups_claim} if self.by_groups else set()
        return frozenset({self.user_claim, self.name_claim} | email | groups)

    def admit(self, issuer: str, claims: Mapping[str, Any]) -> tuple[Identity, Role | None]:
        """Return who somebody is, and in which role, ``None`` where groups do not say it.

        Raises:
            SignInRefusedError: they may not come in; one log line says why.
        """
        try:
            email = _verified_email(claims)
            self._check_domain(_domain(issuer, claims, email))
            groups = self._groups(claims)
            role = self._role(groups)
            session = claims.get("sid")
            identity = Identity(
                issuer=issuer,
                subject=self._subject(claims, email),
                name=self._name(claims, email),
                email=email,
                groups=groups,
                provider_subject=str(claims["sub"]),
                provider_session=session if _is_text(session) else None,
            )
        except SignInRefusedError as error:
            _log.warning("sign_in_refused", subject=str(claims.get("sub")), reason=str(error))
            raise
        return identity, role

    def _subject(self, claims: Mapping[str, Any], email: str | None) -> str:
        found = email if self.user_claim == "email" else claims.get(self.user_claim)
        sub = claims["sub"]
        if not (_is_text(found) and _is_text(sub) and max(len(found), len(sub)) <= _MAX_SUBJECT):
            of_email = "a verified email address" if self.user_claim == "email" else "who you are"
            raise SignInRefusedError(f"The identity provider does not tell {of_email}.")
        return found

    def _name(self, claims: Mapping[str, Any], email: str | None) -> str:
        told = (claims.get(self.name_claim), claims.get("preferred_username"), email)
        for one in told:
            # What cannot be seen would make one name look like another's.
            shown = "".join(c for c in one if c.isprintable()) if isinstance(one, str) else ""
            if shown.strip():
                return shown.strip()[:MAX_NAME_LENGTH]
        return str(claims["sub"])[:MAX_NAME_LENGTH]

    def _check_domain(self, domain: str) -> None:
        if self.allowed_domains and domain not in self.allowed_domains:
            raise SignInRefusedError(
                "Only people whose verified email address is of a certain domain may sign in."
            )

    def _groups(self, claims: Mapping[str, Any]) -> tuple[str, ...]:
        told = claims.get(self.groups_claim)
        elsewhere = claims.get("_claim_names")
        if self.by_groups and isinstance(elsewhere, Mapping) and self.groups_claim in elsewhere:
            raise SignInRefusedError(
                "You are in more groups than the identity provider tells.",
                hint="Its administrator can have it tell those of this application only.",
            )
        listed = told if isinstance(told, list) else [told]
        return tuple(one for one in listed if _is_text(one))

    def _role(self, groups: tuple[str, ...]) -> Role | None:
        if self.allowed_groups and self.allowed_groups.isdisjoint(groups):
            raise SignInRefusedError("You are in none of the groups whose members may sign in.")
        if not self.admin_groups.isdisjoint(groups):
            return Role.ADMIN
        if self.user_groups and self.user_groups.isdisjoint(groups):
            raise SignInRefusedError("You are in none of the groups whose members may sign in.")
        return Role.USER if self.admin_groups or self.user_groups else None


def _domain(issuer: str, claims: Mapping[str, Any], email: str | None) -> str:
    """Return whose person somebody is.

    At Google anybody may have an account with an address of any domain; ``hd`` is the domain that
    the account itself belongs to.
    """
    return str(claims.get("hd")) if issuer == _GOOGLE else (email or "").rpartition("@")[2]


def _verified_email(claims: Mapping[str, Any]) -> str | None:
    """Return the email address, in small letters, if the provider vouches for it."""
    email, verified = claims.get("email"), claims.get("email_verified")
    # Some providers write the boolean as text.
    if (verified is True or verified == "true") and _is_text(email) and "@" in email:
        return email.lower()
    return None


def _is_text(value: object) -> TypeGuard[str]:
    """Tell whether a claim is a text that can be shown and kept: JSON may hold half a character."""
    return isinstance(value, str) and value != "" and value.isprintable()


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Somebody has signed in: the secret of their session, and what the provider has said of them,
    which it may want to see when they sign out.
    """

    secret: str = field(repr=False)
    id_token: str = field(repr=False)


@contextmanager
def _outages_logged() -> Iterator[None]:
    try:
        yield
    except IdentityProviderUnavailableError as error:
        _log.warning("identity_provider_unavailable", reason=error.reason)
        raise


@dataclass(frozen=True, slots=True)
class SignIn:
    """The use cases of signing in and out by an identity provider. Each may raise
    ``IdentityProviderUnavailableError``; one log line says why it cannot be asked.
    """

    provider: IdentityProvider
    rules: SignInRules
    people: People
    revocations: Revocations
    clock: Clock
    _: KW_ONLY
    audit: Audit

    async def begin(self, request: AuthorizationRequest) -> str:
        """Return where the browser is to go to sign in."""
        with _outages_logged():
            return await self.provider.authorization_url(request)

    async def finish(
        self, answer: Mapping[str, str], request: AuthorizationRequest, until: datetime, client: str
    ) -> SignedIn:
        """Sign somebody in by the provider's answer, which counts once.

        Args:
            answer: what the browser brought back from there.
            request: what the provider was asked; the caller knows that this browser began it.
            until: when it runs out.
            client: from where the browser comes.

        Raises:
            SignInFailedError: the answer is not to be believed, or was brought before.
            SignInRefusedError: the rules do not let them in.
        """
        who = anonymous(client)
        try:
            await self._use(request.state, until)
            with _outages_logged():
                told = await self.provider.redeem(answer, request, self.rules.wanted)
            who = replace(who, name=str(told.claims["sub"])[:_MAX_SUBJECT])
            identity, role = self.rules.admit(self.provider.issuer, told.claims)
            secret = await self.people.sign_in(identity, role=role, client=client)
        except (SignInFailedError, SignInRefusedError) as error:
            await self.audit.refused(who, AuditAction.SESSION_START, "", error.info.code)
            raise
        return SignedIn(secret, told.id_token)

    async def _use(self, state: str, until: datetime) -> None:
        if not await self.revocations.revoke(f"state {state}", until, self.clock.now()):
            raise SignInFailedError("This sign-in has ended already.")

    async def sign_out_url(self, back_to: str, id_token: str | None) -> str | None:
        """Return where the browser is to go to sign out there too, ``None`` where it cannot."""
        try:
            with _outages_logged():
                return await self.provider.sign_out_url(back_to, id_token)
        except IdentityProviderUnavailableError:
            return None  # here they have signed out, which is what they asked for

    async def end(self, logout_token: str, client: str) -> None:
        """End the sessions that the provider says have ended. Idempotent. ``client``: from where it
        is said.

        Raises:
            SignInFailedError: it is no such token of the provider.
        """
        try:
            with _outages_logged():
                told = await self.provider.read_sign_out(logout_token)
        except SignInFailedError as error:
            who, code = anonymous(client), error.info.code
            await self.audit.refused(who, AuditAction.SESSION_END, "", code)
            raise
        await self.people.end_told(self.provider.issuer, told.subject, told.session)
