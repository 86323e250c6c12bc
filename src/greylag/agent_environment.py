"""What an environment's agentd is told by the settings, wherever it runs."""

from greylag.config import Settings

MODEL_KEY = "GREYLAG_MODEL_KEY"


def agent_environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables of agentd, the model provider's key among them."""
    key = settings.model_key.get_secret_value() if settings.model_key else None
    given = {
        "GREYLAG_MODEL_URL": settings.model_url,
        MODEL_KEY: key,
        "GREYLAG_MODEL": settings.model,
        "GOOSE_MODE": settings.goose_mode,
        "GREYLAG_CONFIRMATION_TIMEOUT": str(settings.confirmation_timeout),
    }
    return {name: value for name, value in given.items() if value}
