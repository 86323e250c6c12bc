"""The set-up, with stand-ins for Python and pip: when it makes the environment, and when anew."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In place of the system's Python: it says which one it is, and makes environments of itself.
PYTHON = """#!/bin/sh
echo "$@" >>"$LOG"
echo "${PIP_USER:-}" >"$LOG.user"
case "$*" in
    "-m venv --clear .venv")
        rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/pip ;;
    *cache_tag*) echo "$VERSION" ;;
esac
"""
MADE = "-m venv --clear .venv"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    folder = tmp_path / "house"
    for name in ("tools", "requirements", "src"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "setup.sh", folder / "tools")
    for name in ("pyproject.toml", "requirements/build.lock", "requirements/runtime.lock"):
        (folder / name).write_text(name)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return folder


def set_up(folder: Path, version: str = "cpython-311") -> list[str]:
    """Run it, and return what Python and pip were asked for."""
    log = folder.parent / "log"
    log.write_text("")
    env = {"PATH": os.environ["PATH"], "LOG": str(log), "VERSION": version}
    env["PYTHON"] = str(folder.parent / "python")
    subprocess.run([folder / "tools" / "setup.sh"], env=env, check=True, capture_output=True)  # noqa: S603 - our own script
    return log.read_text().splitlines()


def installed(asked: list[str]) -> bool:
    return any(one.startswith("install") for one in asked)


def test_it_is_made_once_and_installed_again_when_the_lock_changes(house: Path) -> None:
    first, second = set_up(house), set_up(house)
    assert (MADE in first, installed(first)) == (True, True)
    assert (MADE in second, installed(second)) == (False, False)
    (house / "requirements" / "runtime.lock").write_text("another")
    third = set_up(house)
    assert (MADE in third, installed(third)) == (False, True)


def test_it_is_made_anew_where_its_python_went_or_changed_or_the_folder_moved(house: Path) -> None:
    set_up(house)
    (house / ".venv" / "bin" / "python").unlink()
    (house / ".venv" / "bin" / "python").symlink_to("/gone")
    assert_made_anew(house, "cpython-311")
    assert_made_anew(house, "cpython-312")
    assert_made_anew(house.rename(house.with_name("moved")), "cpython-312")


def test_one_whose_making_was_cut_off_before_it_had_pip_is_made_anew(house: Path) -> None:
    (house / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(house.parent / "python", house / ".venv" / "bin")
    assert_made_anew(house, "cpython-311")


def test_it_installs_into_the_environment_whatever_pip_is_set_to(house: Path) -> None:
    set_up(house)
    assert (house.parent / "log.user").read_text() == "0\n"


def assert_made_anew(folder: Path, version: str) -> None:
    asked = set_up(folder, version)
    assert (MADE in asked, installed(asked)) == (True, True)
    assert MADE not in set_up(folder, version)


@pytest.mark.parametrize(
    "given", ["my own data", "'my own data'", '"my own data"', r"my\ own\ data"]
)
def test_make_up_takes_a_data_folder_with_blanks_in_its_name(given: str) -> None:
    make = shutil.which("make")
    assert make is not None
    command = [make, "--no-print-directory", "-n", "up", "PORT=9000", f"DATA={given}"]
    told = subprocess.check_output(command, cwd=ROOT, text=True)  # noqa: S603 - a dry run
    started = shlex.split(told.splitlines()[-1])
    assert started[1:] == ["up", "--port", "9000", "--data", "my own data"]
