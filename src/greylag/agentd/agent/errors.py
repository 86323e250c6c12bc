"""What can go wrong between agentd and the agent process."""

from typing import Any


class AgentError(Exception):
    """Base of every error that the agent side of agentd raises."""


class AgentUnavailableError(AgentError):
    """No agent process is ready to take work; the message says why in plain words."""


class AgentDiedError(AgentError):
    """The agent process ended (or its pipe broke) while an answer was awaited."""


class AgentRefusedError(AgentError):
    """The agent answered a request with a JSON-RPC error.

    Attributes:
        code: the JSON-RPC error code.
        message: the agent's own short text.
        data: the error's `data` member, whatever the agent put there, or None.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.data = data
