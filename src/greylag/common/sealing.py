"""Secrets at rest: sealed (Fernet: AES and HMAC) by a key that lies elsewhere than they do."""

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

_BY_ANOTHER = "It was sealed by another key."


class SealError(Exception):
    """What was to be opened was sealed by another key, for something else, or is no such thing."""


class Sealing:
    """Seals texts for a purpose, and opens them for the same one.

    Args:
        keys: texts that nobody can guess; the first seals, all open.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = tuple(keys)
        self.has_old_keys = len(self._keys) > 1
        self._made: MultiFernet | None = None

    def seal(self, value: str, purpose: str) -> str:
        """Return ``value`` sealed; what is found elsewhere than it was put cannot be opened."""
        whole = json.dumps([purpose, value]).encode()
        return self._fernet().encrypt(whole).decode("ascii")

    def open(self, sealed: str, purpose: str) -> str:
        """Return what was sealed for this purpose.

        Raises:
            SealError: it cannot be opened.
        """
        # Only where it is used: the library takes a while to import.
        from cryptography.fernet import InvalidToken  # noqa: PLC0415

        try:
            found, value = json.loads(self._fernet().decrypt(sealed.encode()))
        except (InvalidToken, ValueError) as error:
            raise SealError(_BY_ANOTHER) from error
        if found != purpose:
            raise SealError("It was sealed for something else.")
        return str(value)

    def renewed(self, sealed: str) -> str | None:
        """Return what an older key has sealed, for whatever, sealed by the first one; ``None`` for
        what that one has sealed.

        Raises:
            SealError: none of the keys opens it.
        """
        from cryptography.fernet import InvalidToken  # noqa: PLC0415

        first, text = Sealing(self._keys[:1]), sealed.encode()
        try:
            first._fernet().decrypt(text)
        except InvalidToken:
            try:
                return self._fernet().rotate(text).decode("ascii")
            except InvalidToken as error:
                raise SealError(_BY_ANOTHER) from error
        return None

    def _fernet(self) -> "MultiFernet":
        from cryptography.fernet import Fernet, MultiFernet  # noqa: PLC0415

        if self._made is None:
            digests = [hashlib.sha256(f"greylag secrets {key}".encode()) for key in self._keys]
            keys = [base64.urlsafe_b64encode(one.digest()) for one in digests]
            self._made = MultiFernet([Fernet(key) for key in keys])
        return self._made
