"""Install the real goose into `.venv/goose` with npm, and link it as `.venv/bin/goose`.

Run again it does nothing when the wanted version is there. A machine without Node, or without the
network, is no error: it says so and exits 0, and environments use the scripted agent instead.

`tools/goose/package-lock.json` says which version, and by which digest npm knows it. A platform
whose package the lock's maker could not fetch has no digest there; that is said too. To renew it
where the registry has all platforms: `npm install --package-lock-only` in `tools/goose`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent / "goose"
ROOT = PACKAGE.parent.parent
VENV = ROOT / ".venv"
INSTALLED = VENV / "goose"
LINK = VENV / "bin" / "goose"
NPM_SECONDS = 600
VERSION_SECONDS = 30


class GooseNotInstalledError(Exception):
    """goose could not be installed here; the message is for the person at the terminal."""


def main() -> int:
    """Install if needed; always 0, as Greylag runs without goose too."""
    if _is_current():
        print(f"goose is installed: {LINK}")
        return 0
    try:
        version = _install()
    except GooseNotInstalledError as reason:
        print(f"goose was not installed: {reason}", file=sys.stderr)
        print(_instead(), file=sys.stderr)
        return 0
    print(f"goose {version} is installed: {LINK}")
    return 0


def _is_current() -> bool:
    """Whether the folder was made from today's lock file and the link leads to its binary."""
    stamp = INSTALLED / "package-lock.json"
    wanted = PACKAGE / "package-lock.json"
    return (
        stamp.is_file() and LINK.is_file() and stamp.read_text("utf-8") == wanted.read_text("utf-8")
    )


def _install() -> str:
    npm = shutil.which("npm")
    if npm is None:
        raise GooseNotInstalledError(
            "npm was not found. Install Node.js 20 or newer (https://nodejs.org) and run this again"
        )
    VENV.mkdir(exist_ok=True)
    # Built aside and renamed at the end: an interrupted install never looks like a finished one.
    staging = Path(tempfile.mkdtemp(prefix="goose-", dir=VENV))
    staging.chmod(0o755)  # environments may run as another user
    try:
        version = _fill(staging, npm)
        shutil.rmtree(INSTALLED, ignore_errors=True)
        staging.rename(INSTALLED)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    LINK.parent.mkdir(exist_ok=True)
    LINK.unlink(missing_ok=True)
    LINK.symlink_to(_binary(INSTALLED))
    return version


def _fill(folder: Path, npm: str) -> str:
    """Run npm in `folder` and return the version that the binary itself tells."""
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(PACKAGE / name, folder / name)
    shutil.copyfile(ROOT / ".npmrc", folder / ".npmrc")
    print("installing goose with npm (about 300 MB on disk, once) ...", flush=True)
    _run([npm, "ci", "--loglevel=error"], folder, NPM_SECONDS, "npm could not fetch it")
    package = _package(folder)
    if not _has_digest(package.relative_to(folder).as_posix()):
        print(f"note: the lock file has no digest for {package.name}: its content is unchecked")
    ask = [str(_binary(folder)), "--version"]
    version = _run(ask, folder, VERSION_SECONDS, "it does not start")
    shutil.rmtree(folder / "home", ignore_errors=True)
    return version


def _package(folder: Path) -> Path:
    """Find the one platform package that npm chose; npm itself checks system and processor."""
    for about in sorted(folder.glob("node_modules/@aaif/goose-binary-*/package.json")):
        return about.parent
    # npm passes over an optional package that it cannot fetch, without a word.
    raise GooseNotInstalledError(
        "npm brought no goose package: the registry could not be reached, or has none for this "
        "system and processor"
    )


def _binary(folder: Path) -> Path:
    package = _package(folder)
    programs: dict[str, str] = json.loads((package / "package.json").read_text("utf-8"))["bin"]
    return package / next(iter(programs.values()))


def _has_digest(path: str) -> bool:
    """Whether npm had a digest to check the package at `path` by."""
    lock = json.loads((PACKAGE / "package-lock.json").read_text("utf-8"))
    return "integrity" in lock["packages"].get(path, {})


def _environ(home: Path) -> dict[str, str]:
    """Return our environment, with ``home`` in the place of a home folder that takes nothing.

    Services and containers often have no other. Where its cache cannot be written npm brings no
    optional package, and says nothing; without HOME neither it nor goose starts.
    """
    own = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
    if os.access(own, os.W_OK):
        return dict(os.environ)
    return {"HOME": str(home), "npm_config_cache": str(home), **os.environ}


def _run(command: list[str], folder: Path, seconds: float, complaint: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - fixed words and paths of our own
            command, cwd=folder, env=_environ(folder / "home"), capture_output=True, text=True,
            timeout=seconds, check=True,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        tail = "\n".join((error.stderr or error.stdout).strip().splitlines()[-5:])
        raise GooseNotInstalledError(f"{complaint}:\n{tail}") from error
    except (subprocess.TimeoutExpired, OSError) as error:
        raise GooseNotInstalledError(f"{complaint}: {error}") from error
    return done.stdout.strip()


def _instead() -> str:
    on_path = shutil.which("goose")
    if on_path is not None:
        return f"The goose on your PATH will be used: {on_path}"
    return "Greylag runs all the same: environments use the built-in scripted agent."


if __name__ == "__main__":
    sys.exit(main())
