"""When a process began: what tells it from others that had its number."""

import os
import subprocess
import sys

import pytest

from greylag.common import process_start
from greylag.common.process_start import birth

WAIT = [sys.executable, "-I", "-S", "-c", "input()"]


@pytest.fixture(params=[True, False], ids=["linux", "elsewhere"])
def _system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and sys.platform != "linux":
        pytest.skip("this is not Linux")
    monkeypatch.setattr(process_start, "_LINUX", request.param)


@pytest.mark.usefixtures("_system")
def test_a_birth_is_the_same_while_the_process_lives_and_none_once_it_has_ended() -> None:
    assert birth(os.getpid()) == birth(os.getpid()) is not None
    with subprocess.Popen(WAIT, stdin=subprocess.PIPE) as child:  # noqa: S603 - our own words
        assert birth(child.pid) == birth(child.pid) is not None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert birth(child.pid) is None, "a zombie"
    assert birth(child.pid) is None
