"""All that a run started: found and killed, also what left its tree."""

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from greylag.execd import processes
from greylag.execd.processes import birth, has_variables, process_clock
from greylag.execd.protocol import GROUP


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has child subreapers")
def test_an_adopting_process_kills_and_reaps_what_hides_itself(tmp_path: Path) -> None:
    hider = "(env -i setsid /bin/sh -c '/bin/sleep 4804' &) ; exec sleep 4805"
    code = f"""
import subprocess, time, psutil
from greylag.execd import processes
processes.guard_memory()
processes.adopt_orphans()
# A shell says "Killed" of a child; what this process says itself is what counts.
root = subprocess.Popen(
    ["/bin/sh", "-c", {hider!r}], env={{{GROUP!r}: "m"}}, stderr=subprocess.DEVNULL
)
while len(psutil.Process().children(recursive=True)) < 2:
    time.sleep(0.01)
assert processes.end_group("m", root.pid, lambda: True) == []
root.wait()
processes.reap(set())
print(psutil.Process().children(recursive=True))
"""
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stderr, done.stdout) == ("", "[]\n")


def start_loop() -> "subprocess.Popen[bytes]":
    """Start a tool of session `s` that starts another process every moment."""
    mine = {GROUP: "clock", "AGENT_SESSION_ID": "s", "PATH": os.environ["PATH"]}
    return subprocess.Popen(["/bin/sh", "-c", "while :; do sleep 0.01; done"], env=mine)


def test_a_session_s_kill_ends_what_began_since_and_nothing_of_what_runs_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_KILL_SECONDS", 1000)  # it must not try until it gives up
    older = start_loop()
    began = process_clock()
    while process_clock() < began + 0.1:  # start times are counted in ticks
        pass
    since = process_clock()
    newer = start_loop()
    try:
        processes.end_matching({GROUP: "clock", "AGENT_SESSION_ID": "s"}, since)
        assert newer.wait(10) == -9
        assert older.poll() is None
    finally:
        older.kill()
        older.wait()


def started_at(pid: int) -> float:
    """Return when a process began, as execd sees it; 0 when it is gone."""
    return next((one.start for one in processes._all() if one.pid == pid), 0.0)


@pytest.mark.parametrize("linux", [True, False], ids=["linux", "elsewhere"])
def test_a_start_is_told_on_the_clock_of_now(
    monkeypatch: pytest.MonkeyPatch, *, linux: bool
) -> None:
    if linux and sys.platform != "linux":
        pytest.skip("this is not Linux")
    monkeypatch.setattr(processes, "_LINUX", linux)
    before = process_clock()
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        started = started_at(child.pid)
        child.kill()
    assert started_at(child.pid) == 0
    # psutil counts from the boot, which it knows to the second.
    grain = 2 / os.sysconf("SC_CLK_TCK") if linux else 2.0
    assert before - grain <= started <= process_clock() + grain


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell no time since the boot")
def test_setting_the_clock_does_not_move_when_a_process_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = process_clock()
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        # The system derives the boot's time from the clock; this is what a step back looks like.
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 0.0)
        began = started_at(process.pid)
        process.kill()
    assert before - 0.02 <= began <= process_clock() + 0.02


WAIT = [sys.executable, "-I", "-S", "-c", "input()"]
SAY_AND_WAIT = [sys.executable, "-I", "-S", "-c", "print(flush=True); input()"]


@pytest.fixture(params=[True, False], ids=["linux", "elsewhere"])
def _system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and sys.platform != "linux":
        pytest.skip("this is not Linux")
    monkeypatch.setattr(processes, "_LINUX", request.param)


@pytest.mark.usefixtures("_system")
def test_a_birth_is_the_same_while_the_process_lives_and_none_once_it_has_ended() -> None:
    assert birth(os.getpid()) == birth(os.getpid()) is not None
    with subprocess.Popen(WAIT, stdin=subprocess.PIPE) as child:  # noqa: S603 - our own words
        assert birth(child.pid) == birth(child.pid) is not None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert birth(child.pid) is None, "a zombie"
    assert birth(child.pid) is None


@contextmanager
def waiting_with(environ: Mapping[str, str]) -> Iterator[int]:
    """Run a process that does nothing, with this environment; at the end it is gone."""
    with subprocess.Popen(  # noqa: S603 - our own words
        SAY_AND_WAIT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(environ)
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()  # a system shows no environment until a program has been loaded
        yield child.pid
        child.kill()


@pytest.mark.usefixtures("_system")
def test_a_process_has_a_variable_by_its_whole_name_and_value() -> None:
    with waiting_with({"FIRST": "1", "MARK": "one=more", "LAST": "é"}) as pid:
        assert has_variables(pid, {"FIRST": "1", "MARK": "one=more", "LAST": "é"})
        for other in ({"MARK": "one"}, {"ARK": "one=more"}, {"MARK": ""}, {"MARK=one": "mor"}):
            assert not has_variables(pid, {"FIRST": "1", **other})
    assert not has_variables(pid, {"FIRST": "1"})


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere psutil reads all of it")
def test_very_many_variables_cost_no_more_than_their_first_mebibyte() -> None:
    environ = {"MARK": "one", **{f"{number:x}": "" for number in range(100_000)}}
    tracemalloc.start()
    try:
        with waiting_with(environ) as pid:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            assert has_variables(pid, {"MARK": "one"})
            assert has_variables(pid, {"MARK": frozenset({"one", "two"})})
            _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most - before < 4 * 2**20  # and no object for each of them


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere psutil reads all of it")
def test_what_the_bound_cuts_off_is_not_there_and_makes_no_value_shorter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_LONGEST_ENVIRON", len("MARK=one"))
    with waiting_with({"MARK": "one-more"}) as pid:
        assert not has_variables(pid, {"MARK": "one"})
        assert not has_variables(pid, {"MARK": frozenset({"one"})})
    with waiting_with({"LARGE": "x" * 100, "MARK": "one"}) as pid:
        assert not has_variables(pid, {"MARK": "one"})
