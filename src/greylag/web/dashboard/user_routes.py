"""The pages of a user: the selector, the projects, a new one."""

import secrets
from urllib.parse import quote, unquote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from greylag.domain.errors import ConfigError, InvalidRequestError, ProjectExistsError
from greylag.domain.project import ProjectRef, Status
from greylag.domain.users import Principal
from greylag.services.projects import NewProject
from greylag.web.dashboard.asking import Asker, see
from greylag.web.dashboard.board import Board
from greylag.web.dashboard.forms import ProjectForm
from greylag.web.dashboard.lists import parse_window, read_list
from greylag.web.dashboard.live import list_frames
from greylag.web.dashboard.pages import is_fragment_request, respond
from greylag.web.dashboard.views import project_url, user_url
from greylag.web.stream import closing

USER_COOKIE = "greylag_user"
_YEAR_SECONDS = 365 * 24 * 3600


def add_user_routes(router: APIRouter, board: Board) -> None:
    """Add the pages of users and of their lists of projects to ``router``."""
    _add_selector(router, board)
    _add_list(router, board)
    _add_creation(router, board)


def _add_selector(router: APIRouter, board: Board) -> None:
    @router.get("/")
    async def home(request: Request, principal: Asker) -> Response:
        known = [user.id for user in board.use_cases.projects.users(principal)]
        if not known:
            raise ConfigError("There are no users.")
        last = unquote(request.cookies.get(USER_COOKIE, ""))
        return see(user_url(last if last in known else known[0]))

    @router.get("/users")
    async def choose(principal: Asker, user: str = "") -> Response:
        return see(user_url(board.use_cases.projects.user(principal, user).id))


def _add_list(router: APIRouter, board: Board) -> None:
    @router.get("/users/{user}")
    async def projects(request: Request, principal: Asker, user: str) -> Response:
        window = parse_window(request.query_params)
        found = await read_list(board.use_cases.projects, principal, user, window)
        if is_fragment_request(request):
            return respond("fragments/list.html", list=found, oob=False)
        page = respond(
            "users.html",
            site=board.site,
            users=board.use_cases.projects.users(principal),
            user=board.use_cases.projects.user(principal, user),
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
    async def live(request: Request, principal: Asker, user: str) -> Response:
        board.use_cases.projects.user(principal, user)
        frames = list_frames(board.use_cases, principal, user, parse_window(request.query_params))
        return board.streams.events(ProjectRef(user, ""), closing(frames))


def _add_creation(router: APIRouter, board: Board) -> None:
    def form_page(
        principal: Principal, user: str, form: ProjectForm, error: str | None, *, bare: bool
    ) -> Response:
        return respond(
            "fragments/project_form.html" if bare else "form.html",
            status=422 if error else 200,
            site=board.site,
            user=board.use_cases.projects.user(principal, user),
            project=None,
            form=form,
            error=error,
            back="list",
        )

    @router.get("/users/{user}/new-project")
    async def new_project(request: Request, principal: Asker, user: str) -> Response:
        form = ProjectForm(key=secrets.token_hex(16))
        return form_page(principal, user, form, None, bare=is_fragment_request(request))

    @router.post("/users/{user}/new-project")
    async def create(request: Request, principal: Asker, user: str) -> Response:
        form = ProjectForm.read(await request.form())
        bare = is_fragment_request(request)
        try:
            new = NewProject(form.name, form.project_id or None, form.metadata_object())
            made = await board.use_cases.projects.create(principal, user, new, form.key or None)
        except (InvalidRequestError, ProjectExistsError) as error:
            return form_page(principal, user, form, error.info.message, bare=bare)
        url = project_url(user, made.project.project_id)
        return Response(headers={"HX-Redirect": url}) if bare else see(url)
