"""Processes: told apart, found, signalled and awaited."""

import asyncio
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from greylag.cluster.local import processes
from greylag.cluster.local.processes import (
    MARK,
    ProcessId,
    children,
    identify,
    is_alive,
    marked,
    reap,
    send,
    wait_end,
)
from greylag.execd import processes as system_processes

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]


@contextmanager
def sleeper(mark: str = "") -> Iterator[ProcessId]:
    """Run a process that does nothing; at the end it is gone."""
    with subprocess.Popen(SLEEP, env={MARK: mark}) as child:  # noqa: S603 - our own
        process = identify(child.pid)
        assert process is not None
        yield process
        child.kill()


def test_a_process_is_itself_and_no_other_with_its_number() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert me == identify(os.getpid())
    assert is_alive(me)
    assert not is_alive(ProcessId(me.pid, me.birth + "0"))
    assert identify(2**22 + 1) is None


def test_a_zombie_is_not_alive_and_is_reaped_with_its_exit_code() -> None:
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert identify(pid) is None
    assert reap(pid) == 7
    assert reap(pid) is None


def test_a_living_or_foreign_process_is_not_reaped() -> None:
    with sleeper() as process:
        assert reap(process.pid) is None
    assert reap(1) is None


def test_marked_processes_are_found_by_the_whole_value() -> None:
    with sleeper("one") as one, sleeper("one-more"):
        assert marked("one") == {one}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere psutil reads all of it")
def test_very_many_variables_of_a_process_cost_the_search_for_a_mark_no_more_than_few() -> None:
    environ = {MARK: "one", **{f"{number:x}": "" for number in range(100_000)}}
    with subprocess.Popen(SLEEP, env=environ) as child:  # noqa: S603 - our own
        tracemalloc.start()
        try:
            assert {found.pid for found in marked("one")} == {child.pid}
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            child.kill()
    assert most < 4 * 2**20


def test_children_of_a_process_that_is_gone_are_none() -> None:
    with sleeper() as process:
        assert children(ProcessId(os.getpid(), "another-boot:1"), recursive=True) == set()
        me = identify(os.getpid())
        assert me is not None
        assert process in children(me, recursive=False)


def test_a_signal_never_meets_another_process_with_the_number() -> None:
    with sleeper() as process:
        send({ProcessId(process.pid, "another-boot:1")}, signal.SIGKILL)
        assert is_alive(process)


async def test_wait_end_returns_when_the_process_ends() -> None:
    with sleeper() as process:
        waiting = asyncio.create_task(wait_end(process))
        await asyncio.sleep(0)
        assert not waiting.done()
        send({process}, signal.SIGKILL)
        async with asyncio.timeout(10):
            await waiting
        assert not is_alive(process)


async def test_wait_end_of_what_has_ended_returns_at_once() -> None:
    async with asyncio.timeout(10):
        await wait_end(ProcessId(os.getpid(), "another-boot:1"))
        await wait_end(ProcessId(2**22 + 1, "another-boot:1"))


async def test_without_pidfds_ends_are_seen_and_signals_sent_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_open_pidfd", lambda _pid: None)
    monkeypatch.setattr(system_processes, "_LINUX", False)
    with sleeper() as process:
        waiting = asyncio.create_task(wait_end(process))
        await asyncio.sleep(0)
        send({process}, signal.SIGKILL)
        async with asyncio.timeout(10):
            await waiting


async def test_a_cancelled_wait_lets_go_of_the_process() -> None:
    with sleeper() as process:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number
        waiting = asyncio.create_task(wait_end(process))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208 - only their number
