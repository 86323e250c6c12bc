"""A project's page, live, how it wakes, and its forms: edit, activate, deactivate, delete."""

import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Header, Query
from starlette.requests import Request
from starlette.responses import Response

from greylag.common import sse
from greylag.common.concurrent import beside, merged
from greylag.domain.errors import ErrorInfo, ProjectNotFoundError
from greylag.domain.project import Desired, Event, Project, Status
from greylag.domain.users import Action, User
from greylag.services.projects import Edit
from greylag.web.addresses import origin_of, project_url, user_url
from greylag.web.dashboard.accounts import look_needed
from greylag.web.dashboard.conversations import TURNS_SHOWN, bounded, read_conversation
from greylag.web.dashboard.pages import (
    FORM_REFUSALS,
    PROJECT_PAGE,
    Back,
    ProjectForm,
    ProjectView,
    back_of,
    form_field,
    form_page,
    html_frame,
    is_fragment_request,
    metadata_text,
    piece,
    project_view,
    render,
    respond,
    see,
    words_of,
)
from greylag.web.dashboard.rail import (
    RECHECK_SECONDS,
    project_rows,
    rail_frames,
    read_projects,
    read_rail,
)
from greylag.web.deps import ProjectCallDep, RequestContext, pages_router
from greylag.web.request_log import POLICY
from greylag.web.stream import closing

if TYPE_CHECKING:
    from greylag.web.preview_links import PreviewLinks

MAX_SEQ = 2**53 - 1
"""Whole numbers up to here are exact in every browser."""

router = pages_router()


@router.get(PROJECT_PAGE)
async def show_project(
    request: Request, call: ProjectCallDep, session: str | None = None, turns: int = TURNS_SHOWN
) -> Response:
    """Show a project with its log, and a session with its last ``turns`` turns."""
    if (asked := await look_needed(request, call, call.ref)) is not None:
        return asked
    owner, project = await _found(call)
    view = project_view(project)
    limit = bounded(turns)
    async with (
        beside(call.use_cases.projects.events(project), "events of a page") as log,
        beside(read_projects(call), "projects of a page") as listed,
    ):
        said = await read_conversation(call, view, session, limit)
        events, projects = await log, await listed
    with call.use_cases.activities.watch() as watch:
        rows = project_rows(projects, watch)
    response = call.page(
        "project.html",
        rail=await read_rail(
            call, rows=rows, shown=view, sessions=said.sessions, selected=said.selected
        ),
        user=owner,
        project=view,
        writes=await call.use_cases.gate.may(call.principal, Action.FILES_WRITE, call.ref),
        events=events,
        last_event=project.last_seq,
        waking=waking(project, events),
        model=said.model,
        conversation=said,
        turns_shown=limit,
        message_key=secrets.token_hex(16),
        may_send=not view.deleting
        and await call.use_cases.gate.may(call.principal, Action.MESSAGES_SEND, call.ref),
    )
    links: PreviewLinks = request.app.state.preview_links
    response.headers[POLICY] = links.content_policy(origin_of(request))
    return response


@router.get(PROJECT_PAGE + "/live")
async def follow_project(
    call: ProjectCallDep,
    after: Annotated[int, Query(ge=0, le=MAX_SEQ)] = 0,
    rail: str = "",
    last_event_id: Annotated[int | None, Header(ge=0, le=MAX_SEQ)] = None,
) -> Response:
    """Stream what changes on the page, whose rail has the digest ``rail``."""
    project = await call.use_cases.projects.get(*call.at)
    frames = merged(
        _frames(call, project, after if last_event_id is None else last_event_id),
        rail_frames(call, rail, project_view(project)),
    )
    # To who states a reason it may tell conversations too, and that ends with the reason. All else
    # is seen without one.
    states_one = call.principal.reason_for(call.user_id)
    action = Action.AGENT_READ if states_one else None
    return call.streams.events(*call.at, closing(frames), action)


@router.get(PROJECT_PAGE + "/edit")
async def show_edit_form(request: Request, call: ProjectCallDep, back: str = "") -> Response:
    """Show the form with what can be changed."""
    values = await _values(call, back)
    view = values["project"]
    return form_page(request, ProjectForm(name=view.name, metadata=values["metadata"]), **values)


@router.post(PROJECT_PAGE + "/edit")
async def edit_project(request: Request, call: ProjectCallDep) -> Response:
    """Change the project; the form comes back with what is wrong in it."""
    sent = await request.form()
    form, back = ProjectForm.read(sent), back_of(form_field(sent, "back"))
    try:
        change = Edit(form.name, form.metadata_object())
        changed = await call.use_cases.projects.edit(*call.at, change)
    except FORM_REFUSALS as error:
        return form_page(request, form, words_of(error), **await _values(call, back))
    return _changed(request, call, changed, back)


@router.get(PROJECT_PAGE + "/delete")
async def ask_to_delete(request: Request, call: ProjectCallDep, back: str = "") -> Response:
    """Ask whether the project is really to be deleted."""
    values = await _values(call, back)
    return piece(request, "fragments/delete_form.html", **values)


@router.get(PROJECT_PAGE + "/endpoint")
async def show_endpoint(request: Request, call: ProjectCallDep) -> Response:
    """Show where programs find the project, and the facts of it."""
    values = await _values(call, "project")
    return piece(request, "fragments/endpoint.html", origin=origin_of(request), **values)


@router.post(PROJECT_PAGE + "/activate")
async def activate_project(request: Request, call: ProjectCallDep) -> Response:
    """Want it active."""
    return await _want(request, call, Desired.ACTIVE)


@router.post(PROJECT_PAGE + "/deactivate")
async def deactivate_project(request: Request, call: ProjectCallDep) -> Response:
    """Want it inactive."""
    return await _want(request, call, Desired.INACTIVE)


@router.post(PROJECT_PAGE + "/delete")
async def delete_project(request: Request, call: ProjectCallDep) -> Response:
    """Want it gone."""
    return await _want(request, call, Desired.DELETED)


async def _want(request: Request, call: RequestContext, desired: Desired) -> Response:
    back = back_of(form_field(await request.form(), "back"))
    return _changed(request, call, await call.use_cases.projects.want(*call.at, desired), back)


async def _found(call: RequestContext) -> tuple[User, Project]:
    gate, projects = call.use_cases.gate, call.use_cases.projects
    user = await gate.authorize(call.principal, Action.PROJECTS_LIST, call.user_id)
    return user, await projects.get(*call.at)


async def _values(call: RequestContext, back: str) -> dict[str, Any]:
    """Return what the templates of the forms are given."""
    owner, project = await _found(call)
    view = project_view(project)
    return {
        "site": call.site,
        "rail": await read_rail(call),
        "user": owner,
        "project": view,
        "metadata": metadata_text(project.metadata),
        "back": back_of(back),
    }


def _changed(request: Request, call: RequestContext, project: Project, back: Back) -> Response:
    """Return the piece of the open page that shows ``project``, or lead back to a whole page.

    The dialog that was open, if any, closes after that (``HX-Trigger-After-Settle``).
    """
    if is_fragment_request(request):
        with call.use_cases.activities.watch() as watch:
            (row,) = project_rows([project], watch)
        response = respond("fragments/project_piece.html", project=row.project, row=row, back=back)
        response.headers["HX-Trigger-After-Settle"] = "close-dialog"
        response.headers["HX-Reswap"] = "none"
        return response
    if back == "list" or project.desired is Desired.DELETED:
        return see(user_url(project.user_id))
    return see(project_url(project.ref))


# The live side of the page: a stream of the pieces that have changed.


async def _frames(call: RequestContext, project: Project, after: int) -> AsyncGenerator[bytes]:
    """Yield the header as it is now and the log's events after number ``after``, then what changes.

    Ends once the project is gone.
    """
    shown: ProjectView | None = None
    watched = False
    with call.use_cases.projects.changes(project.ref) as news:
        while True:
            try:
                current, events = await _look(call, after)
            except ProjectNotFoundError:
                break
            if current.id != project.id:
                break
            view = project_view(current)
            if events or view != shown:
                after = events[-1].seq if events else after
                watched = watched or any(one.status is Status.ACTIVE for one in events)
                newest = await call.use_cases.projects.events(current)
                steps = waking(current, newest, watched=watched)
                html = render(
                    "fragments/project_changes.html", project=view, events=events, waking=steps
                )
                yield html_frame(html, after)
                shown = view
            if not events:
                await news.changed(RECHECK_SECONDS)
    yield sse.encode({"type": "gone", "content": {}})


async def _look(call: RequestContext, after: int) -> tuple[Project, Sequence[Event]]:
    # The events are read last: those that led to this record are among them.
    current = await call.use_cases.projects.get(*call.at)
    return current, await call.use_cases.projects.events(current, after)


# How a project wakes, step by step: read from its activation log.

_BEGINS = frozenset({"starting", "ended_unasked"})
_END = "active"
_CLONE = "git_"
_STAGES = (
    ("Prepared", frozenset({*_BEGINS, "namespace_ready", "quota_checked", "volume_kept"})),
    ("Started", frozenset({"process_started"})),
    ("API", frozenset({"api_answers", "address_assigned"})),
    ("Agent", frozenset({"agent_ready"})),
    ("Clone", frozenset({"git_done", "git_failed"})),
    ("Ready", frozenset({_END})),
)
_ROUND_SECONDS = 10


@dataclass(frozen=True, slots=True)
class WakeStep:
    """One step: ``done``, ``now`` (under way), ``failed``, or ``ahead``; ``words`` say how long it
    took, or that it is under way or failed.
    """

    name: str
    state: str
    words: str = ""


@dataclass(frozen=True, slots=True)
class Waking:
    """What a page shows of it.

    Attributes:
        steps: none when an environment that runs, or is being stopped, has an ``error``.
        doing: the newest of what it does within a step.
        usual: how long it has taken this project before, empty when that is not known.
        error: why it failed, or what keeps it.
        woke: how long it has taken, once it is awake.
    """

    steps: tuple[WakeStep, ...] = ()
    doing: str = ""
    usual: str = ""
    error: ErrorInfo | None = None
    woke: str = ""


def waking(project: Project, events: Sequence[Event], *, watched: bool = False) -> Waking | None:
    """Return how a project wakes, given its newest events; ``None`` when there is nothing to tell.

    One that is awake is told of only where its waking was ``watched``.
    """
    awake = project.status is Status.ACTIVE and project.settled
    wanted = project.desired is Desired.ACTIVE
    if not wanted or (awake and (project.error is not None or not watched)):
        return Waking(error=project.error) if project.error is not None else None
    failed = project.status is Status.ERROR
    if not (awake or failed or not project.settled):
        return None
    now = _since_begin(project, events)
    return Waking(
        steps=_steps(now, failed=failed),
        doing="" if failed or awake else _doing(now),
        usual="" if failed or awake else _usual(events[: len(events) - len(now)]),
        error=project.error,
        woke=_told((now[-1].at - now[0].at).total_seconds()) if awake and now else "",
    )


def _since_begin(project: Project, events: Sequence[Event]) -> Sequence[Event]:
    """Return the events of the present attempt, up to its end."""
    at = next((n for n in reversed(range(len(events))) if events[n].code in _BEGINS), None)
    # What came before the newest wish was of another one.
    if at is None or (not project.settled and events[-1].generation < project.generation):
        return ()
    end = next((n for n in range(at, len(events)) if events[n].code == _END), len(events) - 1)
    return events[at : end + 1]


def _steps(now: Sequence[Event], *, failed: bool) -> tuple[WakeStep, ...]:
    cloning = any(event.code.startswith(_CLONE) for event in now)
    stages = [one for one in _STAGES if one[0] != "Clone" or cloning]
    reached = [max((e.at for e in now if e.code in codes), default=None) for _, codes in stages]
    last = max((n for n, at in enumerate(reached) if at is not None), default=-1)
    steps = []
    before = now[0].at if now else None
    for number, ((name, _), at) in enumerate(zip(stages, reached, strict=True)):
        if number <= last:
            took = (at - before).total_seconds() if at is not None and before is not None else None
            steps.append(WakeStep(name, "done", "" if took is None else _told(took)))
            before = at or before
        elif number == last + 1:
            steps.append(WakeStep(name, *(("failed", "failed") if failed else ("now", ""))))
        else:
            steps.append(WakeStep(name, "ahead"))
    return tuple(steps)


def _doing(now: Sequence[Event]) -> str:
    """Return what was told last, if it is no step that is shown anyway."""
    known = {code for _, codes in _STAGES for code in codes}
    return now[-1].message if now and now[-1].code not in known else ""


def _usual(events: Sequence[Event]) -> str:
    took = []
    began = None
    for event in events:
        if event.code in _BEGINS:
            began = event.at
        elif event.code == _END and began is not None:
            took.append((event.at - began).total_seconds())
            began = None
    return _told(median(took)) if took else ""


def _told(seconds: float) -> str:
    seconds = max(0.0, seconds)  # less where the clock was set back meanwhile
    return f"{seconds:.1f} s" if seconds < _ROUND_SECONDS else f"{seconds:.0f} s"
