"""Git LFS past the relay: what a host answers about large files, without the secret in it.

A host tells where each object is to be had, and often to come there with the very Authorization
that it was asked with, which is the secret. So the addresses that are the host's own are led by the
relay, sealed, so that it knows them again and passes nothing else on; others are left to the
environment, and neither is told the secret.
"""

import hmac
import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from yarl import URL

MOST_ANSWER = 4 * 1024 * 1024
OWN_AUTHORIZATION = "X-Greylag-Own-Authorization"
"""The header in which a transfer has an Authorization that the host gave out for it."""
_METHODS = {"download": "GET", "upload": "PUT", "verify": "POST"}


@dataclass(frozen=True, slots=True)
class Way:
    """From the environment to a host.

    Attributes:
        relay: the relay's address, as the environment has it.
        host: the host's name, by which the relay knows it.
        origin: the host's address.
    """

    relay: str
    host: str
    origin: URL


class TransferLinks:
    """Makes the addresses by which objects are transferred, and knows them again."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def seal(self, method: str, host: str, path: str) -> str:
        """Return what a request by the relay has to name, which nobody else can make."""
        return hmac.digest(self._key, f"{method} {host}{path}".encode(), "sha256").hex()

    def is_sealed(self, seal: str, method: str, host: str, path: str) -> bool:
        """Tell whether a request is one that a host has led to."""
        return hmac.compare_digest(seal, self.seal(method, host, path))

    def link(self, way: Way, method: str, target: URL) -> str | None:
        """Return the address of a target by the relay, ``None`` for one of another host."""
        if not target.absolute or target.origin() != way.origin:
            return None
        path = target.raw_path_qs
        return f"{way.relay}-/{self.seal(method, way.host, path)}/{way.host}{path}"

    def led(self, way: Way, answer: bytes, hidden: Collection[str]) -> bytes:
        """Return a host's answer to a batch with the host's own addresses led by the relay.

        Args:
            way: that host's.
            answer: what it answered.
            hidden: what may not be in it.

        Raises:
            ValueError: it is no such answer, or holds elsewhere what may not be in it.
        """
        try:
            told = json.loads(answer)
            for one in told["objects"]:
                for name, action in one.get("actions", {}).items():
                    self._lead(way, _METHODS[name], action, hidden)
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise ValueError("it is no answer of Git LFS") from error
        text = json.dumps(told)
        if any(secret in text for secret in hidden):
            raise ValueError("it holds the secret")
        return text.encode()

    def _lead(self, way: Way, method: str, action: dict[str, Any], hidden: Collection[str]) -> None:
        given = {key: str(value) for key, value in (action.get("header") or {}).items()}
        header = {k: v for k, v in given.items() if not any(secret in v for secret in hidden)}
        if link := self.link(way, method, URL(action["href"], encoded=True)):
            action["href"] = link
            for key in [one for one in header if one.lower() == "authorization"]:
                header[OWN_AUTHORIZATION] = header.pop(key)  # git-lfs says the relay's own by that
        action["header"] = header
