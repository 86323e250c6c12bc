"""Which program is the agent: the real goose when there is one, else the scripted agent."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from greylag.agentd.agent.errors import AgentUnavailableError
from greylag.agentd.agent.types import AgentCommand

SCRIPTED = "scripted"


def find_agent(setting: str | None, environ: Mapping[str, str]) -> AgentCommand:
    """Return how the agent is started.

    Args:
        setting: GREYLAG_GOOSE: a path or a program name, or `scripted`; None to look next to
            this Python first, then on PATH, and to take the scripted agent when there is none.
        environ: the environment variables (PATH counts).

    Raises:
        AgentUnavailableError: `setting` names no program that can be run.
    """
    path = environ.get("PATH", "")
    if setting == SCRIPTED:
        return _scripted()
    if setting is not None:
        found = shutil.which(setting, path=path)
        if found is None:
            raise AgentUnavailableError(f"GREYLAG_GOOSE={setting} is no program that can be run.")
        return _goose(found)
    beside = shutil.which("goose", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("goose", path=path)
    return _goose(found) if found is not None else _scripted()


def _goose(program: str) -> AgentCommand:
    return AgentCommand("goose", (str(Path(program).absolute()), "acp"))


def _scripted() -> AgentCommand:
    # -I: the workspace is the current folder, and must not be searched for modules.
    return AgentCommand("scripted", (sys.executable, "-I", "-m", "greylag.agentd.agent.scripted"))
