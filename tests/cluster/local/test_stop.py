"""Local environments: stopped with all their processes, whoever does it."""

import errno
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs
from tests.cluster.environments import (
    folder_of,
    is_gone,
    open_local,
    pid_of,
    reaches,
    record_of,
    until,
)
from tests.contract.store_adapters import make_project

from greylag.cluster.local import environment
from greylag.cluster.local.environment import LocalEnvironment
from greylag.cluster.local.folders import EnvironmentRecord, Folder, Phase
from greylag.cluster.local.processes import marked
from greylag.domain.lifecycle import Observed

PROJECT = make_project()


async def test_a_stop_lets_the_agent_end_by_itself(tmp_path: Path) -> None:
    async with open_local(tmp_path, grace=60) as cluster:
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        await cluster.stop(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.STOPPED)
        async with cluster.logs(PROJECT.environment, follow=False, tail=1) as lines:
            assert [line async for line in lines] == [b"stand-in: leaving\n"]


@pytest.mark.parametrize("shell", ["marked", "bare"])
async def test_a_stop_leaves_no_shell_that_left_its_group(tmp_path: Path, shell: str) -> None:
    async with open_local(tmp_path, "--shell", shell) as cluster:
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        pid = int((folder_of(tmp_path, PROJECT).volume / "shell.pid").read_text())
        assert not is_gone(pid)
        await cluster.stop(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.STOPPED)
        assert is_gone(pid)


async def test_an_agent_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    async with open_local(tmp_path, "--ignore-term", "--shell", "bare") as cluster:
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        pid, mark = pid_of(tmp_path, PROJECT), record_of(tmp_path, PROJECT).mark
        await cluster.stop(PROJECT.environment)
        assert (await cluster.observe(PROJECT.environment)).state is Observed.STOPPING
        await reaches(cluster, PROJECT, Observed.STOPPED)
        assert is_gone(pid)
        assert marked(mark) == set()


@pytest.mark.parametrize("over", [60.0, -1.0], ids=["the grace is over", "a clock set back"])
async def test_within_its_grace_an_agent_is_left_to_end_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: float
) -> None:
    now = time.time()
    clock = SimpleNamespace(time=lambda: now, monotonic=time.monotonic, sleep=time.sleep)
    async with open_local(tmp_path, "--ignore-term") as cluster:
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        pid = pid_of(tmp_path, PROJECT)
        monkeypatch.setattr(environment, "time", clock)
        stopped = LocalEnvironment(folder_of(tmp_path, PROJECT), PROJECT.ref)
        known, began = stopped.begin_stop(), now
        assert known
        for seconds in (0.0, 59.9):
            now = began + seconds
            assert stopped.go_on_stopping(60, known) == known
            assert not is_gone(pid)
        now = began + over
        assert stopped.go_on_stopping(60, known) == known
        await until(lambda: is_gone(pid), "the end of the agent")
        assert stopped.go_on_stopping(60, known) is None


async def test_an_agent_that_does_not_listen_yet_is_given_no_grace(tmp_path: Path) -> None:
    async with open_local(tmp_path, "--ignore-term", "--never-listen", grace=60) as cluster:
        await cluster.start(PROJECT.environment)
        pid = pid_of(tmp_path, PROJECT)
        await cluster.stop(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.STOPPED)
        assert is_gone(pid)


async def test_a_stop_that_was_left_is_taken_up_by_whoever_looks_next(tmp_path: Path) -> None:
    async with open_local(tmp_path, "--ignore-term") as first:
        await first.start(PROJECT.environment)
        await reaches(first, PROJECT, Observed.READY)
        pid = pid_of(tmp_path, PROJECT)
        await first.stop(PROJECT.environment)
        await first.close()
        assert not is_gone(pid)
        async with open_local(tmp_path) as second:
            await reaches(second, PROJECT, Observed.STOPPED)
        assert is_gone(pid)


async def test_a_stop_whose_end_cannot_be_written_down_is_tried_again_after_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Folder.write
    refused: list[EnvironmentRecord] = []

    def full(folder: Folder, record: EnvironmentRecord) -> None:
        if record.phase is Phase.STOPPED and len(refused) < 3:
            refused.append(record)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, record)

    async with open_local(tmp_path) as cluster:
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        monkeypatch.setattr(Folder, "write", full)
        with capture_logs() as logs:
            await cluster.stop(PROJECT.environment)
            await reaches(cluster, PROJECT, Observed.STOPPED)
    assert [one["event"] for one in logs] == ["stop_not_done"] * 3


async def test_of_what_is_gone_nothing_is_kept(tmp_path: Path) -> None:
    async with open_local(tmp_path) as cluster, open_local(tmp_path) as other:
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        await cluster.stop(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.STOPPED)
        await other.delete(PROJECT.environment)
        assert (await cluster.observe(PROJECT.environment)).state is Observed.ABSENT
        kept = (cluster._observed, cluster._observer._was_ready, cluster._supervisor._watched)
        assert kept == ({}, {}, {})


async def test_a_failed_environment_is_stopped_and_deleted_with_what_it_left(
    tmp_path: Path,
) -> None:
    async with open_local(tmp_path, "--shell", "marked") as cluster:
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        shell = int((folder_of(tmp_path, PROJECT).volume / "shell.pid").read_text())
        os.kill(pid_of(tmp_path, PROJECT), signal.SIGKILL)
        await reaches(cluster, PROJECT, Observed.FAILED)
        await cluster.delete(PROJECT.environment)
        assert (await cluster.observe(PROJECT.environment)).state is Observed.ABSENT
        await until(lambda: is_gone(shell), "the shell is gone")


async def test_a_deletion_takes_folders_that_their_tools_made_read_only(tmp_path: Path) -> None:
    async with open_local(tmp_path) as cluster:
        await cluster.prepare(PROJECT.environment)
        cache = folder_of(tmp_path, PROJECT).volume / "cache" / "module"
        cache.mkdir(parents=True)
        (cache / "file").touch()
        outside = tmp_path / "outside"
        outside.mkdir(mode=0o555)
        (cache / "link").symlink_to(outside)
        cache.chmod(0o500)
        cache.parent.chmod(0)
        await cluster.delete(PROJECT.environment)
        assert list((tmp_path / ".removed").iterdir()) == []
        (lock,) = (tmp_path / ".locks").iterdir()  # which remembers the newest claim
        assert lock.stat().st_size < 200
        assert outside.stat().st_mode & 0o777 == 0o555


async def test_a_deletion_that_was_cut_short_is_finished_by_the_inventory(tmp_path: Path) -> None:
    async with open_local(tmp_path) as cluster:
        await cluster.prepare(PROJECT.environment)
        folder_of(tmp_path, PROJECT).remove()
        assert len(list((tmp_path / ".removed").iterdir())) == 1
        assert list(await cluster.inventory()) == []
        assert list((tmp_path / ".removed").iterdir()) == []
