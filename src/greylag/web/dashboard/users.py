"""The pages of a user: the selector, the projects, a new one."""

import secrets
from urllib.parse import quote, unquote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from greylag.domain.errors import ConfigError, InvalidRequestError, ProjectExistsError
from greylag.domain.project import ProjectRef, Status
from greylag.domain.users import User
from greylag.services.projects import NewProject
from greylag.web.api.deps import CallDep, UserId
from greylag.web.dashboard.lists import parse_window, read_list
from greylag.web.dashboard.live import list_frames
from greylag.web.dashboard.pages import ProjectForm, Site, lead, respond_to, see
from greylag.web.dashboard.views import project_url, user_url
from greylag.web.stream import closing

USER_COOKIE = "greylag_user"


_YEAR_SECONDS = 365 * 24 * 3600


def add_user_routes(router: APIRouter, site: Site) -> None:
    """Add the pages of users and of their lists of projects to ``router``."""
    _add_selector(router)
    _add_list(router, site)
    _add_creation(router, site)


def _add_selector(router: APIRouter) -> None:
    @router.get("/")
    async def home(request: Request, call: CallDep) -> Response:
        known = [user.id for user in call.use_cases.projects.users(call.principal)]
        if not known:
            raise ConfigError("There are no users.")
        last = unquote(request.cookies.get(USER_COOKIE, ""))
        return see(user_url(last if last in known else known[0]))

    @router.get("/users")
    async def choose(call: CallDep, user: str = "") -> Response:
        return see(user_url(call.use_cases.projects.user(call.principal, user).id))


def _add_list(router: APIRouter, site: Site) -> None:
    @router.get("/users/{user}")
    async def projects(request: Request, call: CallDep, user: UserId) -> Response:
        window = parse_window(request.query_params)
        found = await read_list(call, user, window)
        page = respond_to(
            request,
            "users.html",
            "fragments/list.html",
            oob=False,
            site=site,
            users=call.use_cases.projects.users(call.principal),
            user=call.use_cases.projects.user(call.principal, user),
            list=found,
            statuses=tuple(Status),
        )
        page.set_cookie(
            USER_COOKIE,
            quote(user, safe=""),
            max_age=_YEAR_SECONDS,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return page

    @router.get("/users/{user}/live")
    async def live(request: Request, call: CallDep, user: UserId) -> Response:
        call.use_cases.projects.user(call.principal, user)
        frames = list_frames(call, user, parse_window(request.query_params))
        return call.streams.events(ProjectRef(user, ""), closing(frames))


def _add_creation(router: APIRouter, site: Site) -> None:
    def form_page(
        request: Request, user: User, form: ProjectForm, error: str | None = None
    ) -> Response:
        return respond_to(
            request,
            "form.html",
            "fragments/project_form.html",
            status=422 if error else 200,
            site=site,
            user=user,
            project=None,
            form=form,
            back="list",
            error=error,
        )

    @router.get("/users/{user}/new-project")
    async def new_project(request: Request, call: CallDep, user: UserId) -> Response:
        owner = call.use_cases.projects.user(call.principal, user)
        return form_page(request, owner, ProjectForm(key=secrets.token_hex(16)))

    @router.post("/users/{user}/new-project")
    async def create(request: Request, call: CallDep, user: UserId) -> Response:
        projects = call.use_cases.projects
        owner = projects.user(call.principal, user)
        form = ProjectForm.read(await request.form())
        try:
            new = NewProject(form.name, form.project_id or None, form.metadata_object())
            made = await projects.create(call.principal, user, new, form.key or None)
        except (InvalidRequestError, ProjectExistsError) as error:
            return form_page(request, owner, form, error.info.message)
        return lead(request, project_url(user, made.project.project_id))
