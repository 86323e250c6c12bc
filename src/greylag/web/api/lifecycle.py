"""Activate, deactivate and delete: write what is wanted, then wait for it or answer at once."""

from fastapi import APIRouter, Response

from greylag.domain.errors import ConflictError, ProjectNotFoundError, WaitTimeoutError
from greylag.domain.project import Desired, Project
from greylag.services.projects import Projects
from greylag.web.api.deps import PreferDep, ProjectCallDep
from greylag.web.api.docs import Responses, problems
from greylag.web.api.projects import PROJECT
from greylag.web.prefer import Prefer
from greylag.web.schemas import ProjectOut

router = APIRouter(tags=["projects"])

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
    operation_id="activate_project",
    summary="Activate a project",
    responses=_RESPONSES,
)
async def activate_project(
    call: ProjectCallDep,
    prefer: PreferDep,
    response: Response,
) -> ProjectOut:
    """Make the environment run, and answer when the agent is ready (after 120 s at the latest,
    unless `Prefer` or GREYLAG_ACTIVATION_TIMEOUT says otherwise). An active one stays as it is.
    """
    projects = call.use_cases.projects
    asked = await projects.want(*call.at, Desired.ACTIVE)
    return await _reach(projects, asked, prefer, response)


@router.post(
    f"{PROJECT}/deactivate",
    operation_id="deactivate_project",
    summary="Deactivate a project",
    responses=_RESPONSES,
)
async def deactivate_project(
    call: ProjectCallDep,
    prefer: PreferDep,
    response: Response,
) -> ProjectOut:
    """End all that runs for the project and keep its files. An inactive one stays as it is."""
    projects = call.use_cases.projects
    asked = await projects.want(*call.at, Desired.INACTIVE)
    return await _reach(projects, asked, prefer, response)


@router.delete(
    PROJECT,
    operation_id="delete_project",
    summary="Delete a project",
    status_code=204,
    response_model=None,
    responses={**_RESPONSES, 204: {"description": "Nothing is left of it."}},
)
async def delete_project(
    call: ProjectCallDep,
    prefer: PreferDep,
) -> Response:
    """Stop and remove the environment with all its files, then the record. It cannot be undone."""
    projects = call.use_cases.projects
    asked = await projects.want(*call.at, Desired.DELETED)
    headers = _applied(prefer)
    if await _wait(projects, asked, prefer) is None:
        return Response(status_code=204, headers=headers)
    shown = ProjectOut.of(asked).model_dump_json()
    return Response(shown, status_code=202, headers=headers, media_type="application/json")


async def _reach(
    projects: Projects, asked: Project, prefer: Prefer, response: Response
) -> ProjectOut:
    reached = await _wait(projects, asked, prefer)
    if reached is None:
        raise ProjectNotFoundError("The project was deleted meanwhile.")
    response.headers.update(_applied(prefer))
    if not reached.settled:
        response.status_code = 202
    elif reached.desired is not asked.desired:
        raise ConflictError(f"Meanwhile the project was asked to be {reached.desired}.")
    return ProjectOut.of(reached)


async def _wait(projects: Projects, asked: Project, prefer: Prefer) -> Project | None:
    """Return the project once it is as asked (``None``: gone), or, for a client that does not want
    to wait (any longer), as it was when it asked.
    """
    if prefer.respond_async and prefer.wait is None:
        return asked
    try:
        return await projects.settled(asked, prefer.wait)
    except WaitTimeoutError:
        if prefer.respond_async:
            return asked
        raise


def _applied(prefer: Prefer) -> dict[str, str]:
    return {"preference-applied": prefer.applied} if prefer.applied else {}
