"""What answers the agent's model calls, and how clients are told when it is not a real model."""

from typing import Any

from greylag.agentd.agent.types import AgentKind, ModelProvider
from greylag.agentd.config import AgentdSettings

_SCRIPTED_MODEL = (
    "This is a demonstration: a scripted model answers. Set GREYLAG_MODEL_URL, GREYLAG_MODEL_KEY "
    "and GREYLAG_MODEL to use a real provider."
)
_SCRIPTED_AGENT = (
    "This is a demonstration: the scripted agent answers, because goose is not installed. "
    "Install Node and set up again, or put goose on the PATH, to use the real agent."
)


def provider(settings: AgentdSettings) -> ModelProvider | None:
    """Return the provider that the settings name, None for the scripted model."""
    if settings.model_url is None:
        return None
    key = settings.model_key
    return ModelProvider(settings.model_url, None if key is None else key.value)


def demonstration(settings: AgentdSettings, agent: AgentKind) -> str | None:
    """Return the sentence that says that no real model answers, None when one does."""
    if agent == "scripted":
        return _SCRIPTED_AGENT
    return _SCRIPTED_MODEL if settings.model_url is None else None


def model_object(settings: AgentdSettings, agent: AgentKind) -> dict[str, Any]:
    """Return what clients see of the model; the provider's address and key are not theirs."""
    sentence = demonstration(settings, agent)
    kind = "provider" if sentence is None else "scripted"
    return {"kind": kind, "demonstration": sentence}
