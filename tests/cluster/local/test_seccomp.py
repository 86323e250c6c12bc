"""The seccomp filter, in a real sandbox."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from greylag.cluster.local.sandbox import seccomp_filter

TRIES = """
import ctypes, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
def fails(*call):
    return libc.syscall(*call) == -1 and ctypes.get_errno()
NEWUSER = 0x10000000
assert fails(272, NEWUSER) == 1, "unshare"
assert fails(56, NEWUSER | 17, 0, 0, 0, 0) == 1, "clone"
assert fails(435, 0, 0) == 38, "clone3"
assert fails(250, 0, 0) == 1, "keyctl"
assert fails(425, 1, 0) == 1, "io_uring_setup"
assert fails(165, 0, 0, 0, 0, 0) == 1, "mount"
assert fails(0x40000000 | 39) == 1, "a call of the x32 kind"
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
print(subprocess.run(["sh", "-c", "echo process"], capture_output=True, text=True).stdout)
"""


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="NO BUBBLEWRAP: install it")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64")
def test_what_no_tool_needs_is_refused_and_what_all_need_works(tmp_path: Path) -> None:
    program = seccomp_filter()
    assert program is not None
    (tmp_path / "filter").write_bytes(program)
    box = ("bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-user")
    done = subprocess.run(  # noqa: S603 - our own arguments
        [
            *("/bin/sh", "-c", 'exec "$@" 9<"$0"', str(tmp_path / "filter")),
            *(*box, "--seccomp", "9", "--", sys.executable, "-c", TRIES),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["thread", "process"]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_filter_is_a_short_program_that_ends_by_allowing(machine: str) -> None:
    program = seccomp_filter(machine)
    assert program is not None
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096
    assert program.endswith(b"\x06\x00\x00\x00\x00\x00\xff\x7f")


def test_an_unknown_machine_has_none() -> None:
    assert seccomp_filter("s390x") is None
