"""Links to previews, and the cookies that they are exchanged for: made, read, never kept.

Each is signed by the operator's token and says all that it is good for. The host that it is good at
is made from that again and compared, so no table of hosts is kept.
"""

import hashlib
import re
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import quote, urlencode, urlsplit

from fastapi import APIRouter, Path, Query, Request
from itsdangerous import BadData, URLSafeSerializer
from starlette.responses import RedirectResponse

from greylag.common.clock import rfc3339
from greylag.common.net import is_loopback
from greylag.config import Settings
from greylag.domain.audit import AuditAction
from greylag.domain.errors import (
    ForbiddenError,
    InvalidRequestError,
    RefusalError,
    UnauthorizedError,
)
from greylag.domain.project import ProjectRef
from greylag.domain.users import Action, Principal, Share
from greylag.execd.files import parts_of
from greylag.execd.protocol import RefusedError
from greylag.ports import Revocations
from greylag.services.sharing import NewShare, shown_by
from greylag.web.addresses import origin_of
from greylag.web.dashboard.pages import PROJECT_PAGE
from greylag.web.deps import PROJECT, ProjectCallDep, RequestContext, api_router, problems
from greylag.web.request_log import CONTENT_POLICY
from greylag.web.schemas import FilePreviewIn, PreviewIn, PreviewOut, ShareOut, SharesOut

OPEN = "/.greylag/open"
"""The path of a preview's host that a link leads to."""
TICKET_SECONDS = 300
COOKIE_SECONDS = 12 * 3600
HINT = "Open it from the project's page again: each link opens one browser, for some hours."
# The name below which previews have theirs where no domain is set: browsers find it here.
_LOCAL = "localhost"
_FILES = "files"
_LONGEST_LABEL = 63
_PLAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_LABEL = re.compile(rf"(\d{{1,5}}|{_FILES})--[a-z0-9-]+")


@dataclass(frozen=True, slots=True)
class Preview:
    """What a ticket or a cookie is good for, and until when (Unix seconds).

    Attributes:
        user: whose project.
        project: which one.
        port: what is shown; ``None``: the workspace's files.
        until: when it runs out.
        shared: whether more than one browser may use it; of files, what is beside and below
            ``path`` alone.
        id: tells it from others of its kind; a share's key.
        path: where a ticket leads.
        by: the user who made it, with whose rights it ends; ``None``: the operator.
        origin: the dashboard's, which may show it in a frame.
        framed: whether a cookie is one of such a frame's.
        sign_in: the maker's (``Principal.sign_in``), with which one that is not shared ends.
    """

    user: str
    project: str
    port: int | None
    until: int
    shared: bool
    id: str
    path: str = "/"
    by: str | None = None
    origin: str = ""
    framed: bool = False
    sign_in: str = ""

    @property
    def maker(self) -> Principal:
        """With whose rights it is shown."""
        return Principal("preview", self.by)

    @property
    def ref(self) -> ProjectRef:
        """The project."""
        return ProjectRef(self.user, self.project)

    @property
    def label(self) -> str:
        """The first part of its host's name; ids that no host can have are digested."""
        kind = _FILES if self.port is None else str(self.port)
        plain = f"{kind}--{self.project}--{self.user}"
        named = all(_PLAIN.fullmatch(one) and "--" not in one for one in (self.project, self.user))
        if named and len(plain) <= _LONGEST_LABEL:
            return plain
        digest = hashlib.sha256(f"{self.user}\0{self.project}".encode()).hexdigest()[:24]
        return f"{kind}--{digest}"


class PreviewLinks:
    """Makes and reads the links and cookies of previews.

    Args:
        settings: the token that they are signed by, and the domain.
        revocations: where tickets are kept that were used.
    """

    def __init__(self, settings: Settings, revocations: Revocations) -> None:
        token = settings.token.get_secret_value() if settings.token else secrets.token_hex()
        key = hashlib.sha256(b"greylag preview\0" + token.encode()).digest()
        self._tickets, self._cookies = _signer(key, "ticket"), _signer(key, "cookie")
        self._revocations = revocations
        self._domain = settings.preview_domain

    def label_of(self, host: str) -> str | None:
        """Return the first part of a preview's host, ``None`` for a host that is none's."""
        label, _, domain = host.lower().partition(":")[0].partition(".")
        known = domain == (self._domain or _LOCAL)
        return label if known and _LABEL.fullmatch(label) else None

    def link(self, preview: Preview) -> str:
        """Return a link that opens a preview, for whoever reached us at its ``origin``.

        Raises:
            RefusalError: ``preview_off``: no name below that host would lead here.
        """
        self.check(preview.origin)
        where = beside(preview.origin, preview.label, self._domain)
        ticket = urlencode({"ticket": self._tickets.dumps(asdict(preview))})
        return f"{where}{OPEN}?{ticket}"

    def content_policy(self, origin: str) -> str:
        """Return the policy of a page of ours that shows previews in frames."""
        return f"{CONTENT_POLICY}; frame-src {beside(origin, '*', self._domain)}"

    def check(self, origin: str) -> None:
        """Raise ``preview_off`` where whoever reaches us at this origin can have no link."""
        name = urlsplit(origin).hostname or ""
        if not self._domain and not is_loopback(name):
            raise RefusalError(f"Previews have no address below {name[:100]!r}.", "preview_off")

    async def use(self, ticket: str, label: str) -> Preview:
        """Return what a ticket is good for; one that is not shared is used up by it.

        Raises:
            UnauthorizedError: it is not good, or not any more.
        """
        preview = _read(self._tickets, ticket, label)
        if preview is not None and not preview.shared:
            until = datetime.fromtimestamp(preview.until, UTC)
            name, at = f"preview {preview.id}", until - timedelta(seconds=TICKET_SECONDS)
            if await self._revocations.is_revoked(name, at) or not await self._revocations.revoke(
                name, until, datetime.now(UTC)
            ):
                preview = None
        if preview is None:
            raise UnauthorizedError("This link was used, or has run out.", hint=HINT)
        return preview

    def cookie(self, preview: Preview, *, framed: bool) -> tuple[str, int]:
        """Return the value of a cookie for a ticket that was used, and how long it is good."""
        now = _now()
        until = preview.until if preview.shared else now + COOKIE_SECONDS
        return self._cookies.dumps(
            asdict(replace(preview, until=until, framed=framed))
        ), until - now

    def read_cookie(self, value: str, label: str) -> Preview | None:
        """Return what a cookie is good for at this host."""
        return _read(self._cookies, value, label)


def beside(origin: str, label: str, domain: str) -> str:
    """Return the origin that a preview has beside ours: below the domain, at the same port."""
    parts = urlsplit(origin)
    return f"{parts.scheme}://{label}.{domain or _LOCAL}" + (f":{parts.port}" if parts.port else "")


def file_address(path: str) -> str:
    """Return the path of an address for a path as the agent's API writes it.

    Raises:
        InvalidRequestError: it is not written so.
    """
    try:
        parts = parts_of(path)
    except RefusedError as error:
        raise InvalidRequestError(str(error)) from error
    if not parts:
        raise InvalidRequestError("The path names no file below the workspace.")
    return "/" + quote(b"/".join(parts))


def of_share(share: Share) -> Preview:
    """Return what a share's link is good for."""
    return Preview(
        share.owner,
        share.project_id,
        share.port,
        int(share.expires_at.timestamp()),
        shared=True,
        id=share.key,
        path=share.path,
        by=share.by,
        origin=share.origin,
    )


def private(
    ref: ProjectRef, port: int | None, path: str, origin: str, principal: Principal
) -> Preview:
    """Return what a new link is good for that opens one browser."""
    until, name = _now() + TICKET_SECONDS, secrets.token_urlsafe(12)
    return Preview(
        ref.user_id,
        ref.project_id,
        port,
        until,
        shared=False,
        id=name,
        path=path,
        by=principal.user_id,
        origin=origin,
        sign_in=principal.sign_in,
    )


def _signer(key: bytes, kind: str) -> URLSafeSerializer:
    return URLSafeSerializer(
        key, salt=f"greylag.preview.{kind}", signer_kwargs={"digest_method": hashlib.sha256}
    )


def _read(signed: URLSafeSerializer, value: str, label: str) -> Preview | None:
    try:
        preview = Preview(**signed.loads(value))
    except (BadData, TypeError):
        return None
    return preview if preview.label == label and preview.until > _now() else None


def _now() -> int:
    return int(datetime.now(UTC).timestamp())


# Asking for them, and ending them.

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
