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

    def refused(self) -> bool:
        """Forget what the API server did not take; tell whether new ones may be had."""


class Token:
    """A token that stays as it is; an empty one sends nothing."""

    def __init__(self, token: str) -> None:
        self._headers = bearer(token)

    async def headers(self) -> Mapping[str, str]:
        """Return the token's header."""
        return self._headers

    def refused(self) -> bool:
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
            except (OSError, ValueError) as error:
                message = f"The token file {self._path} cannot be read."
                raise ClusterUnavailableError(message) from error
            self._headers, self._read_at = bearer(token.strip()), self._now()
        return self._headers

    def refused(self) -> bool:
        """Read the file again next time: it may have been renewed."""
        self._read_at = None
        return True


def bearer(token: str) -> Mapping[str, str]:
    """Return the header that carries ``token``."""
    return {"Authorization": f"Bearer {token}"} if token else {}
