"""Whom a project is shared with: shown to all its members, changed by its owner; and whose it is,
which administrators change.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from greylag.domain.errors import ConflictError, ErrorInfo, LimitExceededError, UserNotFoundError
from greylag.domain.users import Action, MemberRole, User
from greylag.web.addresses import address, project_url
from greylag.web.dashboard.accounts import look_needed
from greylag.web.dashboard.pages import (
    FORM_REFUSALS,
    PROJECT_PAGE,
    form_field,
    lead,
    project_view,
    see,
    words_of,
)
from greylag.web.deps import ProjectCallDep, RequestContext, pages_router

MEMBERS_PAGE = PROJECT_PAGE + "/members"
NAMES_OFFERED = 50

router = pages_router()


@dataclass(frozen=True, slots=True)
class MemberView:
    """Somebody with whom a project is shared."""

    user_id: str
    name: str
    role: MemberRole


@router.get(MEMBERS_PAGE)
async def show_members(request: Request, call: ProjectCallDep) -> Response:
    """Show the members, and to whoever may share the project a form."""
    return await look_needed(request, call, call.ref) or await _page(call)


@router.post(MEMBERS_PAGE)
async def share(request: Request, call: ProjectCallDep) -> Response:
    """Share the project with whom an id or a whole email address names, or change their role."""
    form = await request.form()
    named = form_field(form, "member").strip()
    try:
        role = MemberRole(form_field(form, "role"))
    except ValueError:
        return await _page(call, named, "Choose a role.")
    principal, ref = call.at
    await call.use_cases.gate.authorize(principal, Action.MEMBERS_WRITE, ref)
    try:
        user = await call.use_cases.people.named(named)
        await call.use_cases.members.share(principal, ref, user.id, role)
    except (*FORM_REFUSALS, UserNotFoundError) as error:
        return await _page(call, named, words_of(error))
    return see(f"{project_url(ref)}/members")


@router.post(MEMBERS_PAGE + "/{member}/remove")
async def unshare(request: Request, call: ProjectCallDep, member: str) -> Response:
    """Take the project back from a member, who may leave it themselves."""
    await call.use_cases.members.unshare(*call.at, member)
    left = member == call.principal.user_id
    return lead(request, address("/") if left else f"{project_url(call.ref)}/members")


@router.post(PROJECT_PAGE + "/hand-over")
async def hand_over(request: Request, call: ProjectCallDep) -> Response:
    """Give the project to whom an id or a whole email address names, and lead to the users."""
    named = form_field(await request.form(), "owner").strip()
    principal, ref = call.at
    await call.use_cases.gate.authorize(principal, Action.PROJECTS_HAND_OVER, ref)
    try:
        user = await call.use_cases.people.named(named)
        given = await call.use_cases.accounts.hand_over(principal, ref, user.id)
    except (ConflictError, LimitExceededError, UserNotFoundError) as error:
        return await _page(call, owner=named, owner_error=error.info)
    return see(project_url(given.ref))


async def _page(
    call: RequestContext,
    named: str = "",
    error: str | None = None,
    *,
    owner: str = "",
    owner_error: ErrorInfo | None = None,
) -> Response:
    gate, users = call.use_cases.gate, call.use_cases.people
    found = await call.use_cases.members.of(*call.at)
    may_hand_over = await gate.may(call.principal, Action.PROJECTS_HAND_OVER, call.ref)
    names = {user.id: user.display_name for user in await users.users()} if found else {}
    shares = await gate.may(call.principal, Action.MEMBERS_WRITE, call.ref)
    project = await call.use_cases.projects.get(*call.at)
    return call.page(
        "members.html",
        status=422 if error or owner_error else 200,
        user=await users.get(call.user_id),
        project=project_view(project),
        members=[
            MemberView(one.user_id, names.get(one.user_id, one.user_id), one.role)
            for one in sorted(found, key=lambda one: names.get(one.user_id, "").casefold())
        ],
        me=call.principal.user_id,
        shares=shares,
        may_hand_over=may_hand_over,
        offered=await _offered(call, {one.user_id for one in found}) if shares else (),
        owners=await _offered(call, set()) if may_hand_over else (),
        owner=owner,
        owner_error=owner_error,
        named=named,
        error=error,
    )


async def _offered(call: RequestContext, members: set[str]) -> Sequence[User]:
    """Return some users of whom whoever asks knows, with whom the project is not shared yet."""
    known = await call.use_cases.gate.visible(call.principal)
    left = [user for user in known if user.id not in members | {call.user_id}]
    return left[:NAMES_OFFERED]
