"""All use cases in one object, as the web is given them."""

from dataclasses import dataclass

from greylag.ports.store import ProjectStore
from greylag.services.agents import Agents
from greylag.services.messages import Messages
from greylag.services.platform import Platform
from greylag.services.projects import Projects


@dataclass(frozen=True, slots=True)
class UseCases:
    """What a web or another front may ask of Greylag."""

    projects: Projects
    agents: Agents
    messages: Messages
    platform: Platform
    store: ProjectStore

    async def check_ready(self) -> None:
        """Return when requests can be served, else raise what is wrong."""
        await self.store.ping()
