"""A project's page, and what its forms do: edit, activate, deactivate, delete."""

from collections.abc import Sequence
from datetime import UTC, datetime

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from greylag.domain.errors import InvalidRequestError
from greylag.domain.events import Event
from greylag.domain.project import Desired, Project
from greylag.domain.users import Principal, User
from greylag.ports.store import Edit
from greylag.services.projects import EVENTS_AT_ONCE, Projects
from greylag.web.dashboard.asking import Asker, see
from greylag.web.dashboard.board import Back, Board, back_of
from greylag.web.dashboard.conversations import TURNS_SHOWN, read_conversation
from greylag.web.dashboard.forms import ProjectForm, field
from greylag.web.dashboard.live import project_frames
from greylag.web.dashboard.pages import is_fragment_request, respond
from greylag.web.dashboard.views import ProjectView, event_view, project_url, project_view, user_url
from greylag.web.stream import closing

_AT = "/users/{user}/projects/{project}"


def add_project_routes(router: APIRouter, board: Board) -> None:
    """Add the page of a project and its forms to ``router``."""
    _add_page(router, board)
    _add_editing(router, board)
    _add_verbs(router, board)


def _add_page(router: APIRouter, board: Board) -> None:
    @router.get(_AT)
    async def page(
        principal: Asker,
        user: str,
        project: str,
        session: str | None = None,
        turns: int = TURNS_SHOWN,
    ) -> Response:
        owner = board.use_cases.projects.user(principal, user)
        found = await board.use_cases.projects.get(principal, user, project)
        now = datetime.now(UTC)
        events = await _log(board.use_cases.projects, principal, found)
        view = project_view(found, now)
        shown = max(1, min(turns, 10_000))
        return respond(
            "project.html",
            site=board.site,
            user=owner,
            project=view,
            events=[event_view(event, now) for event in events],
            last_event=events[-1].seq if events else 0,
            conversation=await read_conversation(
                board.use_cases.agents, principal, view, session, shown
            ),
            turns_shown=shown,
        )

    @router.get(_AT + "/live")
    async def live(principal: Asker, request: Request, user: str, project: str) -> Response:
        found = await board.use_cases.projects.get(principal, user, project)
        last = request.headers.get("last-event-id") or request.query_params.get("after", "0")
        if not (last.isascii() and last.isdecimal() and len(last) < 16):  # noqa: PLR2004 - fits every store's integers
            raise InvalidRequestError("after must be the number of an event.")
        frames = project_frames(board.use_cases, principal, found, int(last))
        return board.streams.events(found.ref, closing(frames))


async def _log(projects: Projects, principal: Principal, project: Project) -> Sequence[Event]:
    """Return the newest events of the log, 100 at most."""
    newest: Sequence[Event] = ()
    after = 0
    while page := await projects.event_page(principal, project.user_id, project.project_id, after):
        newest = [*newest, *page][-EVENTS_AT_ONCE:]
        after = page[-1].seq
    return newest


def _add_editing(router: APIRouter, board: Board) -> None:
    def form_page(
        request: Request,
        owner: User,
        project: ProjectView,
        form: ProjectForm,
        back: Back,
        error: str | None = None,
    ) -> Response:
        return respond(
            "fragments/project_form.html" if is_fragment_request(request) else "form.html",
            status=422 if error else 200,
            site=board.site,
            user=owner,
            project=project,
            form=form,
            back=back,
            error=error,
        )

    @router.get(_AT + "/edit")
    async def edit_form(
        request: Request, principal: Asker, user: str, project: str, back: str = ""
    ) -> Response:
        owner = board.use_cases.projects.user(principal, user)
        found = await board.use_cases.projects.get(principal, user, project)
        view = project_view(found, datetime.now(UTC))
        form = ProjectForm(name=found.name, metadata=view.metadata)
        return form_page(request, owner, view, form, back_of(back))

    @router.post(_AT + "/edit")
    async def edit(request: Request, principal: Asker, user: str, project: str) -> Response:
        owner = board.use_cases.projects.user(principal, user)
        found = await board.use_cases.projects.get(principal, user, project)
        sent = await request.form()
        form, back = ProjectForm.read(sent), back_of(field(sent, "back"))
        try:
            change = Edit(form.name, form.metadata_object())
            changed = await board.use_cases.projects.edit(principal, user, project, change)
        except InvalidRequestError as error:
            view = project_view(found, datetime.now(UTC))
            return form_page(request, owner, view, form, back, error.info.message)
        return _changed(request, changed, back)


def _add_verbs(router: APIRouter, board: Board) -> None:
    @router.get(_AT + "/delete")
    async def ask(
        request: Request, principal: Asker, user: str, project: str, back: str = ""
    ) -> Response:
        found = await board.use_cases.projects.get(principal, user, project)
        return respond(
            "fragments/delete_form.html" if is_fragment_request(request) else "delete.html",
            site=board.site,
            user=board.use_cases.projects.user(principal, user),
            project=project_view(found, datetime.now(UTC)),
            back=back_of(back),
        )

    def add_verb(verb: str, desired: Desired) -> None:
        @router.post(f"{_AT}/{verb}", name=verb)
        async def act(request: Request, principal: Asker, user: str, project: str) -> Response:
            back = back_of(field(await request.form(), "back"))
            found = await board.use_cases.projects.want(principal, user, project, desired)
            return _changed(request, found, back)

    add_verb("activate", Desired.ACTIVE)
    add_verb("deactivate", Desired.INACTIVE)
    add_verb("delete", Desired.DELETED)


def _changed(request: Request, project: Project, back: Back) -> Response:
    """Return the piece of the open page that shows ``project``, or lead back to a whole page.

    The dialog that was open, if any, closes (``HX-Trigger``).
    """
    if is_fragment_request(request):
        view = project_view(project, datetime.now(UTC))
        response = respond("fragments/project_piece.html", project=view, back=back)
        response.headers["HX-Trigger"] = "close-dialog"
        response.headers["HX-Reswap"] = "none"
        return response
    if back == "list" or project.desired is Desired.DELETED:
        return see(user_url(project.user_id))
    return see(project_url(project.user_id, project.project_id))
