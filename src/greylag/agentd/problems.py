"""Why agentd refuses a request: stable codes, and words for people."""

from typing import Any, Literal

from greylag.agentd.agent.types import AgentError, AgentRefusedError


class RequestError(Exception):
    """A request that cannot be served; nothing was changed.

    Attributes:
        code: stable, for programs; the routes know which HTTP status it means.
        message: one plain sentence for people.
        error: a short title, as the older contract has it; made from the code if it is not given.
        details: further members of the answer.
    """

    def __init__(self, code: str, message: str, error: str = "", **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.error = error or code.replace("_", " ").capitalize()
        self.details = details


def not_found(
    kind: Literal["session", "turn", "setting", "extension", "terminal"], name: str
) -> RequestError:
    """Return the error for what is not there (or was deleted)."""
    return RequestError(f"{kind}_not_found", f"There is no {kind} {name[:100]!r}.")


def invalid(message: str) -> RequestError:
    """Return the error for a request that makes no sense."""
    return RequestError("invalid_request", message)


def agent_failed(error: AgentError, no_such_method: str) -> RequestError:
    """Return the error for what the agent did not do; ``no_such_method`` says that it never can."""
    if error.unknown_method:
        return RequestError("agent_unavailable", no_such_method)
    if isinstance(error, AgentRefusedError):
        return RequestError("storage_failed" if error.unkept else "agent_refused", error.words)
    return RequestError("agent_unavailable", str(error))


def storage_failed(what: str, error: OSError) -> RequestError:
    """Return the error for what the disk did not take."""
    return RequestError("storage_failed", f"{what}: {error.strerror or error}.")
