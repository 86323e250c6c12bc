"""Why agentd refuses a request: stable codes, and words for people."""

from typing import Any

from greylag.agentd.agent.types import AgentError, AgentRefusedError


class RequestError(Exception):
    """A request that cannot be served; nothing was changed.

    Attributes:
        code: stable, for programs; the routes know which HTTP status it means.
        error: a short title, as the older contract has it.
        message: one plain sentence for people.
        details: further members of the answer.
    """

    def __init__(self, code: str, error: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.error = error
        self.message = message
        self.details = details


def session_not_found(session_id: str) -> RequestError:
    """Return the error for a session that is not there (or was deleted)."""
    return RequestError(
        "session_not_found", "Session not found", f"There is no session {session_id[:100]!r}."
    )


def turn_not_found(turn_id: str) -> RequestError:
    """Return the error for a turn that is not there."""
    return RequestError("turn_not_found", "Turn not found", f"There is no turn {turn_id[:100]!r}.")


def invalid(message: str) -> RequestError:
    """Return the error for a request that makes no sense."""
    return RequestError("invalid_request", "Invalid request", message)


def agent_unavailable(message: str) -> RequestError:
    """Return the error for an agent that cannot take work now."""
    return RequestError("agent_unavailable", "Agent unavailable", message)


def agent_failed(error: AgentError, no_such_method: str) -> RequestError:
    """Return the error for what the agent did not do; ``no_such_method`` says that it never can."""
    if error.unknown_method:
        return agent_unavailable(no_such_method)
    if isinstance(error, AgentRefusedError):
        return RequestError("agent_refused", "Agent refused", error.message)
    return agent_unavailable(str(error))


def storage_failed(what: str, error: OSError) -> RequestError:
    """Return the error for what the disk did not take."""
    message = f"{what}: {error.strerror or error}."
    return RequestError("storage_failed", "Storage failed", message)
