"""The folder that an environment lives in, and agentd's claim on it."""

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from greylag.agentd.config import AgentdConfigError

_PRIVATE = 0o700
_OWN_FILE = 0o600


@dataclass(frozen=True, slots=True)
class Volume:
    """Where things are in the environment's folder; `prepare` makes them."""

    root: Path

    @property
    def workspace(self) -> Path:
        """The folder that the agent works in."""
        return self.root / "workspace"

    @property
    def home(self) -> Path:
        """The agent's HOME: its configuration and its own database."""
        return self.root / "home"

    @property
    def tmp(self) -> Path:
        """The agent's TMPDIR."""
        return self.root / "tmp"

    @property
    def state(self) -> Path:
        """What agentd keeps for itself."""
        return self.root / "state"

    @property
    def journals(self) -> Path:
        """The turns' journals."""
        return self.state / "turns"

    @property
    def database(self) -> Path:
        """The records' file."""
        return self.state / "agentd.db"

    @property
    def listening(self) -> Path:
        """The file that says where agentd listens."""
        return self.state / "listening.json"

    def prepare(self) -> None:
        """Make all folders, private to this user.

        Raises:
            AgentdConfigError: one of them cannot be made or written.
        """
        folders = (self.root, self.workspace, self.home, self.tmp, self.state, self.journals)
        for folder in folders:
            try:
                folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            except OSError as error:
                problem = f"{folder} cannot be made: {error.strerror}."
                raise AgentdConfigError(problem) from error
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise AgentdConfigError(f"{folder} is not writable for uid {os.getuid()}.")

    def claim(self) -> int:
        """Take the folder for this process; return the open lock, which lasts until it is closed.

        Raises:
            AgentdConfigError: another agentd has it, or it cannot be taken.
        """
        path = self.state / "lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            lock = os.open(path, flags, _OWN_FILE)
        except OSError as error:
            raise AgentdConfigError(f"{path} cannot be opened: {error.strerror}.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise AgentdConfigError(f"Another agentd already uses {self.root}.") from error
        return lock

    def announce(self, port: int, started_at: str) -> None:
        """Say in `state/listening.json` where agentd listens; readers see all of it or nothing."""
        about = {"port": port, "pid": os.getpid(), "started_at": started_at}
        draft = self.listening.with_suffix(".new")
        draft.unlink(missing_ok=True)  # the agent's tools may have put a link there
        with draft.open("x") as file:
            json.dump(about, file)
        draft.replace(self.listening)

    def withdraw(self) -> None:
        """Remove what `announce` wrote."""
        self.listening.unlink(missing_ok=True)
