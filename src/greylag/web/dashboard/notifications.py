"""Notifications in a user's account, and the page that one leads to: it answers an agent's question
with one thumb.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from greylag.common import agent_api
from greylag.common.agent_api import Question
from greylag.common.clock import parse_rfc3339
from greylag.common.typed import parse_json
from greylag.domain.errors import (
    ConfirmationNotFoundError,
    ConfirmationSettledError,
    ErrorInfo,
    GreylagError,
    InvalidRequestError,
    NotificationsOffError,
)
from greylag.web.addresses import address, site_of, user_url
from greylag.web.api.relay import ask
from greylag.web.dashboard.accounts import ACCOUNT, ACCOUNT_PAGE, look_needed, parsed
from greylag.web.dashboard.pages import (
    FORM_REFUSALS,
    PROJECT_PAGE,
    form_field,
    lead,
    project_view,
    see,
)
from greylag.web.deps import ProjectCallDep, RequestContext, UserCallDep, pages_router
from greylag.web.schemas import NewWebhookIn

ANSWER_PAGE = PROJECT_PAGE + "/turns/{turn}/answer"
_SAID: Mapping[str, str] = {
    "allow_once": "You allowed it.",
    "allow_session": "You allowed it, and this tool for the rest of the session.",
    "reject_once": "You declined it.",
}
_IN_MINUTES = 90
_HOUR = 3600

router = pages_router()


@router.get(ACCOUNT_PAGE + "/new-webhook")
async def new_webhook(call: UserCallDep) -> Response:
    """Show the form for a new webhook."""
    return await _webhook_form(call, FormData())


@router.post(ACCOUNT_PAGE + "/new-webhook")
async def add_webhook(request: Request, call: UserCallDep) -> Response:
    """Add a webhook and show its secret, this once; the form comes back with what is wrong."""
    form = await request.form()
    try:
        new = parsed(NewWebhookIn, {name: form_field(form, name) for name in ("name", "url")})
        secret, target = await call.use_cases.notifications.add_webhook(
            call.principal, call.user_id, new.name, site_of(request), new.url.strip()
        )
    except (*FORM_REFUSALS, NotificationsOffError) as error:
        return await _webhook_form(call, form, error.info)
    page = call.page("webhook_made.html", target=target, secret=secret)
    page.headers["cache-control"] = "no-store"
    return page


async def _webhook_form(
    call: RequestContext, form: FormData, error: ErrorInfo | None = None
) -> Response:
    user = await call.use_cases.accounts.show(call.principal, call.user_id)
    return call.form("new_webhook.html", form, error, user=user)


@router.post(ACCOUNT_PAGE + "/notifications/{target}/test")
async def test_target(request: Request, call: UserCallDep, target: str) -> Response:
    """Tell a target something, and show in its row what came of it."""
    await call.use_cases.notifications.test(call.principal, call.user_id, target)
    return lead(request, user_url(call.user_id, ACCOUNT))


@router.post(ACCOUNT_PAGE + "/notifications/{target}/remove")
async def remove_target(request: Request, call: UserCallDep, target: str) -> Response:
    """Tell a target nothing any more."""
    await call.use_cases.notifications.remove(call.principal, call.user_id, target)
    return lead(request, user_url(call.user_id, ACCOUNT))


@dataclass(frozen=True, slots=True)
class QuestionView:
    """A question as its page shows it: of which tool, and what it is given, as code; ``lasting``:
    it may be allowed for the rest of the session; in ``left`` seconds it is declined.
    """

    confirmation: str
    tool: str
    code: str
    shortened: bool
    lasting: bool
    left: int | None

    @property
    def left_words(self) -> str:
        """When it is declined, as the page's script says it too."""
        if self.left is None or self.left < 1:
            return "now"
        if self.left >= _HOUR:
            return f"in {self.left // _HOUR} h"
        return f"in {self.left // 60} min" if self.left >= _IN_MINUTES else f"in {self.left} s"

    @classmethod
    def of(cls, question: Question) -> "QuestionView":
        """Return how to show what an environment, which may say anything, asks."""
        code = question.arguments[: agent_api.MOST_ARGUMENTS]
        shortened = question.shortened or code != question.arguments
        try:
            given = parse_json(code)
        except ValueError:
            given = None
        tool = question.tool_name.rpartition("__")[2][:100]
        if isinstance(given, dict) and given.keys() == {"command"} and tool == "shell":
            code = str(given["command"])
        elif given is not None:
            code = json.dumps(given, indent=2, ensure_ascii=False)
        lasting = "allow_session" in question.decisions
        left = _seconds_left(question.expires_at)
        return cls(question.confirmation_id, tool, code, shortened, lasting, left)


def _seconds_left(end: str | None) -> int | None:
    try:
        left = parse_rfc3339(end or "") - datetime.now(UTC)
    except ValueError:
        return None
    return max(0, int(left.total_seconds()))


@router.get(ANSWER_PAGE)
async def show_question(
    request: Request, call: ProjectCallDep, turn: str, said: str = "", choice: str = ""
) -> Response:
    """Show what a turn asks, or how it stands, after an answer what came of that. Nothing is
    answered by this: ``choice`` is what was pressed in the notification, and comes first here.
    """
    if (asked := await look_needed(request, call, call.ref)) is not None:
        return asked
    return await _answer_page(call, turn, said=_SAID.get(said, ""), choice=choice)


@router.post(ANSWER_PAGE)
async def answer_question(request: Request, call: ProjectCallDep, turn: str) -> Response:
    """Answer a question, and show what came of it."""
    form = await request.form()
    decision = agent_api.DECISIONS.get(form_field(form, "decision"))
    if decision is None:
        raise InvalidRequestError("decision must be allow_once, allow_session or reject_once.")
    confirmation = form_field(form, "confirmation")
    try:
        await call.use_cases.agents.confirm(*call.at, turn, confirmation, decision=decision)
    except (ConfirmationNotFoundError, ConfirmationSettledError) as error:
        return await _answer_page(call, turn, error=error)
    return see(f"{address(call.ref.path)}/turns/{quote(turn, safe='')}/answer?said={decision}")


async def _answer_page(
    call: RequestContext,
    turn: str,
    *,
    said: str = "",
    choice: str = "",
    error: GreylagError | None = None,
) -> Response:
    project = await call.use_cases.projects.get(*call.at)
    found = await ask(call, agent_api.SHOW_TURN, turn=turn)
    return call.page(
        "answer.html",
        status=409 if error else 200,
        project=project_view(project),
        turn=found,
        question=found.question and QuestionView.of(found.question),
        said=said,
        choice=choice,
        error=error and error.info,
    )
