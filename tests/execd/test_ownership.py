"""Files of another user become ours, wherever that is cut off."""

import errno
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from greylag.execd.__main__ import _put_back, empty, take_over

OLD, NEW, GROUP = 54321, 54322, 54323

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="NOT TESTED: only root makes files of others"
)


class CutError(Exception):
    """The process ends here."""


@contextmanager
def left_by_another() -> Iterator[Path]:
    """Give a folder of the old user's that the group may write, as Kubernetes hands it over."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        root = Path(folder, "home")
        deep = root / "private" / "deep"
        deep.mkdir(parents=True)
        (deep / "key").write_text("secret")
        (deep / "key").chmod(0o600)
        (root / "private").chmod(0o700)
        (root / "script").write_text("echo")
        (root / "script").chmod(0o755)
        os.utime(root / "script", (1e9, 1e9))
        (root / "again").hardlink_to(root / "script")
        (root / "link").symlink_to("/etc/passwd")
        os.mkfifo(root / "pipe")
        for path in (root, *root.rglob("*")):
            os.chown(path, OLD, GROUP, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(stat.S_IMODE(path.stat().st_mode) | (0o2070 if path.is_dir() else 0o060))
        yield root


@contextmanager
def new_user_of(folder: Path) -> Iterator[None]:
    """Be the new user, whose all in ``folder`` is."""
    for one in (folder, *folder.rglob("*")):
        os.chown(one, NEW, GROUP, follow_symlinks=False)
    with new_user():
        yield


@contextmanager
def new_user() -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([GROUP])
    os.setegid(GROUP)
    os.seteuid(NEW)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def check(root: Path, *, linked: bool = True) -> None:
    names = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert names == {
        *("private", "private/deep", "private/deep/key", "script", "again", "link", "pipe")
    }
    key, script = root / "private" / "deep" / "key", (root / "script").stat()
    assert key.read_text() == "secret"
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (root / "private", key)}
    assert modes == {root / "private": 0o2700, key: 0o600}
    assert (stat.S_IMODE(script.st_mode), script.st_mtime) == (0o755, 1e9)
    assert (script.st_ino == (root / "again").stat().st_ino) or not linked
    owners = {path.lstat().st_uid for path in root.rglob("*") if path.name not in {"link", "pipe"}}
    assert owners == {NEW}
    assert {path.lstat().st_gid for path in root.rglob("*")} == {GROUP}


def test_what_another_user_left_becomes_ours_as_it_was() -> None:
    with left_by_another() as root:
        with new_user():
            take_over(root)
        check(root)
        before = {path: path.lstat() for path in root.rglob("*")}
        with new_user():
            take_over(root)
        assert {path: path.lstat() for path in root.rglob("*")} == before


def test_what_an_earlier_start_has_left_is_removed_but_nothing_that_it_links_to() -> None:
    with left_by_another() as root:
        folder = root / "private"
        (folder / "out").symlink_to(root / "script")
        (folder / "far").symlink_to(root)
        os.mkfifo(folder / "deep" / "pipe")
        (folder / "shut").mkdir()
        (folder / "shut" / "file").touch()
        (folder / "deep" / "shut").mkdir()
        (folder / "deep" / "shut" / "file").touch()
        with new_user_of(folder):
            for shut in (folder / "shut", folder / "deep" / "shut"):
                shut.chmod(0o500)
            empty(folder)

        assert list(folder.iterdir()) == []
        assert (root / "script").read_text() == "echo"


def test_folders_that_lie_in_each_other_without_end_keep_nobody_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.chdir(tmp_path)
        for _ in range(2000):
            os.mkdir("deep")  # noqa: PTH102 - no path is as long
            os.chdir("deep")
    (tmp_path / "other").touch()
    try:
        empty(tmp_path)
        assert not (tmp_path / "other").exists()
    finally:
        subprocess.run(["/bin/rm", "-rf", tmp_path / "deep"], check=True)  # noqa: S603 - our own


def test_it_goes_on_wherever_it_was_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in count():
        with left_by_another() as root:
            left = iter(range(steps))
            with monkeypatch.context() as patched, new_user():
                for name in ("rename", "replace", "rmdir", "mkdir", "chmod"):
                    patched.setattr(Path, name, _cutting(getattr(Path, name), left))
                was_cut = False
                try:
                    take_over(root)
                except CutError:
                    was_cut = True
            with new_user():
                take_over(root)
            check(root, linked=not was_cut)
        if not was_cut:
            assert steps > 10
            return


def _cutting(real: Callable[..., Any], left: Iterator[int]) -> Callable[..., Any]:
    def cut(*arguments: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise CutError
        return real(*arguments, **options)

    return cut


def test_a_draft_that_cannot_have_its_name_again_stops_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.greylag-draft").mkdir()

    def shut(_draft: Path, _target: Path) -> None:
        raise PermissionError(errno.EACCES, "shut")

    monkeypatch.setattr(Path, "rename", shut)
    _put_back(tmp_path)
    assert "not taken over" in capsys.readouterr().err
