"""Who Greylag is to the API server: a token, a token's file, or nobody (a certificate says it)."""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from greylag.domain.errors import ClusterUnavailableError

REREAD_SECONDS = 60.0
"""Kubernetes renews a pod's token long before it ends, so a minute old is new enough."""


class Credentials(Protocol):
    """Gives each request its credentials. Never prints them."""

    async def headers(self) -> Mapping[str, str]:
        """Return the headers to send. ``ClusterUnavailableError`` when there are none just now."""

    def refused(self, headers: Mapping[str, str]) -> bool:
        """Tell whether there may be better ones than these, which the API server did not take.

        ``headers`` is the very object that ``headers`` returned: only if these are still the ones
        in use are they forgotten, as others may have been refused at the same time.
        """


class Token:
    """A token that stays as it is; an empty one sends nothing. ``ValueError`` as ``bearer``."""

    def __init__(self, token: str) -> None:
        self._headers = bearer(token)

    async def headers(self) -> Mapping[str, str]:
        """Return the token's header."""
        return self._headers

    def refused(self, headers: Mapping[str, str]) -> bool:  # noqa: ARG002 - there is one only
        """Tell that there is no other."""
        return False


class TokenFile:
    """A token in a file that Kubernetes renews."""

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._headers: Mapping[str, str] = {}
        self._read_at: float | None = None

    async def headers(self) -> Mapping[str, str]:
        """Return the token's header; the file is read again once a minute."""
        if self._read_at is None or self._now() - self._read_at >= REREAD_SECONDS:
            try:
                token = await asyncio.to_thread(self._path.read_text)
                headers = bearer(token.strip())
            except (OSError, ValueError) as error:
                message = f"The token file {self._path} cannot be read."
                raise ClusterUnavailableError(message) from error
            if not headers:
                raise ClusterUnavailableError(f"The token file {self._path} is empty.")
            self._headers, self._read_at = headers, self._now()
        return self._headers

    def refused(self, headers: Mapping[str, str]) -> bool:
        """Read the file again next time: it may have been renewed."""
        if headers is self._headers:
            self._read_at = None
        return True


def bearer(token: str) -> Mapping[str, str]:
    """Return the header that carries ``token``, none for "".

    Raises ``ValueError`` for what cannot be a token (RFC 6750): a header could not carry it.
    """
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("a token has no blanks, line breaks or signs beyond ASCII")
    return {"Authorization": f"Bearer {token}"} if token else {}
