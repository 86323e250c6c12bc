"""The operator's token as a file: made once by a server, read by whoever may read the file.

``<data>/token`` is what ``greylag up`` makes for itself; ``~/.config/greylag/token`` is where a
person keeps the token of a server elsewhere. ``<data>/secret-key``, made likewise, seals secrets.
"""

import errno
import os
import re
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from greylag.domain.errors import ConfigError

NAME = "token"
SECRET_KEY = "secret-key"  # noqa: S105 - a file's name
"""What the data folder's files are called: the token, and the key that seals users' secrets."""
_SETTINGS = {NAME: "GREYLAG_TOKEN", SECRET_KEY: "GREYLAG_SECRET_KEY"}
_OTHERS = "Remove it: a new one is made."
_KEPT = {
    SECRET_KEY: "Take others' rights to it away (`chmod 600`), and keep it: it alone opens what it "
    "has sealed."
}
FORM = "one line of 16 or more plain characters"
"""What such a file holds, in words."""
_RANDOM_BYTES = 32
_MAX_BYTES = 4096
_TOKEN = re.compile(r"[!-~][ -~]{14,1022}[!-~]")


def can_be_token(text: str) -> bool:
    """Tell whether a text is one that a file may hold: it goes into one line of a header."""
    return _TOKEN.fullmatch(text) is not None


def own_token_file(environment: Mapping[str, str]) -> Path:
    """Return where a person keeps a token, by the XDG base directory specification."""
    named = environment.get("XDG_CONFIG_HOME", "")
    # The specification has relative paths passed over.
    folder = Path(named) if Path(named).is_absolute() else Path("~/.config").expanduser()
    return folder / "greylag" / NAME


def ensure_token(folder: Path, name: str = NAME) -> str:
    """Return the token of the data folder, or its key, made if there is none.

    It appears whole or not at all: of several programs that start at once, one makes it and all
    return the same.

    Raises:
        ConfigError: it cannot be made or used, or others may read it.
    """
    path = folder / name
    if (found := read_token(path, private=True)) is not None:
        return found
    try:
        _make(path)
    except OSError as error:
        raise ConfigError(
            f"The {path.name} cannot be kept in {path}: {error.strerror}.",
            hint=f"Give your account write access to the folder, or set {_setting(path)}.",
        ) from error
    made = read_token(path, private=True)
    if made is None:
        raise ConfigError(f"The {path.name} in {path} was removed as Greylag started.")
    return made


def write_token(path: Path, token: str) -> None:
    """Keep a token in a file that nobody else can read, in place of the one that was there.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = _written_beside(path, token)
        beside.replace(path)
    except OSError as error:
        raise ConfigError(
            f"The token cannot be kept in {path}: {error.strerror}.",
            hint="Give your account write access to the folder, or set GREYLAG_TOKEN.",
        ) from error


def read_token(path: Path, *, private: bool = False, follow: bool = False) -> str | None:
    """Return the token that the file holds, ``None`` when there is no file.

    Another account's file is not taken: a command may be run in any folder, and would send what it
    finds there to a server.

    Args:
        path: of the file.
        private: refuse a file that others may read, too.
        follow: take a symbolic link for the file that it leads to.

    Raises:
        ConfigError: there is one that cannot be used. The sentence does not hold its content.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        number = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        is_link = error.errno == errno.ELOOP and not follow
        why = "it is a link" if is_link else f"it cannot be read ({error.strerror})"
        raise _unusable(path, why) from error
    try:
        about = os.fstat(number)
        if not stat.S_ISREG(about.st_mode):
            raise _unusable(path, "it is not a plain file")
        if os.geteuid() not in {about.st_uid, 0}:
            raise _unusable(path, "it belongs to another account")
        if private and about.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise _unusable(path, "others may read it", _KEPT.get(path.name, _OTHERS))
        held = os.read(number, _MAX_BYTES).decode("latin-1").strip()
    finally:
        os.close(number)
    if not can_be_token(held):
        raise _unusable(path, f"it does not hold {FORM}")
    return held


def _make(path: Path) -> None:
    beside = _written_beside(path, secrets.token_urlsafe(_RANDOM_BYTES))
    try:
        # Unlike a rename, it never takes the place of one that another program has made meanwhile.
        with suppress(FileExistsError):
            os.link(beside, path)
    finally:
        beside.unlink()


def _written_beside(path: Path, token: str) -> Path:
    """Return a new file in the same folder that holds a token, whole and private."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    number = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(f"{token}\n".encode())
            file.flush()
            os.fsync(number)
    except BaseException:
        beside.unlink()
        raise
    return beside


def _setting(path: Path) -> str:
    return _SETTINGS.get(path.name, _SETTINGS[NAME])


def _unusable(path: Path, reason: str, hint: str = "") -> ConfigError:
    return ConfigError(
        f"The {path.name} file {path} cannot be used: {reason}.",
        hint=hint or _KEPT.get(path.name) or f"Mend or remove the file, or set {_setting(path)}.",
    )
