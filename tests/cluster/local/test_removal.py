"""Deleting what hostile tools have left: any name, any depth, any rights, and nothing elsewhere."""

import os
import random
import shutil
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cluster.environments import open_local, until
from tests.contract.store_adapters import make_project

from greylag.cluster.local.folders import REMOVED, Folder, empty_removed

LONG = "n" * 255
NAMES: list[Callable[[random.Random], bytes]] = [
    lambda _: LONG.encode(),
    lambda rng: rng.randbytes(rng.randint(1, 255)).replace(b"/", b"-").replace(b"\0", b"-"),
    lambda rng: b"-rf " + str(rng.random()).encode(),
    lambda rng: b"\x1b]0;owned\x07\r\n" + str(rng.random()).encode(),
    lambda rng: "\N{RIGHT-TO-LEFT OVERRIDE}\u00e9".encode() + str(rng.random()).encode(),
    lambda rng: b"\xff\xfe" + str(rng.random()).encode(),
    lambda rng: b"..." + str(rng.random()).encode(),
    lambda _: b"~",
    lambda _: b"*",
]
MODES = (0o000, 0o111, 0o222, 0o444, 0o500, 0o555, 0o700, 0o1777)


def made(root: Path) -> int:
    """Make the folder of what was taken away, and open one environment's in it."""
    (root / REMOVED / "one").mkdir(parents=True)
    return os.open(root / REMOVED / "one", os.O_RDONLY)


def below(parent: int, name: str | bytes) -> int:
    """Make a folder below another and open it in its place."""
    os.mkdir(name, dir_fd=parent)
    child = os.open(name, os.O_RDONLY, dir_fd=parent)
    os.close(parent)
    return child


def left(root: Path) -> list[str]:
    return [path.name for path in (root / REMOVED).iterdir()]


def plant(rng: random.Random, folder: int, canary: Path, depth: int = 0) -> None:
    """Fill a folder with all that a tool can make, and shut it."""
    for _ in range(rng.randint(0, 9)):
        name = rng.choice(NAMES)(rng)
        if name in {b".", b".."} or name in map(os.fsencode, os.listdir(folder)):
            continue
        match rng.choice(["file", "folder", "folder", "link", "loop", "fifo", "socket", "hard"]):
            case "folder" if depth < 5:
                os.mkdir(name, dir_fd=folder)
                child = os.open(name, os.O_RDONLY, dir_fd=folder)
                plant(rng, child, canary, depth + 1)
                os.fchmod(child, rng.choice(MODES))
                os.close(child)
            case "link":
                target = rng.choice([str(canary), str(canary.parent), "/", ".."])
                os.symlink(os.fsencode(target), name, dir_fd=folder)
            case "loop":
                os.symlink(name, name, dir_fd=folder)
            case "fifo":
                os.mkfifo(name, dir_fd=folder)
            case "socket" if len(name) < 60:
                with socket.socket(socket.AF_UNIX) as bound:
                    bound.bind(f"/proc/self/fd/{folder}/".encode() + name)
            case "hard":
                os.link(canary, name, dst_dir_fd=folder)
            case _:
                flags = os.O_CREAT | os.O_WRONLY
                os.close(os.open(name, flags, rng.choice(MODES), dir_fd=folder))


def delete_without_privileges(root: Path) -> None:
    """Run the deletion as an account that rights hold for."""
    code = "import sys; from pathlib import Path; from greylag.cluster.local import folders; "
    code += "sys.exit(folders.empty_removed(Path(sys.argv[1]), 60))"
    plain = [sys.executable, "-c", code, str(root)]
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("setpriv is not installed: deletion without privileges is NOT tested")
        plain = [setpriv, "--bounding-set=-all", "--inh-caps=-all", *plain]
    done = subprocess.run(plain, check=False, capture_output=True, text=True)  # noqa: S603 - a command of the test
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_a_hundred_random_trees_go_and_nothing_else(tmp_path: Path, first: int) -> None:
    canary = tmp_path / "elsewhere" / "canary"
    canary.parent.mkdir()
    canary.write_text("kept")
    canary.chmod(0o600)
    root = tmp_path / "root"
    for seed in range(first, first + 25):
        (root / REMOVED / f"one-{seed}").mkdir(parents=True)
        folder = os.open(root / REMOVED / f"one-{seed}", os.O_RDONLY)
        plant(random.Random(seed), folder, canary)  # noqa: S311 - seeded, guards nothing
        os.close(folder)
    assert len(left(root)) == 25
    delete_without_privileges(root)
    assert left(root) == []
    assert (canary.read_text(), oct(canary.stat().st_mode), canary.stat().st_nlink) == (
        "kept",
        "0o100600",
        1,
    )
    assert list(canary.parent.iterdir()) == [canary]


def test_a_tree_deeper_than_any_path_goes_in_little_memory(tmp_path: Path) -> None:
    folder = made(tmp_path)
    for _ in range(5000):
        folder = below(folder, LONG)
    os.close(folder)
    tracemalloc.start()
    try:
        assert not empty_removed(tmp_path, 60)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left(tmp_path) == []
    assert most < 1_000_000


def test_what_takes_too_long_is_gone_on_with(tmp_path: Path) -> None:
    folder = made(tmp_path)
    for number in range(50):
        os.mkdir(f"{number}", dir_fd=folder)
    os.close(folder)
    goes = 1
    while empty_removed(tmp_path, 0):
        goes += 1
    assert goes > 2
    assert left(tmp_path) == []


def test_what_cannot_be_deleted_keeps_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.close(made(tmp_path))
    for name in ("fixed", "free"):
        folder = tmp_path / REMOVED / name
        folder.mkdir()
        (folder / name).write_text("")
    unlink = os.unlink

    def refusing(name: str, *, dir_fd: int) -> None:
        # As the system does for a file that was made immutable.
        if name == "fixed":
            raise PermissionError(1, "Operation not permitted")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refusing)
    assert not empty_removed(tmp_path, 60)
    assert left(tmp_path) == ["fixed"]


def test_where_nothing_was_taken_away_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert not empty_removed(tmp_path, 60)


async def test_a_deep_tree_keeps_neither_its_deletion_nor_a_look_at_all_from_its_end(
    tmp_path: Path,
) -> None:
    project = make_project()
    async with open_local(tmp_path) as cluster:
        await cluster.prepare(project.environment)
        names = project.environment.names
        volume = tmp_path / names.namespace / names.deployment / "volume"
        folder = os.open(volume, os.O_RDONLY)
        for _ in range(1200):
            folder = below(folder, LONG)
        os.close(folder)
        await cluster.delete(project.environment)
        assert await cluster.inventory() == []
        await until(lambda: not left(tmp_path), "the files go")


async def test_what_was_deleted_does_not_come_back_after_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    project = make_project("p")
    async with open_local(tmp_path) as cluster:
        await cluster.prepare(project.environment)
        (folder,) = Folder.all(tmp_path)

        def note(descriptor: int) -> None:
            at = Path(f"/proc/self/fd/{descriptor}").readlink()
            synced.append((str(at), folder.path.exists()))

        monkeypatch.setattr(os, "fsync", note)
        await cluster.delete(project.environment)
    assert synced == [(str(folder.path.parent), False)]
