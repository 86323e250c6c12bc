"""Links that open what a port of an environment serves, at an origin of its own."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request

from greylag.common.clock import rfc3339
from greylag.domain.audit import Change, name_of
from greylag.domain.users import Action
from greylag.web.api.projects import PROJECT
from greylag.web.deps import ProjectCallDep, problems
from greylag.web.preview import PreviewLinks, new_preview
from greylag.web.schemas import PreviewIn, PreviewOut

router = APIRouter(tags=["ports"])


@router.post(
    f"{PROJECT}/ports/{{port}}/preview",
    operation_id="open_preview",
    summary="Make a link to what a port serves",
    status_code=201,
    responses=problems(404, 409, 413),
)
async def open_preview(
    request: Request,
    call: ProjectCallDep,
    port: Annotated[int, Path(ge=1, le=65_535, description="One that is listened on.")],
    body: PreviewIn,
) -> PreviewOut:
    """The link opens one browser, once, within five minutes, for twelve hours; with
    `share_seconds` it opens any browser for so long. Whoever has it needs no sign-in.
    """
    await call.use_cases.projects.get(*call.at, Action.PREVIEW_USE)
    links: PreviewLinks = request.app.state.preview_links
    by = call.principal.user_id
    preview = new_preview(call.ref, port, body.path, body.share_seconds, by)
    url = links.link(preview, request.url.scheme, request.headers["host"])
    audit, on = call.use_cases.audit, f"{name_of(call.ref)}/ports/{port}"
    shared = body.share_seconds
    await audit.append(audit.event(call.principal, Change.PREVIEW_LINK, on, share_seconds=shared))
    return PreviewOut(url=url, expires_at=rfc3339(datetime.fromtimestamp(preview.until, UTC)))
