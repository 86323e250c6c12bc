"""Git LFS past the relay: what a host answers about large files, without the secret in it.

A host tells where each object is to be had, and often to come there with the very Authorization
that it was asked with, which is the secret. So the addresses that are the host's own are led by the
relay, sealed, so that it knows them again and passes nothing else on; others are left to the
environment, and neither is told the secret.
"""

import hmac
import json
import re
import secrets
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from yarl import URL

MOST_ANSWER = 4 * 1024 * 1024
_MOST_OWN = 4096
_AUTHORIZATION = re.compile(r"[ -~]{1,8192}")
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
        self._own: OrderedDict[str, str] = OrderedDict()

    def seal(self, method: str, host: str, path: str) -> str:
        """Return what a request by the relay has to name, which nobody else can make."""
        return hmac.digest(self._key, f"{method} {host}{path}".encode(), "sha256").hex()

    def is_sealed(self, seal: str, method: str, host: str, path: str) -> bool:
        """Tell whether a request is one that a host has led to."""
        return hmac.compare_digest(seal, self.seal(method, host, path))

    def own(self, seal: str) -> str | None:
        """Return the Authorization that a host gave out for a transfer, ``None`` for none."""
        return self._own.get(seal)

    def link(self, way: Way, method: str, target: URL, own: str | None) -> str | None:
        """Return the address of a target by the relay, ``None`` for one of another host.

        The Authorization that the host gave out for it stays here: the environment would take it
        along wherever a redirect leads.
        """
        if not target.absolute or target.origin() != way.origin:
            return None
        path = target.raw_path_qs
        seal = self.seal(method, way.host, path)
        self._own.pop(seal, None)
        if own is not None:
            self._own[seal] = own
            if len(self._own) > _MOST_OWN:
                self._own.popitem(last=False)
        return f"{way.relay}-/{seal}/{way.host}{path}"

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
                if "actions" in one:
                    given = (one["actions"] or {}).items()
                    one["actions"] = {key: action for key, action in given if action is not None}
                for name, action in one.get("actions", {}).items():
                    self._lead(way, _METHODS[name], action, hidden)
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise ValueError("it is no answer of Git LFS") from error
        text = json.dumps(told)
        if any(json.dumps(secret)[1:-1] in text for secret in hidden):  # escaped as the text is
            raise ValueError("it holds the secret")
        return text.encode()

    def _lead(self, way: Way, method: str, action: dict[str, Any], hidden: Collection[str]) -> None:
        given = {key: str(value) for key, value in (action.get("header") or {}).items()}
        header = {k: v for k, v in given.items() if not any(secret in v for secret in hidden)}
        named = [key for key in header if key.lower() == "authorization"]
        own = header[named[-1]] if named else None
        if own is not None and not _AUTHORIZATION.fullmatch(own):
            raise ValueError("it is no Authorization")
        if link := self.link(way, method, URL(action["href"], encoded=True), own):
            action["href"] = link
            header = {key: value for key, value in header.items() if key not in named}
        action["header"] = header
