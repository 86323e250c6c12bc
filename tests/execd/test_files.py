"""Moves of a workspace's files lose none, whatever a kill has left of one; what is done lasts."""

import ctypes
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from greylag.execd.files import Workspace
from greylag.execd.packing import extract, tar_members
from greylag.execd.protocol import RefusedError


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_move_that_was_killed_with_both_names_there_is_gone_on_with(
    kind: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    old, new = tmp_path / "folder/old", tmp_path / "new"
    if kind == "file":
        old.write_text("content")
    else:
        old.symlink_to("nowhere")
    os.link(old, new, follow_symlinks=False)
    Workspace(str(tmp_path)).move("folder/old", "new", replace=False)
    assert not os.path.lexists(old)
    assert (new.read_text() == "content") if kind == "file" else (str(new.readlink()) == "nowhere")


@pytest.mark.parametrize("others", [0, 1])
def test_a_move_to_where_a_file_is_already_leaves_it_there(others: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    for number in range(others):
        os.link(file, tmp_path / f"other{number}")
    with pytest.raises(RefusedError) as refused:
        Workspace(str(tmp_path)).move("file", "./file", replace=False)
    assert refused.value.code == "file_exists"
    assert file.read_text() == "content"


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths that were brought to the disk: files, folders, and what lies below `/**`."""
    found: list[str] = []

    def note(descriptor: int) -> int:
        found.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        return 0

    class Libc:
        """The C library."""

        def syncfs(self, descriptor: int) -> int:
            note(descriptor)
            found[-1] += "/**"
            return 0

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc())
    return found


@pytest.mark.parametrize(
    ("work", "folders"),
    [
        (lambda files: files.move("old/file", "new/file", replace=False), ["new", "old"]),
        (lambda files: files.move("old/file", "new/there", replace=True), ["new", "old"]),
        (lambda files: files.remove("old/file", recursive=False), ["old"]),
        (lambda files: files.remove("old", recursive=True), [""]),
        (lambda files: files.folder("old/another"), ["old"]),
    ],
)
def test_a_change_of_names_is_on_the_disk_when_it_is_told(
    work: Callable[[Workspace], object], folders: list[str], tmp_path: Path, synced: list[str]
) -> None:
    for name in ("old/file", "new/there"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("content")
    work(Workspace(str(tmp_path)))
    assert synced == [str(tmp_path / folder) for folder in folders]


def test_what_an_archive_held_is_on_the_disk_when_it_is_told(
    tmp_path: Path, synced: list[str]
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for number in range(3):
            tar.addfile(tarfile.TarInfo(f"folder/{number}"))
    packed.seek(0)
    assert extract(Workspace(str(tmp_path)), "", tar_members(packed)) == (3, [])
    assert synced == [f"{tmp_path}/**"]
