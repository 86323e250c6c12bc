"""Installing goose, with a program in npm's place that brings a small goose of its own."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools import install_goose

REAL = Path(install_goose.__file__).parent / "goose"
CHECKED, UNCHECKED = "goose-binary-linux-x64", "goose-binary-darwin-arm64"
NPM = """#!/bin/sh
echo called >> {calls}
[ "$1" = ci ] || exit 9
package=node_modules/@aaif/{package}
mkdir -p $package/bin
printf '{{"bin": {{"x": "bin/goose"}}}}' > $package/package.json
printf '#!/bin/sh\\n%s\\n' "{does}" > $package/bin/goose
chmod +x $package/bin/goose
"""


@dataclass
class Machine:
    """A checkout of its own with a PATH of its own."""

    root: Path

    @property
    def link(self) -> Path:
        return self.root / ".venv/bin/goose"

    @property
    def calls(self) -> int:
        """How often npm was called."""
        calls = self.root / "calls"
        return len(calls.read_text().splitlines()) if calls.exists() else 0

    def npm(self, script: str) -> None:
        """Put a program in npm's place."""
        path = self.root / "bin/npm"
        path.write_text(script)
        path.chmod(0o755)

    def good_npm(self, package: str = CHECKED, version: str = "1.52.0") -> None:
        calls = self.root / "calls"
        self.npm(NPM.format(calls=calls, package=package, does=f"echo {version}"))

    def folders(self) -> set[str]:
        return {path.name for path in (self.root / ".venv").glob("*")}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in ("bin", ".venv", "tools"):
        (tmp_path / name).mkdir()
    shutil.copytree(REAL, tmp_path / "tools/goose", ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / ".npmrc").touch()
    venv = tmp_path / ".venv"
    places = {
        "PACKAGE": tmp_path / "tools/goose",
        "ROOT": tmp_path,
        "VENV": venv,
        "INSTALLED": venv / "goose",
        "LINK": venv / "bin/goose",
    }
    for name, path in places.items():
        monkeypatch.setattr(install_goose, name, path)
    tools = tmp_path / "bin"
    for program in ("sh", "mkdir", "chmod"):
        (tools / program).symlink_to(str(shutil.which(program)))
    monkeypatch.setenv("PATH", str(tools))
    return Machine(tmp_path)


def test_goose_is_installed_once_and_linked(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.good_npm()
    assert install_goose.main() == 0
    assert "goose 1.52.0 is installed" in capsys.readouterr().out
    assert subprocess.check_output([machine.link], text=True) == "1.52.0\n"  # noqa: S603 - our own
    assert install_goose.main() == 0
    assert machine.calls == 1
    assert machine.folders() == {"bin", "goose"}


@pytest.mark.parametrize("home", [None, "/of-another"])
def test_npm_and_goose_have_a_place_of_their_own_where_the_home_folder_takes_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    can = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and can(path, mode))
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)  # what npm is told there still counts
    used = machine.root / "used"
    machine.npm(
        NPM.format(calls=used, package=CHECKED, does="echo 1.52.0")
        + f'echo "$HOME $npm_config_cache" >> {used}; mkdir -p "$npm_config_cache/_cacache"\n'
    )
    assert install_goose.main() == 0
    assert machine.link.is_file()
    at, cache = used.read_text().splitlines()[1].split()
    assert Path(cache).is_relative_to(machine.root / ".venv")
    assert at == (home or cache)
    assert not (machine.root / ".venv/goose/home").exists()


def test_a_new_lock_file_installs_anew(machine: Machine) -> None:
    machine.good_npm()
    install_goose.main()
    lock = machine.root / "tools/goose/package-lock.json"
    lock.write_text(lock.read_text() + "\n")
    machine.good_npm(version="1.53.0")
    install_goose.main()
    assert subprocess.check_output([machine.link], text=True) == "1.53.0\n"  # noqa: S603 - our own
    assert machine.folders() == {"bin", "goose"}


def test_a_package_without_a_digest_is_told(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.good_npm(CHECKED)
    install_goose.main()
    assert "unchecked" not in capsys.readouterr().out
    shutil.rmtree(machine.root / ".venv/goose")
    machine.good_npm(UNCHECKED)
    install_goose.main()
    assert f"no digest for {UNCHECKED}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("npm", "reason"),
    [
        (None, "npm was not found. Install Node.js"),
        ("#!/bin/sh\necho no network >&2; exit 1\n", "no network"),
        ("#!/bin/sh\nexit 0\n", "npm brought no goose package"),
        (NPM.format(calls="calls", package=CHECKED, does="exit 3"), "it does not start"),
    ],
    ids=["no npm", "npm fails", "npm brings nothing", "goose does not start"],
)
def test_without_goose_it_says_why_and_leaves_what_was_there(
    machine: Machine, capsys: pytest.CaptureFixture[str], npm: str | None, reason: str
) -> None:
    machine.good_npm()
    install_goose.main()
    (machine.root / "tools/goose/package-lock.json").write_text('{"packages": {}}')
    if npm is None:
        (machine.root / "bin/npm").unlink()
    else:
        machine.npm(npm)
    assert install_goose.main() == 0
    said = capsys.readouterr().err
    assert reason in said
    assert "scripted agent" in said
    assert machine.link.exists()
    assert machine.folders() == {"bin", "goose"}


def test_the_lock_pins_one_version_for_every_platform_and_names_no_registry() -> None:
    wanted: dict[str, str] = json.loads((REAL / "package.json").read_text())["optionalDependencies"]
    raw = (REAL / "package-lock.json").read_text()
    packages = json.loads(raw)["packages"]
    locked = {path.removeprefix("node_modules/"): about for path, about in packages.items() if path}
    assert {name: about["version"] for name, about in locked.items()} == wanted
    assert len(set(wanted.values())) == 1
    assert not re.search(r"https?://", raw)
    assert locked[f"@aaif/{CHECKED}"]["integrity"].startswith("sha512-")
