"""The id of the request that is being answered, for logs and for the agent."""

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("greylag_request_id", default="")
