"""Local environments: started once, found again, and seen to end."""

import asyncio
import errno
import json
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.cluster.environments import (
    PATIENCE,
    doing,
    folder_of,
    is_gone,
    open_local,
    pid_of,
    reaches,
    record_of,
    until,
)
from tests.contract.store_adapters import make_project

from greylag.cluster.local import cluster as local_cluster
from greylag.cluster.local import folders
from greylag.cluster.local.cluster import LocalCluster
from greylag.cluster.local.environment import LocalEnvironment, Spawner
from greylag.cluster.local.folders import EnvironmentRecord, Folder, Phase
from greylag.cluster.local.logfile import ROTATE_ABOVE
from greylag.cluster.local.processes import ProcessId, marked
from greylag.cluster.local.sandbox import Sandbox
from greylag.cluster.local.supervision import Observer, _not_ready
from greylag.domain.errors import ClusterError, ClusterUnavailableError
from greylag.domain.lifecycle import Observation, Observed
from greylag.domain.names import EnvironmentNames
from greylag.domain.project import Fence, Project

PROJECT = make_project()


def facts_of(root: Path, project: Project = PROJECT) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder_of(root, project).volume / "facts.json").read_text())
    return facts


async def fails(cluster: LocalCluster) -> Observation:
    await cluster.start(PROJECT.environment)
    return await reaches(cluster, PROJECT, Observed.FAILED)


async def test_a_second_cluster_finds_a_running_environment_and_starts_no_other(
    tmp_path: Path,
) -> None:
    async with open_local(tmp_path) as first:
        await first.start(PROJECT.environment)
        seen = await reaches(first, PROJECT, Observed.READY)
        address = await first.reach(PROJECT.environment)
        pid = pid_of(tmp_path, PROJECT)
        await first.close()
        async with open_local(tmp_path) as second:
            assert await second.observe(PROJECT.environment) == seen
            await second.start(PROJECT.environment)
            assert await second.reach(PROJECT.environment) == address
            assert pid_of(tmp_path, PROJECT) == pid
            assert list(await second.inventory()) == [PROJECT.ref]


async def test_two_clusters_that_start_at_once_start_one_process(tmp_path: Path) -> None:
    async with open_local(tmp_path) as first, open_local(tmp_path) as second:
        starts = [
            cluster.start(PROJECT.environment) for cluster in (first, second) for _ in range(5)
        ]
        assert set(await doing(*starts)) == {None}
        await reaches(first, PROJECT, Observed.READY)
        await reaches(second, PROJECT, Observed.READY)
        assert {found.pid for found in marked(record_of(tmp_path, PROJECT).mark)} == {
            pid_of(tmp_path, PROJECT)
        }


async def test_another_process_with_the_same_pid_is_not_taken_for_ours(tmp_path: Path) -> None:
    async with open_local(tmp_path) as cluster:
        await cluster.prepare(PROJECT.environment)
        stranger = ProcessId(os.getpid(), "another-boot:1")
        record = replace(record_of(tmp_path, PROJECT), phase=Phase.RUNNING, process=stranger)
        folder_of(tmp_path, PROJECT).write(record)
        await reaches(cluster, PROJECT, Observed.FAILED)
        await cluster.stop(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.STOPPED)
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        assert pid_of(tmp_path, PROJECT) != os.getpid()


async def test_an_environment_is_a_session_of_its_own_with_limits_and_no_foreign_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYLAG_TOKEN", "the operator's")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    async with open_local(tmp_path, model={"GREYLAG_MODEL": "m"}) as cluster:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most - 1, hard))  # the launcher's is another
        try:
            await cluster.start(PROJECT.environment)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await reaches(cluster, PROJECT, Observed.READY)
        facts, record = facts_of(tmp_path), record_of(tmp_path, PROJECT)
    assert facts["session"] == facts["pid"]
    assert facts["core"] == [0, 0]
    assert facts["files"] == [most, most]
    assert facts["stdin"] == "/dev/null"
    assert "GREYLAG_TOKEN" not in facts["environ"]
    assert facts["environ"]["GREYLAG_MODEL"] == "m"
    assert facts["environ"]["GREYLAG_AGENT_TOKEN"] == record.token
    assert facts["environ"]["GREYLAG_ENVIRONMENT"] == record.mark


async def test_what_is_kept_is_for_our_account_only(tmp_path: Path) -> None:
    async with open_local(tmp_path / "root") as cluster:
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        folder = folder_of(tmp_path / "root", PROJECT)
        modes = {
            path: path.stat().st_mode & 0o777
            for path in (
                folder.root,
                folder.path,
                folder.volume,
                folder.log,
                folder.path / "environment.json",
            )
        }
    assert {mode & 0o077 for mode in modes.values()} == {0}


async def test_a_process_that_dies_at_start_is_failed_with_its_exit_code_and_last_words(
    tmp_path: Path,
) -> None:
    others = set(psutil.Process().children())
    async with open_local(tmp_path, "--die", "3") as cluster:
        seen = await fails(cluster)
        assert seen.error is not None
        assert seen.error.code == "environment_failed"
        assert "exit code 3" in seen.error.message
        assert seen.error.message.endswith("stand-in: starting | stand-in: cannot [31m go on")
        assert not seen.terminal
        await until(lambda: not set(psutil.Process().children()) - others, "it is reaped")


async def test_bad_settings_and_a_missing_program_are_terminal(tmp_path: Path) -> None:
    async with open_local(tmp_path / "a", "--die", "2") as cluster:
        assert (await fails(cluster)).terminal
    async with open_local(tmp_path / "b", agentd_command=("/no/such/agentd",)) as cluster:
        seen = await fails(cluster)
        assert seen.terminal
        assert seen.error is not None
        assert "could not be started" in seen.error.message


async def test_a_failed_environment_is_started_anew(tmp_path: Path) -> None:
    async with open_local(tmp_path, "--die", "3") as cluster:
        await fails(cluster)
    async with open_local(tmp_path) as cluster:
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)


async def test_an_agent_that_is_not_ready_is_starting_and_its_words_are_told(
    tmp_path: Path,
) -> None:
    async with open_local(tmp_path, "--never-ready") as cluster:
        await cluster.start(PROJECT.environment)
        seen = await cluster.observe(PROJECT.environment)
        while len(seen.steps) < 2:
            assert seen.state is Observed.STARTING
            await cluster.changed(PROJECT.environment, timeout=1)
            seen = await cluster.observe(PROJECT.environment)
    assert seen.state is Observed.STARTING
    assert seen.error is not None
    assert seen.error.message == "The agent is  still starting."


async def test_an_agent_s_words_are_told_whole_though_they_come_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps({"message": "It waits for its extensions."}).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:10])
        for _ in range(100):  # it is read meanwhile
            await asyncio.sleep(0)
        writer.write(body[10:])
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setattr(LocalEnvironment, "_port", lambda _: port)
        async with open_local(tmp_path, "--never-listen") as cluster:
            await cluster.start(PROJECT.environment)
            seen = await cluster.observe(PROJECT.environment)
    assert seen.error is not None
    assert seen.error.message == "It waits for its extensions."


async def test_a_process_that_stands_still_is_never_taken_for_gone(tmp_path: Path) -> None:
    async with open_local(tmp_path) as cluster:
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        os.kill(pid_of(tmp_path, PROJECT), signal.SIGSTOP)
        seen = await reaches(cluster, PROJECT, Observed.UNKNOWN)
        assert seen.error is not None
        assert seen.error.code == "agent_unreachable"
        cluster._observer._was_ready.clear()  # as of a worker that has just started
        assert (await cluster.observe(PROJECT.environment)).unheard
        os.kill(pid_of(tmp_path, PROJECT), signal.SIGCONT)
        await reaches(cluster, PROJECT, Observed.READY)


async def test_the_log_of_an_environment_that_runs_for_long_is_put_aside_by_a_look(
    tmp_path: Path,
) -> None:
    async with open_local(tmp_path) as cluster:
        await cluster.start(PROJECT.environment)
        seen = await reaches(cluster, PROJECT, Observed.READY)
        log = folder_of(tmp_path, PROJECT).log
        os.truncate(log, ROTATE_ABOVE + 1)
        assert await cluster.observe(PROJECT.environment) == seen
        assert log.stat().st_size <= ROTATE_ABOVE
        assert log.with_name("agentd.log.1").stat().st_size > ROTATE_ABOVE
        log.unlink()
        log.symlink_to("nowhere")  # what cannot be put aside is no reason to fail
        assert await cluster.observe(PROJECT.environment) == seen


async def test_an_end_that_nobody_asked_for_is_told_and_leaves_no_shell(tmp_path: Path) -> None:
    async with open_local(tmp_path, "--shell", "marked") as cluster:
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        shell = int((folder_of(tmp_path, PROJECT).volume / "shell.pid").read_text())
        changes = cluster.changes()
        os.kill(pid_of(tmp_path, PROJECT), signal.SIGKILL)
        assert await anext(changes) == PROJECT.ref
        seen = await reaches(cluster, PROJECT, Observed.FAILED)
        assert seen.error is not None
        assert "killed by signal 9" in seen.error.message
        await until(lambda: is_gone(shell), "the shell is gone")


async def test_an_end_while_nobody_looked_is_told_to_the_next(tmp_path: Path) -> None:
    async with open_local(tmp_path) as first:
        await first.start(PROJECT.environment)
        await reaches(first, PROJECT, Observed.READY)
        await first.close()
        os.kill(pid_of(tmp_path, PROJECT), signal.SIGKILL)
        async with open_local(tmp_path) as second:
            assert await anext(second.changes()) == PROJECT.ref


async def test_an_end_that_cannot_be_noted_is_told_and_noted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Folder.write
    refused: list[EnvironmentRecord] = []

    def full(folder: Folder, record: EnvironmentRecord) -> None:
        if record.exit_code is not None and len(refused) < 2:
            refused.append(record)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, record)

    monkeypatch.setattr(Folder, "write", full)
    async with open_local(tmp_path) as cluster:
        changes = cluster.changes()
        told = asyncio.ensure_future(anext(changes))
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        os.kill(pid_of(tmp_path, PROJECT), signal.SIGKILL)
        assert await asyncio.wait_for(told, PATIENCE) == PROJECT.ref
        await until(lambda: record_of(tmp_path, PROJECT).exit_code == -9, "the end is not noted")


async def test_a_step_for_which_the_disk_has_no_room_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_folder: Folder, _record: EnvironmentRecord) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/x")

    async with open_local(tmp_path) as cluster:
        with monkeypatch.context() as patched:
            patched.setattr(Folder, "write", full)
            with pytest.raises(ClusterError) as refused:
                await cluster.prepare(PROJECT.environment)
        assert str(refused.value) == (
            "This machine refused a step: No space left on device: /data/x"
        )
        assert "has room again" in refused.value.info.hint
        assert not refused.value.terminal
        await cluster.prepare(PROJECT.environment)


async def test_names_that_are_no_labels_never_become_folders(tmp_path: Path) -> None:
    names = EnvironmentNames("..", "../../etc", "s", "i")
    async with open_local(tmp_path) as cluster:
        with pytest.raises(ClusterError) as refused:
            await cluster.prepare(replace(PROJECT, names=names).environment)
    assert refused.value.terminal


PLAIN = Spawner(command=("agentd",), extra={"A": "1"}, sandbox=Sandbox())
BOXED = replace(PLAIN, sandbox=Sandbox("/usr/bin/bwrap"))


@pytest.mark.parametrize(
    ("started", "now", "lacks"),
    [
        (PLAIN, replace(PLAIN, extra={"A": "2"}), True),
        (PLAIN, BOXED, True),
        (BOXED, replace(BOXED, sandbox=replace(BOXED.sandbox, network="strict")), True),
        (BOXED, replace(BOXED, sandbox=replace(BOXED.sandbox, pasta="/usr/bin/pasta")), True),
        (BOXED, replace(BOXED, sandbox=replace(BOXED.sandbox, network="shared")), False),
        (PLAIN, replace(PLAIN, sandbox=Sandbox(memory=2**30)), True),
        (PLAIN, replace(PLAIN, authorities="PEM"), True),
        (BOXED, replace(BOXED, sandbox=replace(BOXED.sandbox, hidden=(Path("/here"),))), False),
        (BOXED, replace(BOXED, sandbox=replace(BOXED.sandbox, bwrap="/bin/bwrap")), False),
    ],
)
def test_what_only_a_new_start_gives_is_told_from_the_rest(
    started: Spawner, now: Spawner, *, lacks: bool
) -> None:
    assert (started.settings != now.settings) == lacks


async def test_an_environment_that_runs_in_another_sandbox_is_outdated_until_its_next_start(
    tmp_path: Path,
) -> None:
    async with open_local(tmp_path) as first:
        await first.start(PROJECT.environment)
        assert (await reaches(first, PROJECT, Observed.READY)).outdated is None
        await first.close()
        async with open_local(tmp_path, memory=2**30) as second:
            await second.start(PROJECT.environment)  # it runs
            assert (await second.observe(PROJECT.environment)).outdated is not None
            await second.stop(PROJECT.environment)
            await reaches(second, PROJECT, Observed.STOPPED)
            await second.start(PROJECT.environment)
            assert (await reaches(second, PROJECT, Observed.READY)).outdated is None


DAMAGES: dict[str, Any] = {
    "no mark": {"mark": None},
    "the wrong phase": {"phase": "asleep"},
    "no phase": {"phase": None},
    "a process that is a pid alone": {"process": 7},
    "a process with a pid that is none": {"process": {"pid": "7", "birth": "b"}},
    "a project without its user": {"ref": {"project_id": "p"}},
    "a user that is no text": {"ref": {"user_id": 5, "project_id": "p"}},
    "a time that is none": {"stopping_since": "now"},
}


@pytest.mark.parametrize(
    "damage",
    [
        *("{", "null", "5", "[]", '"phase"', "{}"),
        pytest.param("[" * 100_000, id="nested too deep"),
        pytest.param(None, id="a link to itself"),
        *(pytest.param(changed, id=what) for what, changed in DAMAGES.items()),
    ],
)
async def test_a_record_that_cannot_be_read_is_unknown_never_absent_and_hides_no_other(
    tmp_path: Path, damage: str | dict[str, Any] | None
) -> None:
    other = make_project("other")
    async with open_local(tmp_path) as cluster:
        await cluster.prepare(PROJECT.environment)
        await cluster.prepare(other.environment)
        path = folder_of(tmp_path, PROJECT).path / "environment.json"
        if isinstance(damage, dict):
            damage = json.dumps(json.loads(path.read_text()) | damage)
        if damage is None:
            path.unlink()
            path.symlink_to(path)
        else:
            path.write_text(damage)
        assert (await cluster.observe(PROJECT.environment)).state is Observed.UNKNOWN
        assert list(await cluster.inventory()) == [other.ref]
        assert [one.ref for one in await cluster.found()] == [other.ref]
        with pytest.raises(ClusterError):
            await cluster.start(PROJECT.environment)
        path.unlink()


def test_who_finds_an_environment_held_by_another_worker_gives_up_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_LOCK_SECONDS", 0.0)
    folder = folder_of(tmp_path, PROJECT)
    with (
        folder.lock(),
        pytest.raises(ClusterUnavailableError, match="Another worker"),
        folder.lock(),
    ):
        pytest.fail("both hold it")
    with folder.lock():
        assert folder.read() is None


@pytest.mark.parametrize("told", ["null", '{"record_id": 5, "number": "x"}', "[" * 4000])
async def test_a_claim_that_a_damaged_lock_tells_of_is_none(tmp_path: Path, told: str) -> None:
    async with open_local(tmp_path) as cluster:
        await cluster.prepare(PROJECT.environment)
        names = PROJECT.names
        (tmp_path / ".locks" / f"{names.namespace}.{names.deployment}").write_text(told)
        [found] = await cluster.found()
        assert (found.record_id, found.claim) == (None, 0)
        fenced = replace(PROJECT.environment, fence=Fence(PROJECT.id, 3))
        await cluster.prepare(fenced)
        [found] = await cluster.found()
        assert (found.record_id, found.claim) == (PROJECT.id, 3)


async def test_a_port_that_a_tool_has_forged_does_no_harm(tmp_path: Path) -> None:
    async with open_local(tmp_path) as cluster:
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        listening = folder_of(tmp_path, PROJECT).volume / "state/listening.json"
        deep = "[" * 4096
        for forged in ("[]", '{"port": true}', '{"port": 70000}', '{"port": "1"}', "{", "", deep):
            listening.write_text(forged)
            assert (await cluster.observe(PROJECT.environment)).state is Observed.STARTING
        listening.unlink()
        os.mkfifo(listening)
        assert (await cluster.observe(PROJECT.environment)).state is Observed.STARTING


async def test_a_port_that_is_nested_too_deep_to_be_read_keeps_no_stop_off(tmp_path: Path) -> None:
    async with open_local(tmp_path) as cluster:
        await cluster.start(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.READY)
        listening = folder_of(tmp_path, PROJECT).volume / "state/listening.json"
        listening.write_text("[" * 4096)
        await cluster.stop(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.STOPPED)


def test_an_answer_that_is_nested_too_deep_to_be_read_is_told_by_its_status() -> None:
    seen = _not_ready(503, b"[" * 8192)
    assert seen.error is not None
    assert seen.error.message == "The agent's health check answered 503."


async def test_a_link_that_a_tool_has_laid_leads_to_no_other_environment(tmp_path: Path) -> None:
    other = make_project("other")
    async with open_local(tmp_path) as cluster:
        for each in (PROJECT, other):
            await cluster.start(each.environment)
            await reaches(cluster, each, Observed.READY)
        state = folder_of(tmp_path, PROJECT).volume / "state"
        state.rename(state.with_name("moved"))
        state.symlink_to(folder_of(tmp_path, other).volume / "state")
        assert (await cluster.observe(PROJECT.environment)).state is Observed.STARTING
        await cluster.stop(PROJECT.environment)
        await reaches(cluster, PROJECT, Observed.STOPPED)
        await cluster.start(PROJECT.environment)
        assert (await cluster.observe(other.environment)).state is Observed.READY


async def test_a_start_reads_the_record_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, read = 0, Folder.read

    def counted(folder: Folder) -> EnvironmentRecord | None:
        nonlocal reads
        reads += 1
        return read(folder)

    async with open_local(tmp_path, "--never-listen") as cluster:
        with monkeypatch.context() as patched:
            patched.setattr(Folder, "read", counted)
            await cluster.start(PROJECT.environment)
            assert reads == 1
            await cluster.start(PROJECT.environment)
            assert reads == 2


async def test_who_waits_for_a_change_does_not_look_again_at_what_was_just_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, observe = 0, Observer.observe

    async def counted(*words: Any) -> Observation:
        nonlocal looks
        looks += 1
        return await observe(*words)

    monkeypatch.setattr(Observer, "observe", counted)
    monkeypatch.setattr(local_cluster, "_RESTING_POLL_SECONDS", PATIENCE)
    async with open_local(tmp_path) as cluster:
        await cluster.prepare(PROJECT.environment)
        await cluster.observe(PROJECT.environment)
        waiting = asyncio.create_task(cluster.changed(PROJECT.environment, timeout=2 * PATIENCE))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        assert looks == 1
        waiting.cancel()
        await asyncio.wait({waiting})
