"""`greylag agentd`."""

import os

import click

from greylag.agentd.config import AgentdConfigError, AgentdSettings
from greylag.agentd.main import run


@click.command()
def agentd() -> int:
    """Run the agent's API inside an environment.

    Greylag starts this itself, in each environment. It reads its settings from environment
    variables (GREYLAG_AGENT_FOLDER, GOOSE_API_PORT, ...).
    """
    try:
        settings = AgentdSettings.from_env(os.environ)
    except AgentdConfigError as error:
        raise click.UsageError(str(error)) from error
    return run(settings)
