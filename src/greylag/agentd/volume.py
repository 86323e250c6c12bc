"""The folder that an environment lives in, and agentd's claim on it."""

import fcntl
import json
import os
from pathlib import Path

from greylag.agentd.config import AgentdConfigError

_PRIVATE = 0o700
_OWN_FILE = 0o600


class Volume:
    """Where things are in the environment's folder; ``prepare`` makes them.

    Args:
        root: the folder.

    Attributes:
        workspace: the folder that the agent works in.
        home: the agent's HOME: its configuration and its own database.
        tmp: the agent's TMPDIR.
        state: what agentd keeps for itself.
        journals: the turns' journals.
        database: the records' file.
        snapshots: the file of the workspace's states.
        git: the file that says that the workspace has what it starts from.
        listening: the file that says where agentd listens.
        execd_socket: where agentd speaks with its execd.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workspace = root / "workspace"
        self.home = root / "home"
        self.tmp = root / "tmp"
        self.state = root / "state"
        self.journals = self.state / "turns"
        self.database = self.state / "agentd.db"
        self.snapshots = self.state / "snapshots.db"
        self.git = self.state / "git.json"
        self.listening = self.state / "listening.json"
        self.execd_socket = self.state / "execd.sock"

    def prepare(self, *, whole: bool = True) -> None:
        """Make all folders, private to this user.

        Args:
            whole: whether the other side's are there too, which in a container they are not.

        Raises:
            AgentdConfigError: one of them cannot be made or written.
        """
        theirs = (self.root, self.workspace, self.home, self.tmp) if whole else ()
        for folder in (*theirs, self.state, self.journals):
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
        """Say in ``state/listening.json`` where agentd listens; readers see all of it or none."""
        about = {"port": port, "pid": os.getpid(), "started_at": started_at}
        draft = self.listening.with_suffix(".new")
        draft.unlink(missing_ok=True)  # without a sandbox a tool may have put a link there
        with draft.open("x") as file:
            json.dump(about, file)
        draft.replace(self.listening)

    def withdraw(self) -> None:
        """Remove what ``announce`` wrote."""
        self.listening.unlink(missing_ok=True)
