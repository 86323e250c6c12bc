"""A user's projects: list, create, read, edit, activate, deactivate, delete, and their log."""

import json
from typing import Annotated, Any

from fastapi import Header, Query, Response

from greylag.common import sse
from greylag.common.clock import rfc3339
from greylag.domain.errors import ConflictError, ProjectNotFoundError, WaitTimeoutError
from greylag.domain.project import Desired, Event, Project, Status
from greylag.domain.users import Action
from greylag.ports import CURSOR_FORM, PageQuery
from greylag.services.projects import KEY_FORM, MAX_KEY_LENGTH, Edit, NewProject
from greylag.web.addresses import address
from greylag.web.deps import (
    LOCATION,
    PROJECT,
    PROJECTS,
    Prefer,
    PreferDep,
    ProjectCallDep,
    RequestContext,
    Responses,
    UserCallDep,
    api_router,
    events,
    problems,
)
from greylag.web.schemas import EditIn, NewProjectIn, ProjectOut, ProjectsOut, ProjectTexts
from greylag.web.stream import mapped

MAX_PAGE = 200
_MAX_SEQ = 2**63 - 1

router = api_router("projects")
_texts = ProjectTexts()

_EVENT = {
    "message": "The agent is ready.",
    "code": "agent_ready",
    "status": "active",
    "hint": "",
    "at": "2026-11-23T09:15:00.000Z",
    "generation": 2,
}


@router.get(
    PROJECTS,
    summary="List a user's projects",
    response_model=ProjectsOut,
    responses=problems(404),
)
async def list_projects(
    call: UserCallDep,
    status: Annotated[Status | None, Query(description="Only those with this status.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many at most.")] = 50,
    cursor: Annotated[
        str | None,
        Query(
            json_schema_extra={"pattern": CURSOR_FORM},
            description="`next_cursor` of the page before.",
        ),
    ] = None,
) -> Response:
    """Newest first, in pages."""
    asked = PageQuery(limit, cursor, status)
    page = await call.use_cases.projects.page(call.principal, call.user_id, asked)
    shown = b",".join(_texts.of(project) for project in page.projects)
    following = json.dumps(page.cursor).encode()
    body = b'{"projects":[' + shown + b'],"next_cursor":' + following + b"}"
    return Response(body, media_type="application/json")


@router.post(
    PROJECTS,
    summary="Create a project",
    status_code=201,
    responses={
        **problems(404, 409, 413),
        200: {"description": "The same Idempotency-Key had created it.", "model": ProjectOut},
        201: {"description": "Created, inactive.", "headers": {"Location": LOCATION}},
    },
)
async def create_project(
    call: UserCallDep,
    body: NewProjectIn,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=MAX_KEY_LENGTH,
            pattern=KEY_FORM,
            description="Made by the client: with the same key nothing is created twice.",
        ),
    ] = None,
) -> ProjectOut:
    """The project is inactive at first; its environment is prepared in the background."""
    new = NewProject(body.name, body.project_id, body.metadata, body.git_source)
    projects = call.use_cases.projects
    created = await projects.create(call.principal, call.user_id, new, idempotency_key)
    project = created.project
    response.status_code = 201 if created.new else 200
    response.headers["location"] = address(f"/api{project.ref.path}")
    return ProjectOut.of(project)


@router.get(PROJECT, summary="Read a project", responses=problems(404))
async def show_project(call: ProjectCallDep) -> ProjectOut:
    """The project as it is now."""
    project = await call.use_cases.projects.get(*call.at)
    return ProjectOut.of(project)


@router.patch(
    PROJECT,
    summary="Rename a project, or replace its metadata",
    responses=problems(404, 409, 413),
)
async def edit_project(call: ProjectCallDep, body: EditIn) -> ProjectOut:
    """What is left out stays as it is; the environment is not touched."""
    project = await call.use_cases.projects.edit(*call.at, Edit(body.name, body.metadata))
    return ProjectOut.of(project)


@router.get(
    f"{PROJECT}/events",
    summary="Follow a project's activation log",
    response_class=Response,
    responses={**problems(404), **events("3", "status", _EVENT)},
)
async def follow_project(
    call: ProjectCallDep,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=_MAX_SEQ, description="Wins over `after`.")
    ] = None,
    after: Annotated[
        int, Query(ge=0, le=_MAX_SEQ, description="Only events after this number.")
    ] = 0,
    follow: Annotated[bool, Query(description="False: end after all so far.")] = True,  # noqa: FBT002 - by name alone, in a query
) -> Any:
    """All events so far, then each as it comes, until the project is deleted."""
    start = after if last_event_id is None else last_event_id
    log = await call.use_cases.projects.follow(*call.at, start, live=follow)
    return call.streams.events(*call.at, mapped(log, _frame))


def _frame(event: Event) -> bytes:
    content = {
        "message": event.message,
        "code": event.code,
        "status": event.status,
        "hint": event.hint,
        "at": rfc3339(event.at),
        "generation": event.generation,
    }
    return sse.encode({"type": "status", "content": content}, id=str(event.seq))


# Activate, deactivate and delete: write what is wanted, then wait for it or answer at once.

_APPLIED = {"description": "The preferences that were honoured.", "schema": {"type": "string"}}
_RESPONSES: Responses = {
    **problems(404, 409, 502, 504),
    202: {
        "description": "It is on its way (`Prefer: respond-async`).",
        "model": ProjectOut,
        "headers": {"Preference-Applied": _APPLIED},
    },
}


@router.post(
    f"{PROJECT}/activate",
    summary="Activate a project",
    responses=_RESPONSES,
)
async def activate_project(
    call: ProjectCallDep, prefer: PreferDep, response: Response
) -> ProjectOut:
    """Make the environment run, and answer when the agent is ready (after 120 s at the latest,
    unless `Prefer` or GREYLAG_ACTIVATION_TIMEOUT says otherwise). An active one stays as it is.
    """
    return await _reach(call, Desired.ACTIVE, prefer, response)


@router.post(
    f"{PROJECT}/deactivate",
    summary="Deactivate a project",
    responses=_RESPONSES,
)
async def deactivate_project(
    call: ProjectCallDep, prefer: PreferDep, response: Response
) -> ProjectOut:
    """End all that runs for the project and keep its files. An inactive one stays as it is."""
    return await _reach(call, Desired.INACTIVE, prefer, response)


@router.post(
    f"{PROJECT}/refresh",
    summary="Start an outdated environment anew",
    responses=problems(404),
)
async def refresh_project(call: ProjectCallDep) -> ProjectOut:
    """Answers at once. What runs and is `outdated` is started anew with the settings of now, once
    no turn is going on; its files and conversations are kept. One that is not outdated, or sleeps,
    stays as it is: it gets them when it is next activated. Done when `outdated` is false again.
    """
    return ProjectOut.of(await call.use_cases.projects.refresh(*call.at))


@router.delete(
    PROJECT,
    summary="Delete a project",
    status_code=204,
    response_model=None,
    responses={**_RESPONSES, 204: {"description": "Nothing is left of it."}},
)
async def delete_project(call: ProjectCallDep, prefer: PreferDep) -> Response:
    """Stop and remove the environment with all its files, then the record. It cannot be undone."""
    projects = call.use_cases.projects
    asked = await projects.want(*call.at, Desired.DELETED)
    headers = _applied(prefer)
    if await _wait(call, asked, prefer) is None:
        return Response(status_code=204, headers=headers)
    shown = ProjectOut.of(asked).model_dump_json()
    return Response(shown, status_code=202, headers=headers, media_type="application/json")


async def _reach(
    call: RequestContext, desired: Desired, prefer: Prefer, response: Response
) -> ProjectOut:
    projects = call.use_cases.projects
    asked = await projects.want(*call.at, desired)
    reached = await _wait(call, asked, prefer)
    if reached is None:
        raise ProjectNotFoundError("The project was deleted meanwhile.")
    response.headers.update(_applied(prefer))
    if not reached.settled:
        response.status_code = 202
    elif reached.desired is not asked.desired:
        raise ConflictError(f"Meanwhile the project was asked to be {reached.desired}.")
    return ProjectOut.of(reached)


async def _wait(call: RequestContext, asked: Project, prefer: Prefer) -> Project | None:
    """Return the project once it is as asked (``None``: gone), or, for a client that does not want
    to wait (any longer), as it was when it asked.
    """
    if prefer.respond_async and prefer.wait is None:
        return asked
    try:
        async with call.while_allowed(Action.PROJECTS_READ):
            return await call.use_cases.projects.settled(asked, prefer.wait)
    except WaitTimeoutError:
        if prefer.respond_async:
            return asked
        raise


def _applied(prefer: Prefer) -> dict[str, str]:
    return {"preference-applied": prefer.applied} if prefer.applied else {}
