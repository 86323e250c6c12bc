"""What `greylag doctor` looks at on this machine."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from greylag.agentd.agent.binary import SCRIPTED, find_agent
from greylag.agentd.agent.errors import AgentUnavailableError
from greylag.agentd.agent.types import AgentCommand
from greylag.cli.checks import Check
from greylag.cli.mongo_check import mongo_check
from greylag.config import Settings, load_settings
from greylag.domain.errors import ConfigError

OLDEST_PYTHON = (3, 11)
LEAST_FREE_BYTES = 1024**3
RUN_SECONDS = 15
INSTALL_NODE = "Install Node.js 20 or newer (https://nodejs.org), then run `make setup`."


def machine_checks() -> Iterator[Check]:
    """Yield one finding after the other. It runs other programs, for a moment each."""
    yield _python()
    try:
        settings = load_settings()
    except ConfigError as error:
        yield Check("settings", "fail", error.info.message, error.info.hint)
        settings = None
    else:
        yield Check("settings", "ok", "The settings of this shell and folder can be read.")
    yield from _agent(settings)
    yield _bubblewrap(settings)
    if settings is not None:
        yield _data_folder(settings.data)
        if (found := mongo_check(settings)) is not None:
            yield found
        yield _model(settings)


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info >= OLDEST_PYTHON:
        return Check("python", "ok", f"Python {version}")
    return Check("python", "fail", f"Python {version}", "Install Python 3.11 or newer.")


def _agent(settings: Settings | None) -> Iterator[Check]:
    node = _version(["node", "--version"])
    try:
        command = find_agent(settings.goose if settings else None, os.environ)
    except AgentUnavailableError as error:
        yield Check("goose", "fail", str(error), "Correct or unset GREYLAG_GOOSE.")
        return
    yield _goose(command)
    if node is not None:
        yield Check("node", "ok", f"Node {node}")
    elif command.kind == SCRIPTED:
        yield Check("node", "warn", "Node was not found; goose is installed with it.", INSTALL_NODE)
    else:
        yield Check("node", "ok", "Node was not found, and is not needed: goose is installed.")


def _goose(command: AgentCommand) -> Check:
    if command.kind == SCRIPTED:
        detail = "goose was not found; a scripted agent stands in for it."
        return Check("goose", "warn", detail, "Run `make setup`, or set GREYLAG_GOOSE to its path.")
    program = command.argv[0]
    version = _version([program, "--version"])
    if version is None:
        advice = "Run `make setup` again, or set GREYLAG_GOOSE to another one."
        return Check("goose", "fail", f"{program} does not start.", advice)
    return Check("goose", "ok", f"goose {version} ({program})")


def _bubblewrap(settings: Settings | None) -> Check:
    demanded = settings is not None and settings.sandbox == "bubblewrap"
    program = shutil.which("bwrap")
    if program is None:
        detail = "bubblewrap was not found: environments on this machine are not isolated."
    elif _run([program, "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "true"]) is None:
        detail = "bubblewrap does not work here: environments on this machine are not isolated."
    else:
        return Check("bubblewrap", "ok", f"bubblewrap works ({program})")
    advice = "Install bubblewrap and allow unprivileged user namespaces, or use Kubernetes."
    return Check("bubblewrap", "fail" if demanded else "warn", detail, advice)


def _data_folder(folder: Path) -> Check:
    """Look at the folder, or at the first parent that exists: it is made at the first start."""
    path = folder.absolute()
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not _takes_files(nearest):
        advice = "Give your account write access to it, or choose another with GREYLAG_DATA."
        return Check("data folder", "fail", f"{path} cannot be written.", advice)
    free = shutil.disk_usage(nearest).free
    if free < LEAST_FREE_BYTES:
        detail = f"{path} has only {free // 1024**2} MiB of free space."
        return Check("data folder", "warn", detail, "Free some space.")
    return Check("data folder", "ok", f"{path} can be written.")


def _takes_files(folder: Path) -> bool:
    """Try it: permissions alone do not tell of a read-only disk, and mean nothing to root."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _model(settings: Settings) -> Check:
    if settings.model_url:
        # The host alone: an address may carry a password.
        return Check("model", "ok", f"Model provider: {urlsplit(settings.model_url).hostname}")
    detail = "No model provider is set: a built-in script answers."
    return Check(
        "model", "warn", detail, "Set GREYLAG_MODEL_URL, GREYLAG_MODEL_KEY and GREYLAG_MODEL."
    )


def _version(command: Sequence[str]) -> str | None:
    found = _run(command)
    return None if found is None else (found.strip().splitlines() or ["(no version)"])[-1].strip()


def _run(command: Sequence[str]) -> str | None:
    """Return what a program prints, ``None`` when it is not there or fails."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed words, and a path the operator has set
            command, capture_output=True, text=True, timeout=RUN_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
