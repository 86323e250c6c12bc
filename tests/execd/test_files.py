"""Moves of a workspace's files lose none, whatever a kill has left of one; what is done lasts."""

import ctypes
import errno
import io
import json
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from greylag.execd.files import MOST_PATH, Workspace, parts_of
from greylag.execd.packing import extract, tar_members
from greylag.execd.protocol import MOST_JSON, RefusedError


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
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for one in (folder, *(tarfile.TarInfo(f"folder/{number}") for number in range(3))):
            tar.addfile(one)
    packed.seek(0)
    assert extract(Workspace(str(tmp_path)), "", tar_members(packed)) == (4, [])
    assert synced == [f"{tmp_path}/**"]


def test_a_folder_takes_the_place_of_no_other_though_that_is_empty(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    (tmp_path / "old/file").touch()
    with pytest.raises(RefusedError) as refused:
        Workspace(str(tmp_path)).move("old", "new", replace=False)
    assert refused.value.code == "file_exists"
    assert (tmp_path / "old/file").exists()


def test_a_folder_gets_no_second_name_where_it_could_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", lambda *_, **__: None)  # as macOS's HFS+ makes one
    (tmp_path / "old").mkdir()
    Workspace(str(tmp_path)).move("old", "new", replace=False)
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


def test_where_a_file_has_one_name_at_most_it_is_moved_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    (tmp_path / "old").write_text("content")
    files = Workspace(str(tmp_path))
    files.move("old", "new", replace=False)
    (tmp_path / "old").touch()
    with pytest.raises(RefusedError, match="already"):
        files.move("old", "new", replace=False)
    assert (tmp_path / "new").read_text() == "content"


def test_a_tree_is_deleted_with_its_links_and_nothing_that_they_lead_to(tmp_path: Path) -> None:
    deep = tmp_path / "tree/in/it"
    deep.mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    for folder in (deep.parent, deep):
        (folder / "link").symlink_to(tmp_path / "kept")
        (folder / "nowhere").symlink_to("nothing")
    Workspace(str(tmp_path)).remove("tree", recursive=True)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "kept", tmp_path / "kept/file"]


def test_no_more_folders_are_open_at_once_than_a_path_and_a_walk_may_be_deep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greylag.execd.files.MOST_DEPTH", 3)
    (tmp_path / "a/b/c/d").mkdir(parents=True)
    assert [name for name, *_ in Workspace(str(tmp_path)).walk("")] == [b"a", b"a/b", b"a/b/c"]
    with pytest.raises(RefusedError, match="too long"):
        parts_of("a/" * MOST_PATH)


def test_a_page_is_no_longer_than_what_can_be_told_at_once(tmp_path: Path) -> None:
    names = [f"{number:03}" for number in range(200)]
    for name in names:
        (tmp_path / name).symlink_to("\x01" * 1000)
    files, found, after = Workspace(str(tmp_path)), list[str](), ""
    while after is not None:
        page = files.page("", after, 1000)
        assert len(json.dumps(page)) < MOST_JSON
        found += [one["name"] for one in page["entries"]]
        after = page["next"]
    assert found == names


def test_paths_past_links_are_told_as_they_are_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "to/it").mkdir(parents=True)
    (tmp_path / "way").symlink_to("to")
    files = Workspace(str(tmp_path))
    for path in ("to/it", "way/it/new", "way/it/new", "way/it", "way/it/other"):
        files.find(path)
    assert files.reached == {"to/it/new", "to/it"}  # which holds what comes after it
    monkeypatch.setattr("greylag.execd.files._MOST_REACHED", 20)
    files.find("way/another-of-many")
    assert files.reached == {""}


def test_of_files_that_are_not_whole_those_of_killed_writers_go_and_nobody_is_shown_any(
    tmp_path: Path,
) -> None:
    left, written = (tmp_path / f".greylag-{number:016x}.part" for number in range(2))
    for part in (left, written):
        part.touch()
    os.utime(left, (0, 0))
    files = Workspace(str(tmp_path))
    with files.writing("f"):
        pass
    assert sorted(tmp_path.iterdir()) == [written, tmp_path / "f"]
    assert [one["name"] for one in files.page("", "", 9)["entries"]] == ["f"]
    assert [name for name, *_ in files.walk("")] == [b"f"]


def test_a_file_that_changes_while_another_is_to_take_its_place_stays(tmp_path: Path) -> None:
    file, files = tmp_path / "f", Workspace(str(tmp_path))
    file.write_text("before")
    writing = files.writing("f", files.entry("f")["tag"])
    writing.__enter__()
    file.write_text("meanwhile")
    with pytest.raises(RefusedError) as refused:
        writing.__exit__(None, None, None)
    assert refused.value.code == "file_changed"
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "meanwhile"


def test_what_is_written_has_the_rights_of_what_was_there_or_those_of_any(tmp_path: Path) -> None:
    there = {"program": 0o6755, "private": 0o600, "shared": 0o664}
    for name, mode in there.items():
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    (tmp_path / "any-file").touch()
    (tmp_path / "any").mkdir()
    files = Workspace(str(tmp_path))
    for name in (*there, "file"):
        with files.writing(name):
            pass
    files.folder("folder")
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()}
    assert [modes[name] for name in there] == [0o755, 0o600, 0o664]
    assert (modes["file"], modes["folder"]) == (modes["any-file"], modes["any"])
