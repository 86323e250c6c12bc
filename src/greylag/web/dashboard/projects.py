"""A project's page, and what its forms do: edit, activate, deactivate, delete."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.requests import Request
from starlette.responses import Response

from greylag.domain.errors import InvalidRequestError
from greylag.domain.project import Desired, Event, Project
from greylag.domain.users import User
from greylag.ports import Edit
from greylag.services.projects import EVENTS_AT_ONCE
from greylag.web.api.deps import ProjectCall, ProjectCallDep
from greylag.web.dashboard.conversations import TURNS_SHOWN, read_conversation
from greylag.web.dashboard.live import project_frames
from greylag.web.dashboard.pages import (
    Back,
    ProjectForm,
    Site,
    back_of,
    field,
    is_fragment_request,
    respond,
    respond_to,
    see,
)
from greylag.web.dashboard.views import ProjectView, event_view, project_url, project_view, user_url
from greylag.web.stream import closing

MOST_TURNS = 10_000
MAX_SEQ = 2**53 - 1
"""Whole numbers up to here are exact in every browser."""
_AT = "/users/{user}/projects/{project}"


@dataclass(frozen=True, slots=True)
class Shown:
    """A project as it is now, and whose it is."""

    owner: User
    project: Project
    view: ProjectView


def add_project_routes(router: APIRouter, site: Site) -> None:
    """Add the page of a project and its forms to ``router``."""
    _add_page(router, site)
    _add_editing(router, site)
    _add_verbs(router, site)


async def _show(call: ProjectCall) -> Shown:
    owner = call.use_cases.projects.user(call.principal, call.ref.user_id)
    project = await call.use_cases.projects.get(*call.at)
    return Shown(owner, project, project_view(project, datetime.now(UTC)))


def _add_page(router: APIRouter, site: Site) -> None:
    @router.get(_AT)
    async def page(
        call: ProjectCallDep, session: str | None = None, turns: int = TURNS_SHOWN
    ) -> Response:
        shown = await _show(call)
        events = await _log(call)
        now = datetime.now(UTC)
        limit = max(1, min(turns, MOST_TURNS))
        return respond(
            "project.html",
            site=site,
            user=shown.owner,
            project=shown.view,
            events=[event_view(event, now) for event in events],
            last_event=events[-1].seq if events else 0,
            conversation=await read_conversation(call, shown.view, session, limit),
            turns_shown=limit,
        )

    @router.get(_AT + "/live")
    async def live(
        call: ProjectCallDep,
        after: Annotated[int, Query(ge=0, le=MAX_SEQ)] = 0,
        last_event_id: Annotated[int | None, Header(ge=0, le=MAX_SEQ)] = None,
    ) -> Response:
        project = await call.use_cases.projects.get(*call.at)
        frames = project_frames(call, project, after if last_event_id is None else last_event_id)
        return call.streams.events(call.ref, closing(frames))


async def _log(call: ProjectCall) -> Sequence[Event]:
    """Return the newest events of the log, 100 at most."""
    newest: Sequence[Event] = ()
    after = 0
    while page := await call.use_cases.projects.event_page(*call.at, after):
        newest = [*newest, *page][-EVENTS_AT_ONCE:]
        after = page[-1].seq
    return newest


def _add_editing(router: APIRouter, site: Site) -> None:
    def form_page(
        request: Request, shown: Shown, form: ProjectForm, back: Back, error: str | None = None
    ) -> Response:
        return respond_to(
            request,
            "form.html",
            "fragments/project_form.html",
            status=422 if error else 200,
            site=site,
            user=shown.owner,
            project=shown.view,
            form=form,
            back=back,
            error=error,
        )

    @router.get(_AT + "/edit")
    async def edit_form(request: Request, call: ProjectCallDep, back: str = "") -> Response:
        shown = await _show(call)
        form = ProjectForm(name=shown.view.name, metadata=shown.view.metadata)
        return form_page(request, shown, form, back_of(back))

    @router.post(_AT + "/edit")
    async def edit(request: Request, call: ProjectCallDep) -> Response:
        sent = await request.form()
        form, back = ProjectForm.read(sent), back_of(field(sent, "back"))
        try:
            change = Edit(form.name, form.metadata_object())
            changed = await call.use_cases.projects.edit(*call.at, change)
        except InvalidRequestError as error:
            return form_page(request, await _show(call), form, back, error.info.message)
        return _changed(request, changed, back)


def _add_verbs(router: APIRouter, site: Site) -> None:
    @router.get(_AT + "/delete")
    async def ask(request: Request, call: ProjectCallDep, back: str = "") -> Response:
        shown = await _show(call)
        return respond_to(
            request,
            "delete.html",
            "fragments/delete_form.html",
            site=site,
            user=shown.owner,
            project=shown.view,
            back=back_of(back),
        )

    def add_verb(verb: str, desired: Desired) -> None:
        @router.post(f"{_AT}/{verb}", name=verb)
        async def act(request: Request, call: ProjectCallDep) -> Response:
            back = back_of(field(await request.form(), "back"))
            found = await call.use_cases.projects.want(*call.at, desired)
            return _changed(request, found, back)

    add_verb("activate", Desired.ACTIVE)
    add_verb("deactivate", Desired.INACTIVE)
    add_verb("delete", Desired.DELETED)


def _changed(request: Request, project: Project, back: Back) -> Response:
    """Return the piece of the open page that shows ``project``, or lead back to a whole page.

    The dialog that was open, if any, closes after that (``HX-Trigger-After-Settle``).
    """
    if is_fragment_request(request):
        view = project_view(project, datetime.now(UTC))
        response = respond("fragments/project_piece.html", project=view, back=back)
        response.headers["HX-Trigger-After-Settle"] = "close-dialog"
        response.headers["HX-Reswap"] = "none"
        return response
    if back == "list" or project.desired is Desired.DELETED:
        return see(user_url(project.user_id))
    return see(project_url(project.user_id, project.project_id))
