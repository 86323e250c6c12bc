"""Previews: what an environment's ports serve, each at an origin of its own.

An application that an agent made must never act as the dashboard: it gets a host of its own, so
that no browser shares a cookie, a page or a right between the two. It is told by its Host before
any other layer, and lives on a cookie of that host alone, for which a link with a signed ticket is
exchanged. The dashboard's cookie and token count nothing here, and nothing of ours is handed on.
"""

import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlencode

import structlog
from itsdangerous import BadData, URLSafeSerializer
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from greylag.common import forwarding
from greylag.common.agent_api import FORWARDED_AUTHORIZATION, ForwardedAnswer, ForwardedRequest
from greylag.common.net import ASKED, is_loopback
from greylag.config import Settings
from greylag.domain.audit import Change, anonymous, name_of
from greylag.domain.errors import (
    ForbiddenError,
    GreylagError,
    InvalidRequestError,
    PreviewOffError,
    UnauthorizedError,
)
from greylag.domain.project import ProjectRef
from greylag.domain.users import Principal
from greylag.ports import Revocations
from greylag.services.use_cases import UseCases
from greylag.web import errors
from greylag.web.addresses import LOCAL
from greylag.web.auth import client_of, cookies
from greylag.web.stream import Streams

OPEN = "/.greylag/open"
"""The path of a preview's host that a link leads to."""
TICKET_SECONDS = 300
COOKIE_SECONDS = 12 * 3600
LONGEST_SHARE = 30 * 24 * 3600
_COOKIE = "greylag_preview"
_SECURE_COOKIE = f"__Host-{_COOKIE}"
_LONGEST_LABEL = 63
_PLAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_LABEL = re.compile(r"\d{1,5}--[a-z0-9-]+")
_FRAMES = frozenset({"iframe", "frame"})
_OUR_REQUEST = (
    b"cookie",
    b"forwarded",
    b"host",
    b"origin",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-greylag-agent-token",
    FORWARDED_AUTHORIZATION.encode(),
)
_NEVER_ANSWERED = frozenset(
    {b"alt-svc", b"set-cookie", b"strict-transport-security", b"x-request-id"}
)
_HINT = "Open it from the project's page again: each link opens one browser, for some hours."

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Preview:
    """What a ticket or a cookie is good for, and until when (Unix seconds).

    Attributes:
        user: whose project.
        project: which one.
        port: the port.
        until: when it runs out.
        shared: whether more than one browser may use it.
        id: tells it from others of its kind.
        path: where a ticket leads.
        by: the user who made it, with whose rights it ends; ``None``: the operator.
    """

    user: str
    project: str
    port: int
    until: int
    shared: bool
    id: str
    path: str = "/"
    by: str | None = None

    @property
    def label(self) -> str:
        """The first part of its host's name; ids that no host can have are digested."""
        plain = f"{self.port}--{self.project}--{self.user}"
        named = all(_PLAIN.fullmatch(one) and "--" not in one for one in (self.project, self.user))
        if named and len(plain) <= _LONGEST_LABEL:
            return plain
        digest = hashlib.sha256(f"{self.user}\0{self.project}".encode()).hexdigest()[:24]
        return f"{self.port}--{digest}"


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
        known = domain == (self._domain or LOCAL)
        return label if known and _LABEL.fullmatch(label) else None

    def link(self, preview: Preview, scheme: str, host: str) -> str:
        """Return a link that opens a preview, for whoever reached us at ``host`` by ``scheme``.

        Raises:
            PreviewOffError: no name below that host would lead here.
        """
        name, _, port = host.partition(":")
        if not self._domain and not is_loopback(name):
            raise PreviewOffError(f"Previews have no address below {name[:100]!r}.")
        where = f"{preview.label}.{self._domain or LOCAL}" + (f":{port}" if port else "")
        ticket = urlencode({"ticket": self._tickets.dumps(asdict(preview))})
        return f"{scheme}://{where}{OPEN}?{ticket}"

    async def use(self, ticket: str, label: str) -> Preview:
        """Return what a ticket is good for; one that is not shared is used up by it.

        Raises:
            UnauthorizedError: it is not good, or not any more.
        """
        preview = _read(self._tickets, ticket, label)
        if preview is not None and not preview.shared:
            until = datetime.fromtimestamp(preview.until, UTC)
            name = f"preview {preview.id}"
            if not await self._revocations.revoke(name, until, datetime.now(UTC)):
                preview = None
        if preview is None:
            raise UnauthorizedError("This link was used, or has run out.", hint=_HINT)
        return preview

    def cookie(self, preview: Preview) -> tuple[str, int]:
        """Return the value of a cookie for a ticket that was used, and how long it is good."""
        now = _now()
        until = preview.until if preview.shared else now + COOKIE_SECONDS
        return self._cookies.dumps(asdict(replace(preview, until=until))), until - now

    def read_cookie(self, value: str, label: str) -> Preview | None:
        """Return what a cookie is good for at this host."""
        return _read(self._cookies, value, label)


def new_preview(
    ref: ProjectRef, port: int, path: str, share_seconds: int | None, by: str | None
) -> Preview:
    """Return what a new ticket is to be good for."""
    until = _now() + (share_seconds or TICKET_SECONDS)
    shared = share_seconds is not None
    return Preview(
        ref.user_id, ref.project_id, port, until, shared, secrets.token_urlsafe(12), path, by
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


class PreviewSite:
    """ASGI layer that answers requests to hosts of previews, and passes all others on."""

    def __init__(
        self, site: ASGIApp, links: PreviewLinks, use_cases: UseCases, streams: Streams
    ) -> None:
        self._site = site
        self._links = links
        self._agents = use_cases.agents
        self._audit = use_cases.audit
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        hosts = Headers(scope=scope).getlist("host") if scope["type"] in ASKED else []
        labels = [self._links.label_of(host) for host in hosts]
        if not any(labels):
            await self._site(scope, receive, send)
            return
        try:
            if len(labels) != 1 or labels[0] is None:
                raise InvalidRequestError("A request names one host.")
            await self._answer(labels[0], scope, receive, send)
        except GreylagError as error:
            await _told(error)(scope, receive, send)

    async def _answer(self, label: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == OPEN:
            await (await self._opened(label, scope))(scope, receive, send)
            return
        preview = self._allowed(label, scope)
        _check_origin(scope)
        who = Principal("preview", preview.by)
        ref = ProjectRef(preview.user, preview.project)
        raw, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
        target = f"{raw}?{query}" if query else raw
        headers = _request_headers(scope, preview)
        if scope["type"] == "websocket":
            asked, offered = ForwardedRequest("GET", target, headers), scope["subprotocols"]
            opening = await self._agents.forward_socket(who, ref, preview.port, asked, offered)
            with self._streams.place(ref):
                await forwarding.hand_on(WebSocket(scope, receive, send), opening)
            return
        if scope["method"] not in forwarding.METHODS:
            raise InvalidRequestError("This method is not handed on.")

        @asynccontextmanager
        async def opening_of(request: ForwardedRequest) -> AsyncIterator[ForwardedAnswer]:
            asking: AbstractAsyncContextManager[ForwardedAnswer]
            asking = await self._agents.forward(who, ref, preview.port, request)
            async with asking as answer:
                yield replace(answer, headers=_answer_headers(answer, preview))

        await forwarding.forward(scope, receive, send, target, headers, opening_of)

    async def _opened(self, label: str, scope: Scope) -> Response:
        """Exchange a ticket for a cookie of this host."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("ticket", [""])
        preview = await self._links.use(given[0], label)
        ref = ProjectRef(preview.user, preview.project)
        who = replace(anonymous(client_of(scope)), user=preview.by)
        on = f"{name_of(ref)}/ports/{preview.port}"
        await self._audit.seldom(self._audit.event(who, Change.PREVIEW_OPEN, on))
        value, seconds = self._links.cookie(preview)
        _log.info(
            "preview_opened",
            user_id=preview.user,
            project_id=preview.project,
            port=preview.port,
            shared=preview.shared,
        )
        response = RedirectResponse(preview.path, status_code=303, headers=_PRIVATE)
        secure = scope["scheme"] == "https"
        # In a frame of the dashboard's it is another site's cookie, which browsers keep apart by
        # the page around it; loopback counts as secure there.
        framed = Headers(scope=scope).get("sec-fetch-dest", "") in _FRAMES
        response.set_cookie(
            _cookie_name(scope),
            value,
            max_age=seconds,
            httponly=True,
            secure=secure or framed,
            samesite="none" if framed else "lax",
        )
        if framed:
            response.headers["set-cookie"] += "; Partitioned"
        return response

    def _allowed(self, label: str, scope: Scope) -> Preview:
        for name, value in cookies(scope):
            preview = self._links.read_cookie(value, label) if name in _NAMES else None
            if preview is not None:
                return preview
        raise UnauthorizedError("This preview is private.", hint=_HINT)


_NAMES = frozenset({_COOKIE, _SECURE_COOKIE})
_PRIVATE = {"cache-control": "no-store", "referrer-policy": "no-referrer"}


def _cookie_name(scope: Scope) -> str:
    return _SECURE_COOKIE if scope["scheme"] == "https" else _COOKIE


def _own_origin(scope: Scope) -> str:
    scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
    return f"{scheme}://{Headers(scope=scope)['host'].lower()}"


def _check_origin(scope: Scope) -> None:
    """Raise ``ForbiddenError`` for what another site's page, another preview's too, wants to do.

    It may lead here, by a link or in a frame; its scripts and forms may do nothing.
    """
    headers = Headers(scope=scope)
    reads = scope.get("method") in {"GET", "HEAD"}
    site = headers.get("sec-fetch-site", "none")
    leads = reads and headers.get("sec-fetch-mode") == "navigate"
    if site not in {"none", "same-origin"} and not leads:
        raise ForbiddenError("Another site's page may do nothing here.", hint="")
    origin = headers.get("origin")
    if origin is not None and not reads and origin.lower() != _own_origin(scope):
        raise ForbiddenError("Another site's page may do nothing here.", hint="")


def _request_headers(scope: Scope, preview: Preview) -> forwarding.Headers:
    """Return what the application is told: its own host as it knows it, and none of ours."""
    passed = forwarding.end_to_end(scope["headers"], *_OUR_REQUEST, *forwarding.HANDSHAKE)
    headers = Headers(scope=scope)
    kept = "; ".join(f"{name}={value}" for name, value in cookies(scope) if name not in _NAMES)
    own = _own_origin(scope)
    scheme, _, host = own.partition("://")
    more = {"cookie": kept, "x-forwarded-host": host, "x-forwarded-proto": scheme}
    if scope["client"]:
        more["x-forwarded-for"] = scope["client"][0]
    if (origin := headers.get("origin")) is not None:
        more["origin"] = f"http://localhost:{preview.port}" if origin.lower() == own else origin
    return [*passed, *((n.encode(), v.encode("latin-1")) for n, v in more.items() if v)]


def _answer_headers(answer: ForwardedAnswer, preview: Preview) -> forwarding.Headers:
    """Return what the browser is told: nothing that reaches beyond this host, or our cookie."""
    kept = [one for one in answer.headers if one[0] not in _NEVER_ANSWERED | {b"location"}]
    own = f"http://localhost:{preview.port}".encode()
    for name, value in answer.headers:
        if name == b"location":
            inside = value.startswith(own) and value[len(own) :][:1] in {b"", b"/", b"?", b"#"}
            kept.append((name, (value[len(own) :] or b"/") if inside else value))
        elif (
            name == b"set-cookie"
            and value.partition(b"=")[0].strip().decode("latin-1") not in _NAMES
        ):
            kept.append((name, _host_only(value)))
    return kept


def _host_only(cookie: bytes) -> bytes:
    parts = cookie.split(b";")
    return b";".join(part for part in parts if part.partition(b"=")[0].strip().lower() != b"domain")


def _told(error: GreylagError) -> Response:
    """Return the answer to a person who sees a preview's host."""
    status = errors.status_of(error.info)
    headers = {**_PRIVATE, "content-security-policy": "default-src 'none'"}
    words = f"{error.info.message} {error.info.hint}".strip()
    return PlainTextResponse(f"{words}\n", status, {**headers, "x-content-type-options": "nosniff"})
