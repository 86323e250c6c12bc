"""The committed files of the dashboard are what its build makes."""

import shutil
import subprocess
from pathlib import Path

import pytest

FRONTEND = Path(__file__).parents[2] / "frontend"
NODE = shutil.which("node")


@pytest.mark.skipif(
    NODE is None or not (FRONTEND / "node_modules").is_dir(),
    reason="THE PAGES' FILES WERE NOT CHECKED: run `npm ci` in frontend/ first",
)
def test_the_committed_files_are_what_the_build_makes() -> None:
    checked = subprocess.run(  # noqa: S603 - a fixed program and a script of ours
        [NODE or "node", "build.mjs", "--check"],
        cwd=FRONTEND,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stderr
