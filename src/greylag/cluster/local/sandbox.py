"""What holds an environment's processes: resource limits, and bubblewrap where it works."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog

import greylag
from greylag.domain.errors import ConfigError

SandboxChoice = Literal["auto", "bubblewrap", "none"]

_PROBE_SECONDS = 5.0
_PROBE = "from importlib.util import find_spec as f; assert f('greylag') and f('structlog')"
_PLAIN_NOTICE = (
    "Environments on this machine run as ordinary processes of your account and are not isolated "
    "from each other or from your files."
)
_BOXED_NOTICE = (
    "Environments on this machine run in bubblewrap: they cannot read your home folder or each "
    "other's files, and cannot write outside their own volume. They are not isolated from your "
    "network, and share this machine's kernel, memory and disk."
)


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """Most of what each process of an environment may have.

    There is none for the number of processes: the system counts those per account, so an
    environment would be charged for the user's browser. Core files are always off.
    """

    open_files: int = 4096
    file_bytes: int | None = None

    def as_rlimits(self) -> Mapping[str, int]:
        """Return names of ``resource.RLIMIT_*`` with their values."""
        limits = {"CORE": 0, "NOFILE": self.open_files}
        if self.file_bytes is not None:
            limits["FSIZE"] = self.file_bytes
        return limits


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How commands are run: ``bwrap`` is the path of bubblewrap, ``None`` runs them plainly.

    Inside bubblewrap everything is read-only but the volume; ``hidden`` folders, the home folder,
    temporary folders and ``/run`` (sockets of other services) are empty, except for ``needed``
    paths in them, which stay readable.
    """

    bwrap: str | None = None
    hidden: Sequence[Path] = field(default=())
    needed: Sequence[Path] = field(default=())

    @property
    def notice(self) -> str:
        """What users must know of it."""
        return _PLAIN_NOTICE if self.bwrap is None else _BOXED_NOTICE

    def command(self, argv: Sequence[str], volume: Path) -> list[str]:
        """Return what to run so that ``argv`` runs inside, with ``volume`` writable."""
        if self.bwrap is None:
            return list(argv)
        # No --die-with-parent: environments outlive us. --as-pid-1: when agentd is killed, the
        # system kills all that is left in its pid namespace, so nothing can be orphaned.
        flags = ["--unshare-pid", "--as-pid-1", "--unshare-ipc", "--unshare-uts"]
        flags += ["--cap-drop", "ALL", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
        for path in self._emptied():
            flags += ["--tmpfs", str(path)]
        for path in self._needed_again():
            flags += ["--ro-bind", str(path), str(path)]
        flags += ["--bind", str(volume), str(volume), "--chdir", str(volume)]
        return [self.bwrap, *flags, "--", *argv]

    def _emptied(self) -> list[Path]:
        usual = (Path("/tmp"), Path("/var/tmp"), Path("/run"), _home())  # noqa: S108 - hidden, not used
        paths = {path.resolve() for path in (*usual, *self.hidden) if path.is_dir()}
        # Outer ones first: a mount on the outer one would cover what was mounted inside it.
        return sorted(paths - {Path("/")}, key=lambda path: (len(path.parts), path))

    def _needed_again(self) -> list[Path]:
        emptied = self._emptied()
        paths = {path for path in (*self.needed, *_usual_needs()) if path.exists()}
        again = sorted(path for path in paths if _lies_in(path, emptied))
        # What lies in a folder of the list comes with it, and could not be mounted there again.
        return [path for path in again if not any(outer in path.parents for outer in again)]


def choose_sandbox(
    choice: SandboxChoice, *, hidden: Sequence[Path], needed: Sequence[Path]
) -> Sandbox:
    """Return the sandbox for ``choice``; ``auto`` takes bubblewrap when it works here.

    It runs Python in bubblewrap once, which blocks for some ten milliseconds: some systems have
    the program but forbid what it does, and Greylag may lie where it cannot be seen from inside.

    Raises:
        ConfigError: ``bubblewrap`` was demanded and does not work.
    """
    if choice == "none":
        return Sandbox()
    found = shutil.which("bwrap")
    if found is not None:
        sandbox = Sandbox(found, tuple(hidden), tuple(needed))
        fault = _probe(sandbox)
    else:
        sandbox, fault = Sandbox(), "bwrap is not installed"
    if fault is None:
        return sandbox
    if choice == "bubblewrap":
        raise ConfigError(f"Environments are to run in bubblewrap, which does not work: {fault}.")
    return Sandbox()


def _probe(sandbox: Sandbox) -> str | None:
    """Return why ``sandbox`` does not work here, or ``None``."""
    volume = Path(sys.prefix)
    command = sandbox.command([sys.executable, "-c", _PROBE], volume)
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_SECONDS, check=False)  # noqa: S603 - our own arguments
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"


def _home() -> Path:
    return Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises where there is none


def _usual_needs() -> list[Path]:
    """Return where Python, Greylag and the libraries lie, and the file of the name servers.

    Not ``sys.path``: it may hold the working directory, which may be the home folder.
    """
    libraries = Path(structlog.__file__).parents[1]
    package = Path(greylag.__file__).parent
    # In /run on many systems, behind a link.
    name_servers = Path("/etc/resolv.conf").resolve()
    return [Path(sys.prefix), Path(sys.base_prefix), libraries, package, name_servers]


def _lies_in(path: Path, emptied: Sequence[Path]) -> bool:
    """Tell whether ``path`` is inside an emptied folder, and would not bring one back whole."""
    inside = any(path.is_relative_to(folder) for folder in emptied)
    return inside and not any(folder.is_relative_to(path) for folder in emptied)
