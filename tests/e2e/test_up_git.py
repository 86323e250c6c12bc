"""A project from a private repository: cloned through kills, pushed to; its secret unseen."""

from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.agentd.doubles import eventually
from tests.cli.program import run
from tests.e2e.product import Product, product, real_goose
from tests.git_server import TOKEN, USER, git, git_server, make_repository, pointer

pytestmark = real_goose


@pytest.mark.timeout(180)
async def test_a_private_repository_is_cloned_through_a_kill_and_pushed_to(tmp_path: Path) -> None:
    root = tmp_path / "repositories"
    files: dict[str, str | bytes] = {"README.md": "# Hello\n", "a/b.txt": "b"}
    files |= {".gitattributes": "*.big filter=lfs -text\n", "lost.big": pointer(b"nowhere")}
    make_repository(root / "private" / "app.git", files)
    async with (
        git_server(root) as server,
        product(tmp_path, GOOSE_MODE="auto", GREYLAG_GIT_HOSTS=f"http://{server.host}") as up,
    ):
        words = ("secrets", "set", "mine", "--host", server.host, "--username", USER)
        kept = await run(*words, env=up.env, stdin=f"{TOKEN}\n".encode())
        assert kept.code == 0, kept.err
        url = f"{server.url}/private/app.git"
        path = await up.project("demo", active=False, source={"git": {"url": url, "ref": "main"}})
        server.held.clear()
        status, _ = await up.call("POST", f"{path}/activate", prefer="respond-async")
        assert status == 202
        await eventually(lambda: any(said.startswith("Basic") for said in server.said), 60)
        await _kill_agentd(up)
        server.held.set()
        told = await up.log(path, "active")
        codes = [event.content["code"] for event in told]
        assert {"git_cloning", "git_done"} <= set(codes), codes
        assert any("stay pointers" in event.content["message"] for event in told), told
        workspace = up.volume("demo") / "workspace"
        assert (workspace / "a" / "b.txt").read_text() == "b"
        await _work(up, path)
        pushed = git(root / "private" / "app.git", "log", "--format=%s", "fix")
        assert pushed.splitlines() == ["By the agent", "Begin"]
        _unseen(up)


async def _work(up: Product, path: str) -> None:
    """Let the agent commit, and push by the command line; a person's own git pushes too."""
    tool = "echo more >> README.md && git commit -qam 'By the agent' && git fetch -q origin"
    await up.say(path, f"[[tool {tool}]]")
    done = await run("git", "push", "demo", "--branch", "fix", env=up.env)
    assert done.code == 0, done.err
    _, status = await up.call("GET", f"{path}/git")
    assert (status["upstream"], status["ahead"], status["changed"]) == ("origin/fix", 0, 0)
    own = await run("exec", "demo", "--", "git", "push", "-q", "origin", "HEAD:by-hand", env=up.env)
    assert own.code == 0, own.err
    shown = await run("exec", "demo", "--", "sh", "-c", "env; git config --list", env=up.env)
    assert "insteadof" in shown.out
    assert TOKEN not in shown.out


async def _kill_agentd(up: Product) -> None:
    for one in up.processes():
        with suppress(psutil.NoSuchProcess):  # it was of git's, and has ended
            process = psutil.Process(one.pid)
            if "greylag.agentd" in process.cmdline():
                process.kill()


def _unseen(up: Product) -> None:
    """See that the secret is nowhere on disk, and in no process of the environment."""
    secret = TOKEN.encode()
    for file in up.data.rglob("*"):
        with suppress(FileNotFoundError):  # another's temporary file
            assert file.is_symlink() or not file.is_file() or secret not in file.read_bytes(), file
    for one in up.processes():
        for name in ("environ", "cmdline"):
            with suppress(FileNotFoundError, ProcessLookupError):
                assert secret not in Path(f"/proc/{one.pid}/{name}").read_bytes()
