"""Searches in a workspace: what is told, and whether that is all."""

import json
import os
import shutil
from pathlib import Path

import pytest

from greylag.execd import file_search
from greylag.execd.file_search import search
from greylag.execd.files import MOST_DEPTH, Workspace
from greylag.execd.protocol import MOST_JSON

RIPGREP = shutil.which("rg")


@pytest.fixture(params=[None, "rg"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and RIPGREP is None:
        pytest.skip("RIPGREP IS NOT THERE: only the search without it is tested")
    monkeypatch.setattr(shutil, "which", lambda _: RIPGREP if request.param else None)


both = pytest.mark.usefixtures("_way")


def found(
    folder: Path, text: str = "needle", most: int = 500
) -> tuple[list[tuple[str, int]], bool]:
    matches, whole = search(Workspace(str(folder)), "", text, most)
    return sorted((one["path"], one["line"]) for one in matches), whole


@pytest.mark.parametrize("script", ["exec sleep 60", "exit 2", "kill -9 $$", "echo '{}'"])
def test_a_ripgrep_that_does_not_end_as_it_should_has_not_found_all(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "rg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(program))
    monkeypatch.setattr(file_search, "_SECONDS", 0.3)
    assert found(tmp_path) == ([], False)


def test_a_ripgrep_that_could_not_read_some_has_not_found_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "rg"
    program.write_text("""#!/bin/sh
    case "$*" in *--json*) echo '{"type": "summary", "data": {}}'; exit;; esac
    printf 'needle\\0'; exit 2
    """)
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(program))
    assert found(tmp_path) == ([("needle", 0)], False)


@both
def test_what_is_being_uploaded_is_not_told(tmp_path: Path) -> None:
    with Workspace(str(tmp_path)).writing("f") as (file, _):
        file.write(b"part\n")
        assert found(tmp_path, "part") == ([], True)


@both
def test_that_a_file_has_more_lines_than_are_told_is_said(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("needle\n" * 20)
    matches, whole = found(tmp_path)
    assert (len(matches), whole) == (40, True)
    (tmp_path / "a").write_text("needle\n" * 21)
    assert found(tmp_path) == (matches, False)


@both
def test_names_and_lines_of_any_bytes_are_found(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff")).write_bytes(b"caf\xe9 needle\n")
    assert found(tmp_path) == ([("\\xff", 1)], True)


def test_a_line_too_long_to_be_told_is_not_passed_over(tmp_path: Path) -> None:
    if RIPGREP is None:
        pytest.skip("RIPGREP IS NOT THERE")
    (tmp_path / "long").write_text("x" * 100_000 + "needle\nneedle\n")
    assert found(tmp_path) == ([("long", 2)], False)


@both
def test_what_is_found_fits_an_answer(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"f{number}").write_text(("needle " + "\U0001f600" * 400 + "\n") * 20)
    matches, whole = search(Workspace(str(tmp_path)), "", "needle", 500)
    assert (len(matches) > 100, whole) == (True, False)
    assert len(json.dumps(matches)) < MOST_JSON - 1000


@both
def test_names_and_lines_have_their_share(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/app.js").write_text("open('needle')\n" * 3)
    for number in range(40):
        (tmp_path / f"needle{number}").touch()
    matches, whole = found(tmp_path, most=20)
    assert (matches[-3:], len(matches), whole) == (
        [("src/app.js", n) for n in (1, 2, 3)],
        20,
        False,
    )
    for number in range(40):
        (tmp_path / f"needle{number}").write_text("needle")
    matches, whole = found(tmp_path, most=20)
    assert ([bool(line) for _, line in matches].count(True), len(matches), whole) == (10, 20, False)
    assert [len(found(tmp_path, most=most)[0]) for most in (1, 2, 3)] == [1, 2, 3]
    assert len(found(tmp_path)[0]) == 83


@both
def test_names_of_what_tools_make_are_passed_over(tmp_path: Path) -> None:
    for folder in (".git/objects", "node_modules/needle", "a/node_modules/b", "src/needles/x"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "needle.js").write_text("needle")
    told = [("src/needles", 0), ("src/needles/x/needle.js", 0), ("src/needles/x/needle.js", 1)]
    assert found(tmp_path) == (told, True)
    (tmp_path / ".gitignore").write_text("x\n")
    assert found(tmp_path) == (told if shutil.which("rg") is None else [], True)


@both
def test_names_of_any_bytes_are_told_apart(tmp_path: Path) -> None:
    names = [b"a needle\n./b", b"\xff needle", b"needle/needle/f"]
    for name in names:
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    told = ["\\xff needle", "a needle\n.", "needle", "needle/needle"]
    assert [path for path, _ in found(tmp_path)[0]] == sorted(told)


def test_a_tree_too_deep_to_be_looked_into_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    deep = tmp_path.joinpath(*["d"] * (MOST_DEPTH - 1))
    deep.mkdir(parents=True)
    assert found(tmp_path) == ([], True)
    (deep / "d").mkdir()
    assert found(tmp_path) == ([], False)
