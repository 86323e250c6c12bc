"""What holds an environment's untrusted side: bubblewrap and pasta, where they work, and a filter
of system calls.
"""

import os
import platform
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

import structlog

import greylag
from greylag.domain.errors import ConfigError

SandboxChoice = Literal["auto", "bubblewrap", "none"]
SandboxNetwork = Literal["auto", "shared", "strict"]

WRITABLE = ("workspace", "home", "tmp")
"""What of its volume the untrusted side of an environment sees, and may write to."""

_log = structlog.get_logger(__name__)

_NAME_SERVERS = Path("/etc/resolv.conf")
_NAMED = re.compile(r"(?m)^(\s*nameserver\s+)(?:[0-9.]+|::1)(?=\s|$)")
_PROBE_SECONDS = 30.0  # a busy machine that only takes its time must not end up without a sandbox
# All that is mounted is mounted anew, which fails where a part goes meanwhile, as a container's.
_PROBES = 3
_PROBE = "from importlib.util import find_spec as f; assert f('greylag') and f('structlog')"
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - hidden, not used
_SYSTEM = frozenset(
    ("usr", "bin", "sbin", "lib", "lib32", "lib64", "etc", "dev", "proc", "sys", "nix")
)
# Where root, of which user namespace ever, could change the machine by writing a file.
_KERNEL = ("acpi", "bus", "fs", "irq", "scsi", "sys", "sysrq-trigger")
_MOST_PROCESSES = 2048
_COUNTS_BY_NAMESPACE = (5, 14)  # Linux: RLIMIT_NPROC counts in each user namespace by itself
# As Podman has it: nothing is forwarded either way, and no address leads to this machine's
# loopback, but for one that is its name server's, which may listen there. Older ones have all of
# the name server's answers come from that address, so no other will do.
_NAME_SERVER = "169.254.1.1"
_PASTA = (
    *("--config-net", "--no-map-gw", "--dns-forward", _NAME_SERVER, "--quiet", "--foreground"),
    *("-t", "none", "-u", "none", "-T", "none", "-U", "none", "--"),
)
_EXECD = (sys.executable, "-I", "-m", "greylag.execd")
_PLAIN_NOTICE = (
    "Environments on this machine run as ordinary processes of your account and are not isolated "
    "from each other or from your files: what an agent runs can read your keys, and Greylag's own."
)
_BOXED_NOTICE = (
    "On this machine the agents and all that they run are in bubblewrap: they see their own "
    "workspace and the system's programs, not your home folder, the folder that Greylag was "
    "started in, its data and keys, or each other's files and processes. {network} They share "
    "this machine's kernel, memory and disk."
)
_SHARED_NETWORK = (
    "They do use your network, with what listens on this machine alone: install pasta (of the "
    "package passt), which keeps that from them, or set GREYLAG_SANDBOX_NETWORK=strict, which "
    "leaves them the model and nothing else."
)
_PASTA_NETWORK = (
    "They use your network through pasta, and do not reach what listens on this machine's loopback."
)
_STRICT_NETWORK = "They have no network; the model is reached through Greylag."


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What the untrusted side of an environment runs in.

    Inside bubblewrap everything is read-only but what a command names as writable. The home folder,
    temporary folders and ``/run`` (sockets of other services) are empty, and so is what is hidden,
    except for ``needed`` paths in them, which stay readable.

    Attributes:
        bwrap: the path of bubblewrap; ``None``: commands are run plainly.
        hidden: folders and files that are out of sight.
        needed: what stays readable in hidden folders, beside Python and Greylag.
        network: ``strict`` gives a network of its own, in which nothing is but itself.
        pasta: the path of pasta, which gives the other network one of its own as well, with ways
            to other machines; ``None``: this machine's is shared.
        memory: most bytes that one process of the untrusted side may have, in bubblewrap or not.
    """

    bwrap: str | None = None
    hidden: Sequence[Path] = field(default=())
    needed: Sequence[Path] = field(default=())
    network: SandboxNetwork = "auto"
    memory: int | None = None
    pasta: str | None = None

    @property
    def notice(self) -> str:
        """What users must know of it."""
        if self.bwrap is None:
            return _PLAIN_NOTICE
        network = _SHARED_NETWORK if self.pasta is None else _PASTA_NETWORK
        strict = self.network == "strict"
        return _BOXED_NOTICE.format(network=_STRICT_NETWORK if strict else network)

    def execd(self, volume: Path, seccomp: Path) -> list[str]:
        """Return what runs execd for an environment.

        Args:
            volume: the environment's; its folders that are ``WRITABLE`` must exist by then.
            seccomp: what ``write`` has written.
        """
        if self.pasta is not None and not _is_routed():
            # Older ones do not start then. It has no network until its next start, and a model.
            return replace(self, network="strict", pasta=None).execd(volume, seccomp)
        argv = [*_EXECD]
        if self.memory is not None:
            argv += ["--memory", str(self.memory)]
        if self.bwrap is not None and _kernel() >= _COUNTS_BY_NAMESPACE:
            argv += ["--processes", str(_MOST_PROCESSES)]
        return self.command(argv, [volume / name for name in WRITABLE], seccomp)

    def command(self, argv: Sequence[str], writable: Sequence[Path], seccomp: Path) -> list[str]:
        """Return what to run so that ``argv`` runs inside, ``writable`` folders being so, with what
        ``write`` has written to ``seccomp``.

        It inherits stdin, stdout and stderr, and no other descriptor for sure.
        """
        if self.bwrap is None:
            return list(argv)
        # --as-pid-1: when execd ends, the system kills all that is left in its pid namespace.
        flags = ["--die-with-parent", "--new-session", "--unshare-pid", "--as-pid-1"]
        flags += ["--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--cap-drop", "ALL"]
        flags += ["--unshare-user", *_no_more_namespaces(self.bwrap)]
        flags += ["--unshare-net"] if self.network == "strict" else []
        flags += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
        for part in _KERNEL:
            flags += ["--ro-bind-try", f"/proc/{part}", f"/proc/{part}"]
        emptied = self._emptied()
        for path in emptied:
            flags += ["--tmpfs", str(path)]
        for path in self.hidden:
            if path.is_file() and not _lies_in(path.resolve(), emptied):
                flags += ["--ro-bind", "/dev/null", str(path.resolve())]
        for path in self._needed_again():
            flags += ["--ro-bind", str(path), str(path)]
        for path in writable:
            flags += ["--bind", str(path), str(path)]
        for path in emptied:
            flags += [] if path in _TEMPORARY else ["--remount-ro", str(path)]
        flags += ["--chdir", "/"]
        around = [] if self.pasta is None else [self.pasta, *_PASTA]
        flags += [] if self.pasta is None else _in_pasta(seccomp)
        if seccomp_filter() is None:
            return [*around, self.bwrap, *flags, "--", *argv]
        # The shell opens the filter for bubblewrap, and is gone then.
        around += ["/bin/sh", "-c", 'exec "$@" 9<"$0"', str(seccomp)]
        return [*around, self.bwrap, *flags, "--seccomp", "9", "--", *argv]

    def write(self, seccomp: Path) -> None:
        """Write what ``command`` needs: the filter of system calls, and beside it what leads to
        this machine's name server, which is out of reach on the loopback.
        """
        if self.bwrap is not None:
            seccomp.write_bytes(seccomp_filter() or b"")
        if self.pasta is not None and _NAME_SERVERS.exists():
            told = _NAMED.sub(rf"\g<1>{_NAME_SERVER}", _NAME_SERVERS.read_text())
            _beside(seccomp).write_text(told)

    def _emptied(self) -> list[Path]:
        usual = (*_TEMPORARY, Path("/run"), _home())
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
    choice: SandboxChoice,
    *,
    hidden: Sequence[Path],
    needed: Sequence[Path],
    network: SandboxNetwork = "auto",
    memory: int | None = None,
) -> Sandbox:
    """Return the sandbox for ``choice``; ``auto`` takes bubblewrap when it works here, and the
    network ``auto`` takes pasta when that does.

    It runs Python in them once, which blocks for some ten milliseconds: some systems have
    the program but forbid what it does, and Greylag may lie where it cannot be seen from inside.

    Raises:
        ConfigError: ``bubblewrap`` or a ``strict`` network was demanded and does not work, or no
            temporary file can be made.
    """
    found = None if choice == "none" else shutil.which("bwrap")
    if found is None:
        fault: str | None = f"bwrap is not {'wanted' if choice == 'none' else 'installed'}"
    else:
        sandbox = Sandbox(found, tuple(hidden), tuple(needed), network, memory)
        pasta = shutil.which("pasta") if network == "auto" else None
        # It makes itself nobody where it is started by root.
        if pasta is not None and os.getuid() != 0:
            apart = replace(sandbox, pasta=pasta)
            # Without a way to others older ones do not start; each start of execd asks anew.
            tried = apart if _is_routed() else replace(sandbox, network="strict")
            refused = _probe(tried)
            if refused is None:
                return apart
            _log.warning("pasta_does_not_work", error=refused)
        fault = _probe(sandbox)
        if fault is None:
            return sandbox
    if choice == "bubblewrap":
        raise ConfigError(f"Environments are to run in bubblewrap, which does not work: {fault}.")
    if network == "strict":
        raise ConfigError(
            "GREYLAG_SANDBOX_NETWORK=strict needs bubblewrap, which does not work or is turned "
            f"off: {fault}."
        )
    return Sandbox(memory=memory)


def half_the_memory() -> int:
    """Return half of this machine's memory, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def start_folder() -> tuple[Path, ...]:
    """Return what to hide of the folder that we were started in: it, or its settings at least.

    People keep keys where they work. A folder of the system itself has to stay in sight.
    """
    here = Path.cwd()
    of_the_system = here.parts[1:2] == () or here.parts[1] in _SYSTEM
    return (here / ".env",) if of_the_system else (here, here / ".env")


def _probe(sandbox: Sandbox) -> str | None:
    """Return why ``sandbox`` does not work here, or ``None``."""
    try:
        place = tempfile.TemporaryDirectory()
    except OSError as error:  # it says nothing of the sandbox
        raise ConfigError(
            f"Greylag needs a place for temporary files: {error.strerror}.",
            hint="Set TMPDIR to a folder that can be written to and has room.",
        ) from error
    fault = ""
    with place as folder:
        seccomp = Path(folder, "seccomp")
        sandbox.write(seccomp)
        command = sandbox.command([sys.executable, "-I", "-c", _PROBE], [Path(folder)], seccomp)
        for _ in range(_PROBES):
            try:
                done = subprocess.run(  # noqa: S603 - our own arguments
                    command, capture_output=True, timeout=_PROBE_SECONDS, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                return str(error)
            if done.returncode == 0:
                return None
            fault = done.stderr.decode(errors="replace").strip()
            fault = fault or f"exit code {done.returncode}"
    return fault


@cache
def _no_more_namespaces(bwrap: str) -> tuple[str, ...]:
    """Return the flag that forbids user namespaces inside; older ones have the filter alone."""
    usage = subprocess.run([bwrap, "--help"], capture_output=True, check=False)  # noqa: S603 - as above
    return ("--disable-userns",) if b"--disable-userns" in usage.stdout + usage.stderr else ()


def _in_pasta(seccomp: Path) -> list[str]:
    """Return flags for bubblewrap: pasta makes us root of its namespace, in here we are ourselves,
    and name servers are asked in its way.
    """
    flags = ["--uid", str(os.getuid()), "--gid", str(os.getgid())]
    if not _NAME_SERVERS.exists():
        return flags
    return [*flags, "--ro-bind", str(_beside(seccomp)), str(_NAME_SERVERS.resolve())]


def _beside(seccomp: Path) -> Path:
    return seccomp.with_name("resolv.conf")


def _is_routed() -> bool:
    """Tell whether this machine has a way to others; nothing is sent to find out."""
    for family, host in ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as one:
            one.connect((host, 9))
            return True
    return False


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])


def _home() -> Path:
    return Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises where there is none


def _usual_needs() -> list[Path]:
    """Return where Python, Greylag and the libraries lie, and the file of the name servers.

    Not ``sys.path``: it may hold the working directory, which may be the home folder.
    """
    libraries = Path(structlog.__file__).parents[1]
    package = Path(greylag.__file__).parent
    # In /run on many systems, behind a link.
    name_servers = _NAME_SERVERS.resolve()
    return [Path(sys.prefix), Path(sys.base_prefix), libraries, package, name_servers]


def _lies_in(path: Path, emptied: Sequence[Path]) -> bool:
    """Tell whether ``path`` is inside an emptied folder, and would not bring one back whole."""
    inside = any(path.is_relative_to(folder) for folder in emptied)
    return inside and not any(folder.is_relative_to(path) for folder in emptied)


# A seccomp filter for what runs in the sandbox: the system calls that no tool needs are refused.
#
# As container engines do it, calls that reach into the kernel's own workings, into other
# namespaces or into keys answer EPERM (debuggers work: the processes of others are out of sight),
# and ``clone3`` answers ENOSYS, so that the C library falls back to ``clone``, whose flags can be
# looked at. The filter is a classic BPF program
# (https://docs.kernel.org/userspace-api/seccomp_filter.html) for one architecture; another's
# calls (the 32-bit ones of a 64-bit machine) are refused whole.

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_NEW_NAMESPACES = 0x7E020080  # CLONE_NEW*: time, mount, cgroup, uts, ipc, user, pid, net
_X32 = 0x40000000

_Table = dict[str, int]

_X86_64: _Table = {
    "syslog": 103, "uselib": 134, "ustat": 136, "sysfs": 139,
    "vhangup": 153, "modify_ldt": 154, "pivot_root": 155, "_sysctl": 156, "acct": 163,
    "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168,
    "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173,
    "create_module": 174, "init_module": 175, "delete_module": 176, "get_kernel_syms": 177,
    "query_module": 178, "quotactl": 179, "nfsservctl": 180, "lookup_dcookie": 212,
    "clock_settime": 227, "mbind": 237, "set_mempolicy": 238, "get_mempolicy": 239,
    "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "migrate_pages": 256,
    "unshare": 272, "move_pages": 279, "perf_event_open": 298, "fanotify_init": 300,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308,
    "finit_module": 313,
    "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "chroot": 161,
}  # fmt: skip
_GENERIC: _Table = {
    "lookup_dcookie": 18, "umount2": 39, "mount": 40, "pivot_root": 41, "nfsservctl": 42,
    "chroot": 51, "vhangup": 58, "quotactl": 60, "acct": 89, "unshare": 97,
    "init_module": 105, "delete_module": 106, "kexec_load": 104, "clock_settime": 112,
    "syslog": 116, "reboot": 142, "sethostname": 161, "setdomainname": 162,
    "settimeofday": 170, "add_key": 217, "request_key": 218, "keyctl": 219, "swapon": 224,
    "swapoff": 225, "mbind": 235, "get_mempolicy": 236, "set_mempolicy": 237,
    "migrate_pages": 238, "move_pages": 239, "perf_event_open": 241, "fanotify_init": 262,
    "name_to_handle_at": 264, "open_by_handle_at": 265, "clock_adjtime": 266, "setns": 268,
    "finit_module": 273,
    "bpf": 280, "userfaultfd": 282, "kexec_file_load": 294,
}  # fmt: skip
_SINCE_5: _Table = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "mount_setattr": 442, "quotactl_fd": 443,
}  # fmt: skip
_CLONE3 = 435

# By what ``uname -m`` says: the audit architecture, the calls, and the number of ``clone``.
_MACHINES: Mapping[str, tuple[int, _Table, int]] = {
    "x86_64": (0xC000003E, _X86_64 | _SINCE_5, 56),
    "aarch64": (0xC00000B7, _GENERIC | _SINCE_5, 220),
}


def seccomp_filter(machine: str | None = None) -> bytes | None:
    """Return the filter for ``bwrap --seccomp``, ``None`` for a machine that has none here.

    Args:
        machine: as ``uname -m`` names it; ``None`` for this one.
    """
    known = _MACHINES.get(machine or platform.machine())
    if known is None:
        return None
    arch, refused, clone = known
    numbers = sorted(set(refused.values()))
    # One step after another; a jump counts the steps that it passes over (at most 255).
    steps = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_JUMP_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
    ]
    for number in numbers:
        steps += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    steps += [
        (_JUMP_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_SET, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
