"""The token that each environment's agent demands, and where Greylag has it from.

With ``GREYLAG_AGENT_KEY`` it is derived from that key, the record's id and the mark of the start,
which stands on the pod: whoever has the key can reach agents and needs to read no Secret. The mark
names the key, so that a key can be changed while environments run that were started with another.
Without a key it is random, and the environment's Secret alone holds it.
"""

import base64
import hmac
import re
import secrets
from collections.abc import Sequence
from hashlib import sha256

from pydantic import SecretStr

from greylag.cluster.kubernetes.identity import TOKEN_KEY, Object
from greylag.domain.errors import AgentTokenLostError, ClusterError

_TOKEN_BYTES = 32
_KEY_ID = re.compile(r"(k[0-9a-f]{8})\.")


class AgentKeys:
    """The keys that tokens are derived from: the first for new starts, all for those that run."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        values = [key.get_secret_value().encode() for key in keys]
        self._keys = {f"k{_hmac(value, 'id').hex()[:8]}": value for value in values}

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return bool(self._keys)

    def mark(self, mark: str, *, running: bool) -> str:
        """Return the mark of a start, which names the key that its token is derived from.

        Args:
            mark: the mark of the last start, or a new one.
            running: whether a pod of that start is wanted: it keeps its key if that is known.
        """
        named = self.named(mark)
        if not self._keys or (running and named in self._keys):
            return mark
        return f"{next(iter(self._keys))}.{mark.removeprefix(f'{named}.')}"

    @staticmethod
    def named(mark: str | None) -> str:
        """Return the id of the key that a mark names, empty where it names none."""
        named = _KEY_ID.match(mark or "")
        return named[1] if named else ""

    def token(self, record_id: str, mark: str | None) -> str | None:
        """Return the token of a start, None if its key is not among these or it has none."""
        key = self._keys.get(self.named(mark))
        if key is None:
            return None
        made = _hmac(key, f"agent token\n{record_id}\n{mark}")
        return base64.urlsafe_b64encode(made).rstrip(b"=").decode()


def random_token() -> str:
    """Return a new token for an environment whose Secret alone holds it."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def token_of(secret: Object | None) -> str:
    """Return the token of an environment from its Secret; ``ClusterError`` when it has none."""
    encoded = ((secret or {}).get("data") or {}).get(TOKEN_KEY)
    try:
        token = base64.b64decode(encoded or "", validate=True).decode()
    except ValueError as error:
        raise ClusterError("The environment's token cannot be read.") from error
    if not token:
        raise AgentTokenLostError("The environment's Secret with its token is missing.")
    return token


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, f"greylag {text}".encode(), sha256).digest()
