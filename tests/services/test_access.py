"""Every use case that serves a request asks first whether it may, and for the right action."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.services.house import House

from greylag.common.agent_api import COMMAND_SOCKET, LIST_TERMINALS, ForwardedRequest
from greylag.domain.errors import ForbiddenError
from greylag.domain.project import Desired, ProjectRef
from greylag.domain.users import OPERATOR, Action, Principal
from greylag.ports import AgentRequest, Edit, PageQuery
from greylag.services.messages import NewMessage
from greylag.services.projects import NewProject
from greylag.services.use_cases import UseCases

ZOE = Principal("zoe", "Zoë")
WHO = (ZOE, "ada")
ASKED = ForwardedRequest("GET", "/", [])
AT = (ZOE, ProjectRef("ada", "demo"))


async def send(of: UseCases) -> None:
    async with of.messages.send(*AT, NewMessage("hello")):
        pass


CASES: list[tuple[Callable[[UseCases], Awaitable[Any]], Action]] = [
    (lambda of: of.projects.user(*WHO), Action.PROJECTS_READ),
    (lambda of: of.projects.page(*WHO, PageQuery()), Action.PROJECTS_READ),
    (lambda of: of.projects.get(*AT), Action.PROJECTS_READ),
    (lambda of: of.projects.follow(*AT, 0), Action.PROJECTS_READ),
    (lambda of: of.projects.create(*WHO, NewProject("New")), Action.PROJECTS_WRITE),
    (lambda of: of.projects.edit(*AT, Edit(name="New")), Action.PROJECTS_WRITE),
    (lambda of: of.projects.want(*AT, Desired.ACTIVE), Action.ENVIRONMENT_ACTIVATE),
    (lambda of: of.projects.want(*AT, Desired.INACTIVE), Action.ENVIRONMENT_DEACTIVATE),
    (lambda of: of.projects.want(*AT, Desired.DELETED), Action.PROJECTS_DELETE),
    (lambda of: of.agents.status(*AT), Action.AGENT_READ),
    (lambda of: of.agents.stream_turn(*AT, "t", None), Action.AGENT_READ),
    (lambda of: of.agents.cancel_turn(*AT, "t"), Action.AGENT_WRITE),
    (lambda of: of.agents.confirm(*AT, "t", "c", decision="allow_once"), Action.AGENT_WRITE),
    (lambda of: of.agents.logs(*AT, follow=False, tail=1), Action.LOGS_READ),
    (lambda of: of.agents.socket(*AT, COMMAND_SOCKET, {}), Action.TERMINAL_USE),
    (lambda of: of.agents.relay(*AT, AgentRequest(LIST_TERMINALS, {})), Action.TERMINAL_USE),
    (lambda of: of.agents.forward(*AT, 1, ASKED), Action.PREVIEW_USE),
    (lambda of: of.agents.forward_socket(*AT, 1, ASKED, ()), Action.PREVIEW_USE),
    (send, Action.MESSAGES_SEND),
]


@pytest.mark.parametrize(("ask", "action"), CASES)
@pytest.mark.parametrize("project_id", ["demo", "another"])
async def test_who_may_not_is_refused_before_anything_is_looked_at(
    ask: Callable[[UseCases], Awaitable[Any]], action: Action, project_id: str
) -> None:
    house = House()
    made = await house.use_cases.projects.create(OPERATOR, "ada", NewProject("Demo", project_id))
    with capture_logs() as lines, pytest.raises(ForbiddenError) as refused:
        await ask(house.use_cases)
    assert refused.value.info.code == "forbidden"
    assert lines == [
        {
            "event": "action_refused",
            "log_level": "warning",
            "principal": "zoe",
            "action": action,
            "user_id": "ada",
        }
    ]
    assert await house.use_cases.projects.get(OPERATOR, made.project.ref) == made.project
