"""Moves of a workspace's files lose none, whatever a kill has left of one."""

import os
from pathlib import Path

import pytest

from greylag.execd.files import Workspace
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
