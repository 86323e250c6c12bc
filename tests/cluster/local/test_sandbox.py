"""The sandbox: what an environment in bubblewrap can and cannot do."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.environments import (
    folder_of,
    is_gone,
    open_local,
    pid_of,
    reaches,
    record_of,
    standin,
    until,
)
from tests.contract.store_adapters import make_project

from greylag.cluster.local.processes import children, identify, marked
from greylag.cluster.local.sandbox import Sandbox, choose_sandbox
from greylag.domain.errors import ConfigError
from greylag.domain.lifecycle import Observed

HERS, HIS = make_project("demo", "ada"), make_project("demo", "bob")

needs_bubblewrap = pytest.mark.skipif(
    choose_sandbox("auto", hidden=(), needed=()).bwrap is None,
    reason="bubblewrap is not installed or not allowed here: the sandbox is NOT tested",
)


def test_without_a_sandbox_the_command_is_as_it_was(tmp_path: Path) -> None:
    assert Sandbox().command(["agentd", "x"], tmp_path) == ["agentd", "x"]
    assert "not isolated from each other" in Sandbox().notice


def test_a_demanded_sandbox_that_is_missing_is_refused_and_auto_goes_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_sandbox("auto", hidden=(), needed=()).bwrap is None
    with pytest.raises(ConfigError, match="bwrap is not installed"):
        choose_sandbox("bubblewrap", hidden=(), needed=())


def test_a_sandbox_that_the_system_forbids_is_refused_with_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = tmp_path / "bwrap"
    refusing.write_text("#!/bin/sh\necho no user namespaces here >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert choose_sandbox("auto", hidden=(), needed=()).bwrap is None
    with pytest.raises(ConfigError, match="no user namespaces here"):
        choose_sandbox("bubblewrap", hidden=(), needed=())


@needs_bubblewrap
async def test_a_sandboxed_environment_sees_no_other_and_writes_only_its_volume(
    tmp_path: Path,
) -> None:
    root, data = tmp_path / "environments", tmp_path / "data"
    data.mkdir()
    secrets = [
        folder_of(root, HIS).volume / "secret",
        folder_of(root, HERS).path / "environment.json",
        data / "greylag.db",
        Path.home() / "secret-of-the-home-folder",
    ]
    touchable = folder_of(root, HERS).volume / "mine"
    outside = Path("/etc/greylag-was-here")
    tries = [str(path) for path in [*secrets, touchable, outside]]
    command = standin(*(word for path in tries for word in ("--attempt", path)))
    settings = {"agentd_command": command, "sandbox": "bubblewrap", "hidden": [data]}
    async with open_local(root, **settings) as cluster:
        await cluster.prepare(HIS.environment)
        for path in (secrets[0], secrets[2]):
            path.write_text("secret")
        assert "bubblewrap" in (cluster.notice or "")
        await cluster.start(HERS.environment)
        await reaches(cluster, HERS, Observed.READY)
        facts: dict[str, Any] = json.loads(
            (folder_of(root, HERS).volume / "facts.json").read_text()
        )
        tried = {Path(path): how for path, how in facts["tried"].items()}
    assert facts["pid"] == 1
    assert {tried[path] for path in secrets} <= {"made", "FileNotFoundError"}
    assert not secrets[3].exists(), "what it made was in a folder of its own"
    assert tried[touchable] == "made"
    assert touchable.exists()
    assert tried[outside] == "OSError", "the system is read-only"


@needs_bubblewrap
async def test_a_sandboxed_agent_is_told_of_its_stop(tmp_path: Path) -> None:
    async with open_local(tmp_path, "--shell", "bare", sandbox="bubblewrap", grace=60) as cluster:
        await cluster.start(HERS.environment)
        await reaches(cluster, HERS, Observed.READY)
        mark = record_of(tmp_path, HERS).mark
        await cluster.stop(HERS.environment)
        await reaches(cluster, HERS, Observed.STOPPED)
        assert marked(mark) == set()
        async with cluster.logs(HERS.environment, follow=False, tail=1) as lines:
            assert [line async for line in lines] == [b"stand-in: leaving\n"]


@needs_bubblewrap
@pytest.mark.parametrize("victim", ["bubblewrap", "agent"])
async def test_a_killed_sandbox_leaves_nothing_behind(tmp_path: Path, victim: str) -> None:
    async with open_local(tmp_path, "--shell", "bare", sandbox="bubblewrap") as cluster:
        await cluster.start(HERS.environment)
        await reaches(cluster, HERS, Observed.READY)
        box = identify(pid_of(tmp_path, HERS))
        assert box is not None
        inside = children(box, recursive=True)
        assert len(inside) >= 2
        (agent,) = children(box, recursive=False)
        os.kill(box.pid if victim == "bubblewrap" else agent.pid, signal.SIGKILL)
        await reaches(cluster, HERS, Observed.FAILED)
        await until(lambda: all(is_gone(process.pid) for process in inside), "all are gone")


@needs_bubblewrap
def test_greylag_itself_stays_visible_when_it_lies_in_the_hidden_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repository = Path(__file__).parents[3]
    monkeypatch.setenv("HOME", str(repository))
    monkeypatch.chdir(repository)
    sandbox = choose_sandbox("bubblewrap", hidden=(), needed=())

    def run(code: str) -> int:
        command = sandbox.command([sys.executable, "-c", code], tmp_path)
        return subprocess.run(command, check=False, capture_output=True).returncode  # noqa: S603 - ours

    assert run("import greylag.cluster.local") == 0
    assert run(f"open({str(repository / 'pyproject.toml')!r})") == 1


def test_what_lies_in_a_needed_folder_is_not_mounted_twice(tmp_path: Path) -> None:
    program = tmp_path / "venv" / "bin" / "program"
    program.parent.mkdir(parents=True)
    program.touch()
    box = Sandbox("bwrap", hidden=(tmp_path,), needed=(program, tmp_path / "venv"))
    command = box.command(["true"], tmp_path)
    assert str(tmp_path / "venv") in command
    assert str(program) not in command
