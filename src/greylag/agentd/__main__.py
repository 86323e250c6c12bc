"""``python -m greylag.agentd``: agentd with its settings from the environment."""

import os
import sys

from greylag.common.loading import loading

with loading():
    from greylag.agentd.config import AgentdConfigError, AgentdSettings
    from greylag.agentd.main import EXIT_CONFIG, run


def main() -> int:
    """Read the settings and run; return the exit code."""
    try:
        settings = AgentdSettings.from_env(os.environ)
    except AgentdConfigError as error:
        sys.stderr.write(f"agentd: {error}\n")
        return EXIT_CONFIG
    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
