"""Where `greylag login` keeps a token: in the system's keyring where there is one, else in a file.

The keyring is another program's, which may be locked, ask its person, or never answer: it is asked
in a thread, and waited for so long and no longer. A mark beside the file says that the token is
there, so that who keeps none pays nothing for it. The library ``keyring`` is an optional extra.
"""

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from greylag.common.token_file import own_token_file, read_token, write_token

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

T = TypeVar("T")

SERVICE, ACCOUNT = "greylag", "token"
"""What the entry in the keyring is called."""
MARK = "keyring"
SERVER = "server"
SECONDS_ALONE = 5.0
SECONDS_WITH_PERSON = 60.0
"""How long a keyring may take: on a desktop it may ask its person for a password."""


class KeyringError(Exception):
    """The keyring did not do it; the sentence says why, and holds no secret."""


@dataclass(frozen=True, slots=True)
class KeptToken:
    """The token of one person on this machine.

    Attributes:
        file: where it is kept when there is no keyring.
        marked: the file that says that it is in the keyring.
        servers: the file that says which server's it is, by the token's digest: no other is to be
            sent it, and one that was put here by hand is not taken for that server's.
    """

    file: Path
    marked: Path
    servers: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "KeptToken":
        """Return where this environment's token is."""
        file = own_token_file(environment)
        return cls(file, file.with_name(MARK), file.with_name(SERVER))

    def read(self) -> str | None:
        """Return the token, ``None`` when none is kept. The file's counts before the keyring's.

        Raises:
            ConfigError: the file cannot be used.
            KeyringError: it is in the keyring, which does not give it.
        """
        found = read_token(self.file, follow=True)
        if found is not None or not self.marked.exists():
            return found
        return _asked(lambda keyring: keyring.get_password(SERVICE, ACCOUNT))

    def server_of(self, token: str) -> str | None:
        """Return the address of the server whose a token is; ``None`` where nobody has said it: the
        file of a token may be written by hand.
        """
        return self._known().get(_digest(token))

    def _known(self) -> dict[str, str]:
        try:
            lines = self.servers.read_text("utf-8").splitlines()
        except (OSError, ValueError):
            return {}
        return {digest: address for digest, _, address in (one.partition(" ") for one in lines)}

    def _know(self, servers: Mapping[str, str]) -> None:
        write_token(self.servers, "\n".join(f"{one} {address}" for one, address in servers.items()))

    def write(self, token: str, server: str) -> tuple[str, str | None]:
        """Keep the token of a server in place of the one that was there.

        Returns:
            Where it is, for people, and why it is not in the keyring, if there is one.

        Raises:
            ConfigError: the file cannot be written.
        """
        new = {_digest(token): server}
        # Both, until the token is there: what is cut off before leaves the old one to its server.
        self._know({**self._known(), **new})
        kept = self._write(token)
        self._know(new)
        return kept

    def _write(self, token: str) -> tuple[str, str | None]:
        why_not = None
        if is_installed():
            # First: what is cut off, or put there too late, must be found by whoever signs out.
            write_token(self.marked, "in-the-system-keyring")
            try:
                name = _asked(lambda keyring: _put(keyring, token))
            except KeyringError as error:
                why_not = str(error)
            else:
                if name is not None:
                    self.file.unlink(missing_ok=True)
                    return f"the system's keyring ({name})", None
        write_token(self.file, token)
        if why_not is None:  # there is no keyring
            self.marked.unlink(missing_ok=True)
        return str(self.file), why_not

    def forget(self) -> None:
        """Remove the token, wherever it is.

        Raises:
            KeyringError: it stays in the keyring.
        """
        self.file.unlink(missing_ok=True)
        if self.marked.exists():
            _asked(_take_out)
            self.marked.unlink(missing_ok=True)
        self.servers.unlink(missing_ok=True)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def is_installed() -> bool:
    """Tell whether the library is there."""
    return find_spec("keyring") is not None


def _put(keyring: "KeyringBackend", token: str) -> str:
    keyring.set_password(SERVICE, ACCOUNT, token)
    return str(keyring.name)


def _take_out(keyring: "KeyringBackend") -> None:
    if keyring.get_password(SERVICE, ACCOUNT) is not None:  # a person may have removed it
        keyring.delete_password(SERVICE, ACCOUNT)


def _asked(ask: Callable[["KeyringBackend"], T]) -> T | None:
    """Return what the system's keyring answers, ``None`` when there is no real one.

    Raises:
        KeyringError: it refused, failed, or did not answer in time.
    """
    if not is_installed():
        raise KeyringError("the extra greylag[keyring] is not installed here")
    answers: list[T | None] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            backend = _real_backend()
            answers.append(None if backend is None else ask(backend))
        except Exception as error:  # noqa: BLE001 - backends raise what their systems raise
            failures.append(error)

    # No more than a daemon: one that hangs for ever keeps nobody from ending.
    thread = threading.Thread(target=work, name="keyring", daemon=True)
    thread.start()
    seconds = SECONDS_WITH_PERSON if has_desktop() else SECONDS_ALONE
    thread.join(seconds)
    if failures:
        raise KeyringError(f"the keyring refused ({type(failures[0]).__name__})") from failures[0]
    if not answers:
        raise KeyringError(f"the keyring did not answer within {seconds:g} seconds")
    return answers[0]


def _real_backend() -> "KeyringBackend | None":
    """Return what keeps secrets sealed; what refuses all, keeps nothing, or keeps them in clear is
    none: the library gives those a priority below 1.
    """
    import keyring
    from keyring.backends.chainer import ChainerBackend

    found = keyring.get_keyring()
    for one in found.backends if isinstance(found, ChainerBackend) else [found]:
        with suppress(RuntimeError):  # it cannot work here
            if one.priority >= 1:
                return one
    return None


def has_desktop() -> bool:
    """Tell whether a person may be asked in a window."""
    return sys.platform == "darwin" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
