"""All use cases over memory adapters, for two users, with a worker that runs or is stepped."""

import json
from typing import Any

from tests.harness import Harness, settings

from greylag.common.agent_api import Operation
from greylag.domain.project import ProjectRef
from greylag.domain.users import OPERATOR
from greylag.ports import AgentRequest

REF = ProjectRef("ada", "demo")


class House(Harness):
    """A harness for Ada and Zoë."""

    def __init__(self, *, auto: bool = True, activation_timeout: float = 10.0) -> None:
        given = settings(
            users="ada:Ada Lovelace,Zoë:Zoë Ω",
            activation_timeout=activation_timeout,
            secret_key="k" * 32,
            model_url="https://model.example",
        )
        super().__init__(given, auto=auto)

    async def ask(self, operation: Operation[Any], **parts: str) -> Any:
        """Return the JSON that the agent of ada's project demo answers to an operation."""
        request = AgentRequest(operation, parts)
        opening = await self.use_cases.agents.relay(OPERATOR, REF, request)
        async with opening as answer:
            return json.loads(b"".join([chunk async for chunk in answer.body]))
