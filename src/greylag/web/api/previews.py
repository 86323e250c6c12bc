"""Links that open what a port of an environment serves, or a file, at an origin of its own."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import RedirectResponse

from greylag.common.clock import rfc3339
from greylag.domain.audit import AuditAction
from greylag.domain.errors import ForbiddenError
from greylag.domain.users import Action, Share
from greylag.services.shares import NewShare, shown_by
from greylag.web.addresses import origin_of
from greylag.web.dashboard.pages import PROJECT_PAGE
from greylag.web.deps import PROJECT, ProjectCallDep, RequestContext, api_router, problems
from greylag.web.preview_links import PreviewLinks, file_address, of_share, private
from greylag.web.schemas import FilePreviewIn, PreviewIn, PreviewOut, ShareOut, SharesOut

router = api_router("ports")
pages = APIRouter(include_in_schema=False)

_Port = Annotated[int, Path(ge=1, le=65_535, description="One that is listened on.")]


@router.post(
    f"{PROJECT}/ports/{{port}}/preview",
    summary="Make a link to what a port serves",
    status_code=201,
    responses=problems(404, 409, 413),
)
async def open_preview(
    request: Request, call: ProjectCallDep, port: _Port, body: PreviewIn
) -> PreviewOut:
    """The link opens one browser, once, within five minutes, for twelve hours; with
    `share_seconds` it opens any browser for so long. Whoever has it needs no sign-in.
    """
    return await _made(request, call, port, body.path, body.share_seconds)


@router.post(
    f"{PROJECT}/files/preview",
    summary="Make a link to a file",
    status_code=201,
    responses=problems(404, 409, 413),
)
async def open_file(request: Request, call: ProjectCallDep, body: FilePreviewIn) -> PreviewOut:
    """As of a port. The browser shows the file as what its name says, and finds what it names
    beside it; with `share_seconds` only what lies beside and below it, without hidden files.
    """
    return await _made(request, call, None, file_address(body.path), body.share_seconds)


@router.get(
    f"{PROJECT}/shares",
    summary="List what is shared by links",
    responses=problems(404, 409),
)
async def list_shares(request: Request, call: ProjectCallDep) -> SharesOut:
    """What anybody may open now who has the link, the newest first."""
    links = _links(request)
    found = await call.use_cases.shares.listed(*call.at)
    return SharesOut(shares=[_shown(one, links) for one in found])


@router.delete(
    f"{PROJECT}/shares/{{share}}",
    summary="End a link",
    status_code=204,
    responses={**problems(404), 204: {"description": "It opens nothing, within a second."}},
)
async def end_share(call: ProjectCallDep, share: Annotated[str, Path(max_length=100)]) -> None:
    """Whoever opened it sees nothing more of it."""
    await call.use_cases.shares.end(*call.at, share)


@pages.get(f"{PROJECT_PAGE}/preview/{{port}}")
async def show_preview(
    request: Request, call: ProjectCallDep, port: _Port, given: Annotated[PreviewIn, Query()]
) -> RedirectResponse:
    """Lead a tab to what a port serves."""
    made = await _made(request, call, port, given.path, None)
    return RedirectResponse(made.url, status_code=303)


@pages.get(f"{PROJECT_PAGE}/preview")
async def show_file(
    request: Request, call: ProjectCallDep, given: Annotated[FilePreviewIn, Query()]
) -> RedirectResponse:
    """Lead a tab to a file."""
    made = await _made(request, call, None, file_address(given.path), None)
    return RedirectResponse(made.url, status_code=303)


async def _made(
    request: Request, call: RequestContext, port: int | None, path: str, seconds: int | None
) -> PreviewOut:
    links, origin = _links(request), origin_of(request)
    if seconds is not None:
        new = NewShare(port, path, origin, seconds)
        links.check(origin)
        share = _shown(await call.use_cases.shares.make(*call.at, new), links)
        return PreviewOut(url=share.url, expires_at=share.expires_at, share=share.share)
    action = Action.FILES_READ if port is None else Action.PREVIEW_USE
    await call.use_cases.projects.get(*call.at, action)
    gate = call.use_cases.gate
    if await gate.is_foreign(call.principal, call.ref):
        # Where it opens there is nobody who gives a reason.
        foreign = ForbiddenError(
            "Previews are for a project's owner and members.", hint="Read the file itself."
        )
        raise await gate.refused(call.principal, action, call.ref, foreign)
    audit = call.use_cases.audit
    on = shown_by(call.ref, port)
    await audit.append(audit.event(call.principal, AuditAction.PREVIEW_LINK, on, path=path))
    preview = private(call.ref, port, path, origin, call.principal)
    until = datetime.fromtimestamp(preview.until, UTC)
    return PreviewOut(url=links.link(preview), expires_at=rfc3339(until))


def _shown(share: Share, links: PreviewLinks) -> ShareOut:
    return ShareOut.of(share, share=share.key, url=links.link(of_share(share)))


def _links(request: Request) -> PreviewLinks:
    found: PreviewLinks = request.app.state.preview_links
    return found
