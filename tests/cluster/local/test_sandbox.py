"""The sandbox: what an environment in bubblewrap can and cannot do."""

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
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

from greylag.cluster.local import sandbox
from greylag.cluster.local.processes import children, identify, marked
from greylag.cluster.local.sandbox import Sandbox, choose_sandbox, start_folder
from greylag.domain.errors import ConfigError
from greylag.domain.lifecycle import Observed

AGENTD = (sys.executable, "-I", "-m", "greylag.agentd")
ATTEMPTS = """
import errno, json, os, socket
def attempt(path):
    try:
        return open(path).read()
    except FileNotFoundError:
        pass
    except OSError as error:
        return errno.errorcode[error.errno]
    try:
        open(path, "x")
    except OSError as error:
        return errno.errorcode[error.errno]
    return "made"
tried = {{path: attempt(path) for path in {paths!r}}}
interfaces = sorted(name for _, name in socket.if_nameindex())
print(json.dumps({{"pid": os.getpid(), "tried": tried, "interfaces": interfaces}}))
"""
# To be nobody, with a Python that root may have at home, and the device that pasta needs: it is
# open to all on a desktop, and often to root alone in a container.
AS_NOBODY = """
set -e
mknod "$0/tun" c 10 200
chmod 666 "$0/tun"
mount --bind "$0/tun" /dev/net/tun
mkdir "$0/python"
mount --bind "$1" "$0/python"
case "$1" in "$HOME"/*) mount -t tmpfs -o mode=755 none "$HOME"; mkdir -p "$1"; esac
mount --bind "$0/python" "$1"
shift
cd /
HOME=/nonexistent exec runuser -u nobody -- "$@"
"""
# Run by whoever starts environments. Prints what each address answers from the inside.
IN_PASTA = """
import json, os, socket, subprocess, sys, tempfile
from pathlib import Path
from greylag.cluster.local import sandbox
box = sandbox.choose_sandbox("auto", hidden=(), needed=())
if box.pasta is None:
    sys.exit("pasta does not work: " + str(sandbox._probe(sandbox.Sandbox(
        box.bwrap, pasta=sandbox.shutil.which("pasta")))))
way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
way.connect(("198.51.100.1", 9))
own = way.getsockname()[0]
server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
port = server.getsockname()[1]
socket.create_connection(("127.0.0.1", port)).close()
INSIDE = '''
import json, os, socket, sys
own, port, said = sys.argv[1], int(sys.argv[2]), {}
for host in ("127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::ffff:127.0.0.1", own, "198.51.100.1"):
    try:
        said[host] = socket.create_connection((host, port), 0.5) and "open"
    except OSError as error:
        said[host] = str(error)
mine = socket.create_server(("", 0))
said["user"], said["port"] = os.getuid(), mine.getsockname()[1]
said["servers"] = open("/etc/resolv.conf").read()
said["interfaces"] = len(socket.if_nameindex())
print(json.dumps(said), flush=True)
sys.stdin.read()
'''
with tempfile.TemporaryDirectory() as folder:
    filter = Path(folder, "seccomp")
    box.write(filter)
    command = box.command([sys.executable, "-c", INSIDE, own, str(port)], [Path(folder)], filter)
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said = json.loads(run.stdout.readline())
    said["from outside"] = socket.socket().connect_ex(("127.0.0.1", said["port"]))
    run.communicate()
    said |= {"was": os.getuid(), "own": said.pop(own)}
    print(json.dumps(said))
"""
HERS, HIS = make_project("demo", "ada"), make_project("demo", "bob")

needs_bubblewrap = pytest.mark.skipif(
    choose_sandbox("auto", hidden=(), needed=()).bwrap is None,
    reason="bubblewrap is not installed or not allowed here: the sandbox is NOT tested",
)


def test_without_a_sandbox_the_command_is_as_it_was(tmp_path: Path) -> None:
    assert Sandbox().command(["agentd", "x"], [tmp_path], tmp_path) == ["agentd", "x"]
    assert Sandbox().execd(tmp_path, tmp_path)[1:] == ["-I", "-m", "greylag.execd"]
    assert Sandbox(memory=77).execd(tmp_path, tmp_path)[-2:] == ["--memory", "77"]
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


def test_a_machine_that_takes_its_time_is_not_left_without_a_sandbox(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = tmp_path / "bwrap"
    slow.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    def run(
        command: list[str], timeout: float | None = None, **_: object
    ) -> subprocess.CompletedProcess[bytes]:
        if timeout is not None and timeout < 20:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr(subprocess, "run", run)
    assert choose_sandbox("auto", hidden=(), needed=()).bwrap == str(slow)


def test_a_mount_that_goes_meanwhile_leaves_nobody_without_a_sandbox(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    once = tmp_path / "bwrap"
    told = tmp_path / "told"
    once.write_text(f"#!/bin/sh\n[ -e {told} ] || {{ : >{told}; exit 1; }}\n")
    once.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    told.touch()  # its help is asked for once
    choose_sandbox("auto", hidden=(), needed=())
    told.unlink()
    assert choose_sandbox("auto", hidden=(), needed=()).bwrap == str(once)
    assert told.exists()


def test_without_a_place_for_temporary_files_nothing_is_said_of_the_sandbox(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bwrap").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    with pytest.raises(ConfigError, match="temporary") as refused:
        choose_sandbox("auto", hidden=(), needed=())
    assert "TMPDIR" in refused.value.info.hint


def test_a_strict_network_without_a_sandbox_is_refused() -> None:
    with pytest.raises(ConfigError, match="GREYLAG_SANDBOX_NETWORK=strict needs bubblewrap"):
        choose_sandbox("none", hidden=(), needed=(), network="strict")


def test_notices_tell_what_holds() -> None:
    assert "install pasta" in Sandbox("bwrap").notice
    assert "no network" in Sandbox("bwrap", network="strict").notice
    assert "do not reach what listens" in Sandbox("bwrap", pasta="pasta").notice


def test_pasta_stands_around_bubblewrap_unless_there_is_no_network_to_share(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    known = ("127.0.0.53", "::1", "192.0.2.7", "fd00::7")
    told.write_text("search lan\n" + "".join(f"nameserver {one}\n" for one in known))
    monkeypatch.setattr(sandbox, "_NAME_SERVERS", told)
    monkeypatch.setattr(sandbox, "_is_routed", lambda: True)
    box, kept = Sandbox("bwrap", pasta="pasta"), tmp_path / "seccomp"
    box.write(kept)
    for_box = (tmp_path / "resolv.conf").read_text()
    servers = [line.split()[1] for line in for_box.splitlines() if "nameserver" in line]
    assert servers == [*["169.254.1.1"] * 3, "fd00::7"]
    argv = box.execd(tmp_path, kept)
    options = " ".join(argv[: argv.index("--")])
    assert options.startswith("pasta --config-net --no-map-gw --dns-forward 169.254.1.1 ")
    assert options.endswith(" -t none -u none -T none -U none")
    assert str(tmp_path / "resolv.conf") in argv
    assert "--unshare-net" not in argv
    monkeypatch.setattr(sandbox, "_is_routed", lambda: False)
    alone = box.execd(tmp_path, kept)
    assert "--unshare-net" in alone
    assert "pasta" not in alone


@pytest.mark.parametrize(("code", "user"), [(0, 1000), (1, 1000), (0, 0)])
def test_pasta_is_taken_where_it_works_and_not_by_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, user: int
) -> None:
    # Bubblewrap here runs nothing, and so works; whether pasta does is its exit code.
    for name, ends in (("bwrap", 0), ("pasta", code)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {ends}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(os, "getuid", lambda: user)
    monkeypatch.setattr(sandbox, "_is_routed", lambda: True)
    taken = str(tmp_path / "pasta") if code == 0 and user else None
    assert choose_sandbox("auto", hidden=(), needed=()).pasta == taken
    for network in ("shared", "strict"):
        assert choose_sandbox("auto", hidden=(), needed=(), network=network).pasta is None
    # Where it cannot be tried yet, environments have no network rather than the machine's.
    monkeypatch.setattr(sandbox, "_is_routed", lambda: False)
    offline = choose_sandbox("auto", hidden=(), needed=())
    assert (offline.pasta is not None) is bool(user)


def test_with_pasta_the_loopback_is_out_of_reach_and_other_machines_are_not(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-I", "-c", IN_PASTA]
    if os.getuid() == 0:
        script = ["sh", "-c", AS_NOBODY, str(tmp_path), sys.base_prefix]
        command = ["unshare", "--mount", *script, *command]
    told = subprocess.run(command, check=False, capture_output=True, timeout=60)  # noqa: S603 - ours
    if shutil.which("pasta") is None or b"pasta does not work" in told.stderr:
        pytest.skip(f"NOT TESTED. {told.stderr.decode()[-500:]}")
    assert told.returncode == 0, told.stderr
    said: dict[str, Any] = json.loads(told.stdout)
    assert said["user"] == said["was"]
    assert said["interfaces"] > 1
    assert "nameserver 127." not in said["servers"]
    loopback = ("127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::ffff:127.0.0.1", "own")  # noqa: S104
    assert {host: "refused" in said[host] for host in loopback} == dict.fromkeys(loopback, True)
    assert "unreachable" not in said["198.51.100.1"]
    assert said["from outside"] == errno.ECONNREFUSED


@needs_bubblewrap
@pytest.mark.parametrize("network", ["auto", "strict"])
async def test_a_sandboxed_environment_sees_no_other_and_writes_only_its_volume(
    tmp_path: Path, network: str
) -> None:
    root, data = tmp_path / "environments", tmp_path / "data"
    data.mkdir()
    hers = folder_of(root, HERS)
    secrets = [
        folder_of(root, HIS).volume / "secret",
        hers.path / "environment.json",
        hers.log,
        hers.volume / "state" / "listening.json",
        data / "greylag.db",
        Path.home() / "secret-of-the-home-folder",
        Path.cwd() / "pyproject.toml",
    ]
    touchable = hers.volume / "workspace" / "mine"
    outside = Path("/etc/greylag-was-here")
    settings = {"sandbox": "bubblewrap", "hidden": [data], "network": network}
    async with open_local(root, **settings) as cluster:
        await cluster.prepare(HIS.environment)
        for path in (secrets[0], secrets[4]):
            path.write_text("secret")
        assert "bubblewrap" in (cluster.notice or "")
        await cluster.start(HERS.environment)
        await reaches(cluster, HERS, Observed.READY)
        facts: dict[str, Any] = json.loads((hers.volume / "facts.json").read_text())
        for name in ("workspace", "home", "tmp"):
            (hers.volume / name).mkdir()
        execd = json.loads(facts["environ"]["GREYLAG_EXECD"])
        box = execd[: -execd[::-1].index("--")]
        code = ATTEMPTS.format(paths=[str(path) for path in (*secrets, touchable, outside)])
        attempts = [*box, sys.executable, "-c", code]
        told = await asyncio.to_thread(subprocess.run, attempts, capture_output=True, timeout=30)
        assert told.stderr == b""
        inside = json.loads(told.stdout)
    tried = {Path(path): how for path, how in inside["tried"].items()}
    assert inside["pid"] == 1
    assert {tried[path] for path in secrets} <= {"EROFS", "ENOENT"}
    assert not secrets[5].exists()
    assert tried[touchable] == "made"
    assert touchable.exists()
    assert tried[outside] == "EROFS", "the system is read-only"
    assert inside["interfaces"] == (["lo"] if network == "strict" else inside["interfaces"])


@needs_bubblewrap
async def test_the_agent_s_side_of_a_real_environment_is_boxed_and_ends_with_it(
    tmp_path: Path,
) -> None:
    settings = {"agentd_command": AGENTD, "goose": "scripted", "sandbox": "bubblewrap"}
    async with open_local(tmp_path, **settings, grace=60) as cluster:
        await cluster.start(HERS.environment)
        await reaches(cluster, HERS, Observed.READY)
        record = record_of(tmp_path, HERS)
        assert record.process is not None
        (bwrap,) = children(record.process, recursive=False)
        inside = children(bwrap, recursive=True)
        assert len(inside) >= 2, "execd and the agent"
        await cluster.stop(HERS.environment)
        await reaches(cluster, HERS, Observed.STOPPED)
        assert marked(record.mark) == set()
        assert all(is_gone(process.pid) for process in (bwrap, *inside))
        async with cluster.logs(HERS.environment, follow=False, tail=1) as lines:
            (last,) = [line async for line in lines]
        assert json.loads(last)["event"] == "stopped"


@needs_bubblewrap
@pytest.mark.parametrize("victim", ["bubblewrap", "execd", "agentd"])
async def test_a_killed_side_leaves_nothing_behind(tmp_path: Path, victim: str) -> None:
    settings = {"agentd_command": AGENTD, "goose": "scripted", "sandbox": "bubblewrap"}
    async with open_local(tmp_path, **settings) as cluster:
        await cluster.start(HERS.environment)
        await reaches(cluster, HERS, Observed.READY)
        agentd = identify(pid_of(tmp_path, HERS))
        assert agentd is not None
        (bwrap,) = children(agentd, recursive=False)
        (execd,) = children(bwrap, recursive=False)
        inside = children(agentd, recursive=True)
        killed = {"bubblewrap": bwrap, "execd": execd, "agentd": agentd}[victim]
        os.kill(killed.pid, signal.SIGKILL)
        await until(lambda: all(is_gone(process.pid) for process in inside), "all are gone")
        await reaches(cluster, HERS, Observed.FAILED if victim == "agentd" else Observed.READY)


@needs_bubblewrap
async def test_an_environment_that_an_older_greylag_boxed_whole_is_told_of_its_stop(
    tmp_path: Path,
) -> None:
    bwrap = choose_sandbox("bubblewrap", hidden=(), needed=()).bwrap
    assert bwrap is not None
    box = (bwrap, "--unshare-pid", "--as-pid-1", "--bind", "/", "/", "--proc", "/proc", "--")
    command = (*box, *standin("--shell", "bare"))
    async with open_local(tmp_path, agentd_command=command, grace=60) as cluster:
        await cluster.start(HERS.environment)
        await reaches(cluster, HERS, Observed.READY)
        record = record_of(tmp_path, HERS)
        folder_of(tmp_path, HERS).write(replace(record, boxed=True))
        await cluster.stop(HERS.environment)
        await reaches(cluster, HERS, Observed.STOPPED)
        assert marked(record.mark) == set()
        async with cluster.logs(HERS.environment, follow=False, tail=1) as lines:
            assert [line async for line in lines] == [b"stand-in: leaving\n"]


def test_the_start_folder_is_hidden_unless_it_is_the_system_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert start_folder() == (tmp_path, tmp_path / ".env")
    for folder in ("/", "/usr", "/etc"):
        monkeypatch.chdir(folder)
        assert start_folder() == (Path(folder, ".env"),)


@needs_bubblewrap
def test_a_hidden_file_cannot_be_read(tmp_path: Path) -> None:
    # /srv is none of the folders that are emptied anyway.
    with tempfile.TemporaryDirectory(dir="/srv") as folder:
        secret = Path(folder, ".env")
        secret.write_text("secret")
        box = choose_sandbox("bubblewrap", hidden=(secret,), needed=())
        box.write(tmp_path / "seccomp")
        command = box.command(["cat", str(secret)], [], tmp_path / "seccomp")
        told = subprocess.run(command, check=False, capture_output=True)  # noqa: S603 - ours
        assert told.returncode == 1
        assert told.stdout == b""


@needs_bubblewrap
def test_greylag_itself_stays_visible_when_it_lies_in_the_hidden_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repository = Path(__file__).parents[3]
    monkeypatch.setenv("HOME", str(repository))
    monkeypatch.chdir(repository)
    sandbox = choose_sandbox("bubblewrap", hidden=(), needed=())

    sandbox.write(tmp_path / "seccomp")

    def run(code: str) -> int:
        argv = [sys.executable, "-c", code]
        command = sandbox.command(argv, [tmp_path], tmp_path / "seccomp")
        return subprocess.run(command, check=False, capture_output=True).returncode  # noqa: S603 - ours

    assert run("import greylag.cluster.local") == 0
    assert run(f"open({str(repository / 'pyproject.toml')!r})") == 1


def test_what_lies_in_a_needed_folder_is_not_mounted_twice(tmp_path: Path) -> None:
    program = tmp_path / "venv" / "bin" / "program"
    program.parent.mkdir(parents=True)
    program.touch()
    box = Sandbox("bwrap", hidden=(tmp_path,), needed=(program, tmp_path / "venv"))
    command = box.command(["true"], [tmp_path], tmp_path / "seccomp")
    assert str(tmp_path / "venv") in command
    assert str(program) not in command
