"""Provisional: who people are, and their sessions."""

from typing import Protocol

from greylag.domain.users import Identity, Role


class People(Protocol):
    """Who people are, and their sessions."""

    async def sign_in(self, identity: Identity, *, role: Role | None, client: str) -> str:
        """Return the secret of a new session."""

    async def end_told(self, issuer: str, subject: str | None, session: str | None) -> None:
        """End sessions by what the provider knows them by."""
