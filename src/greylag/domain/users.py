"""Who uses Greylag, who asks, and what can be asked of a user's projects."""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who owns projects."""

    id: str
    display_name: str


class Action(StrEnum):
    """What a principal may or may not do with what a user owns."""

    PROJECTS_READ = "projects.read"
    PROJECTS_WRITE = "projects.write"
    PROJECTS_DELETE = "projects.delete"
    ENVIRONMENT_ACTIVATE = "environment.activate"
    ENVIRONMENT_DEACTIVATE = "environment.deactivate"
    MESSAGES_SEND = "messages.send"
    AGENT_READ = "agent.read"
    AGENT_WRITE = "agent.write"
    LOGS_READ = "logs.read"
    TERMINAL_USE = "terminal.use"
    PREVIEW_USE = "preview.use"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request. Every use case takes one; ``services/access.py`` decides by it.

    The operator may act for every user; a principal with a ``user_id`` for that user alone.
    """

    name: str
    user_id: str | None = None

    def may_act_for(self, user_id: str) -> bool:
        """Tell whether this principal may see and change what ``user_id`` owns."""
        return self.user_id is None or self.user_id == user_id


OPERATOR = Principal("operator")
