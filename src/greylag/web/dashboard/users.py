"""The pages of a user: the selector, the list of projects, live, and a new one."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from greylag.domain.errors import ConfigError, InvalidRequestError, ProjectExistsError
from greylag.domain.project import Status
from greylag.domain.users import Action, User
from greylag.ports import PageQuery
from greylag.services.projects import NewProject
from greylag.web.addresses import project_url, root_path, user_url
from greylag.web.dashboard.pages import (
    USER_PAGE,
    ProjectForm,
    ProjectView,
    form_page,
    html_frame,
    lead,
    project_view,
    render,
    respond_to,
    see,
)
from greylag.web.deps import CallDep, RequestContext, UserCallDep
from greylag.web.stream import closing

STEP = 50
MOST = 500
USER_COOKIE = "greylag_user"
GATHER_SECONDS = 0.15
"""Changes come in bursts: one look serves all that come within this time."""
RECHECK_SECONDS = 60.0
_YEAR_SECONDS = 365 * 24 * 3600

router = APIRouter(include_in_schema=False)


@router.get("/")
async def home(request: Request, call: CallDep) -> Response:
    """Lead to the user whose projects were looked at last, or to the first."""
    known = [user.id for user in await call.use_cases.projects.users(call.principal)]
    if not known:
        raise ConfigError("There are no users.")
    last = unquote(request.cookies.get(USER_COOKIE, ""))
    return see(user_url(last if last in known else known[0]))


@router.get(USER_PAGE)
async def list_projects(request: Request, call: UserCallDep) -> Response:
    """Show a user's projects; htmx gets the list alone."""
    projects = call.use_cases.projects
    page = respond_to(
        request,
        "users.html",
        "fragments/list.html",
        oob=False,
        site=call.site,
        list=await read_list(call, parse_window(request.query_params)),
        users=await projects.users(call.principal),
        user=await projects.user(call.principal, call.user_id),
        statuses=tuple(Status),
    )
    page.set_cookie(
        USER_COOKIE,
        quote(call.user_id, safe=""),
        max_age=_YEAR_SECONDS,
        path=root_path() or "/",
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return page


@router.get(USER_PAGE + "/live")
async def follow_list(request: Request, call: UserCallDep) -> Response:
    """Stream what changes in the list that the address asks for."""
    await call.use_cases.projects.user(call.principal, call.user_id)
    frames = _frames(call, parse_window(request.query_params))
    return call.streams.events(call.ref, closing(frames))


@router.get(USER_PAGE + "/new-project")
async def new_project(request: Request, call: UserCallDep) -> Response:
    """Show an empty form."""
    owner = await _owner(call)
    return _form_page(request, call, owner, ProjectForm(key=secrets.token_hex(16)))


@router.post(USER_PAGE + "/new-project")
async def create_project(request: Request, call: UserCallDep) -> Response:
    """Create a project and lead to it; the form comes back with what is wrong in it."""
    owner = await _owner(call)
    form = ProjectForm.read(await request.form())
    try:
        new = NewProject(form.name, form.project_id or None, form.metadata_object(), form.source())
        made = await call.use_cases.projects.create(call.principal, owner.id, new, form.key or None)
    except (InvalidRequestError, ProjectExistsError) as error:
        return _form_page(request, call, owner, form, error.info.message)
    return lead(request, project_url(made.project.ref))


async def _owner(call: RequestContext) -> User:
    projects = call.use_cases.projects
    return await projects.user(call.principal, call.user_id, Action.PROJECTS_WRITE)


def _form_page(
    request: Request, call: RequestContext, owner: User, form: ProjectForm, error: str | None = None
) -> Response:
    values = {"site": call.site, "user": owner, "project": None, "back": "list"}
    return form_page(request, form, error, **values)


# Which projects a page shows, and how it goes on.


@dataclass(frozen=True, slots=True)
class Window:
    """What an address asks to see: ``show`` projects of a status, from ``cursor`` on."""

    status: Status | None = None
    show: int = STEP
    cursor: str | None = None

    def url(self, user_id: str, path: str = "") -> str:
        """Return the address that asks for this window."""
        query = {
            "status": self.status.value if self.status else None,
            "show": self.show if self.show != STEP else None,
            "cursor": self.cursor,
        }
        return user_url(user_id, path, **query)


@dataclass(frozen=True, slots=True)
class ProjectList:
    """The projects of a window, and the addresses of more."""

    user_id: str
    window: Window
    projects: tuple[ProjectView, ...]
    more_url: str | None
    older_url: str | None

    @property
    def live_url(self) -> str:
        """Where the changes of exactly these projects stream from."""
        return self.window.url(self.user_id, "/live")


def parse_window(query: Mapping[str, str]) -> Window:
    """Read a window from an address.

    Raises:
        InvalidRequestError: it asks for what cannot be.
    """
    try:
        status = Status(query["status"]) if query.get("status") else None
    except ValueError:
        raise InvalidRequestError("status must be one of the five statuses.") from None
    shown = query.get("show", str(STEP))
    if not (shown.isascii() and shown.isdecimal() and 1 <= int(shown[:9]) <= MOST):
        raise InvalidRequestError(f"show must be a number from 1 to {MOST}.")
    return Window(status, int(shown), query.get("cursor") or None)


async def read_list(call: RequestContext, window: Window) -> ProjectList:
    """Return the projects of ``window`` as they are now."""
    asked = PageQuery(limit=window.show, cursor=window.cursor, status=window.status)
    page = await call.use_cases.projects.page(call.principal, call.user_id, asked)
    more = older = None
    if page.cursor and window.show + STEP <= MOST:
        more = replace(window, show=window.show + STEP).url(call.user_id)
    elif page.cursor:
        older = Window(window.status, cursor=page.cursor).url(call.user_id)
    return ProjectList(
        user_id=call.user_id,
        window=window,
        projects=tuple(project_view(project) for project in page.projects),
        more_url=more,
        older_url=older,
    )


# The live side of the list: a stream of the pieces that have changed.


async def _frames(call: RequestContext, window: Window) -> AsyncIterator[bytes]:
    """Yield the list as it is now, then what changes in it, until closed."""
    with call.use_cases.projects.changes() as news:
        shown: ProjectList | None = None
        while True:
            current = await read_list(call, window)
            html = _list_changes(shown, current)
            if html:
                yield html_frame(html)
            shown = current
            if await news.changed(RECHECK_SECONDS):
                await asyncio.sleep(GATHER_SECONDS)


def _list_changes(shown: ProjectList | None, current: ProjectList) -> str:
    """Return the cards that differ; the whole list when it is not made of the same projects."""
    if shown is None or _frame_of(shown) != _frame_of(current):
        return render("fragments/list.html", list=current, oob=True)
    pairs = zip(shown.projects, current.projects, strict=True)
    changed = [after for before, after in pairs if before != after]
    return "".join(render("fragments/card.html", project=one, oob=True) for one in changed)


def _frame_of(shown: ProjectList) -> tuple[object, ...]:
    keys = tuple(project.key for project in shown.projects)
    return keys, shown.more_url, shown.older_url
