"""Previews: what an environment's ports serve, and its files, each at an origin of its own.

An application that an agent made must never act as the dashboard: it gets a host of its own, so
that no browser shares a cookie, a page or a right between the two. It is told by its Host before
any other layer, and lives on a cookie of that host alone, for which a link with a signed ticket is
exchanged. The dashboard's cookie and token count nothing here, and nothing of ours is handed on.
"""

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes

import structlog
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketState

from greylag.common import agent_api, forwarding
from greylag.common.agent_api import (
    FORWARDED_AUTHORIZATION,
    SHARED,
    ForwardedAnswer,
    ForwardedRequest,
    Operation,
)
from greylag.common.net import ASKED, client_of
from greylag.domain.audit import AuditAction, anonymous
from greylag.domain.errors import (
    ConflictError,
    ForbiddenError,
    GreylagError,
    InvalidRequestError,
    MissingError,
    TooLargeError,
    UnauthorizedError,
)
from greylag.domain.users import Action
from greylag.execd.files import shown as shown_path
from greylag.ports import AgentAnswer, AgentRequest
from greylag.services.sharing import shown_by
from greylag.services.use_cases import UseCases
from greylag.web import errors
from greylag.web.addresses import asked_path
from greylag.web.api.relay import RelayedAnswer, read_whole, shown_as
from greylag.web.auth import Authenticator, cookies
from greylag.web.preview_links import HINT, OPEN, Preview, PreviewLinks, file_address
from greylag.web.stream import REFUSALS, Streams

_COOKIE = "greylag_preview"
_SECURE_COOKIE = f"__Host-{_COOKIE}"
_FRAMES = frozenset({"iframe", "frame"})
_READS = frozenset({"GET", "HEAD"})
_POLICY = b"content-security-policy"
_MOST_FILE = 256 * agent_api.MEBIBYTE
_OUR_REQUEST = (
    b"cookie",
    b"host",
    b"origin",
    b"x-forwarded-for",
    *forwarding.TOLD_BY_PROXIES,
    b"x-greylag-agent-token",
    FORWARDED_AUTHORIZATION.encode(),
    SHARED.encode(),
)
_NEVER_ANSWERED = frozenset(
    {
        b"alt-svc",
        # Ends cookies of the whole domain, the dashboard's too where it is below the same one.
        b"clear-site-data",
        # Have browsers report what is asked of the host from then on, links with their tickets too.
        b"nel",
        b"report-to",
        b"set-cookie",
        b"strict-transport-security",
        b"x-request-id",
    }
)

_NO_STORE = {"cache-control": "no-store", "referrer-policy": "no-referrer"}

_log = structlog.get_logger(__name__)


class PreviewSite:
    """ASGI layer that answers requests to hosts of previews, and passes all others on."""

    def __init__(
        self,
        site: ASGIApp,
        links: PreviewLinks,
        authenticator: Authenticator,
        use_cases: UseCases,
        streams: Streams,
    ) -> None:
        self._site = site
        self._links = links
        self._authenticator = authenticator
        self._agents = use_cases.agents
        self._audit = use_cases.audit
        self._gate = use_cases.gate
        self._shares = use_cases.shares
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
            if isinstance(error, REFUSALS):
                who, on = anonymous(client_of(scope)), f"{labels[0]}{scope['path']}"
                await self._audit.refused(who, AuditAction.REQUEST, on, error.info.code)
            await _told(error)(scope, receive, send)

    async def _answer(self, label: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == OPEN:
            await (await self._opened(label, scope))(scope, receive, send)
            return
        preview = self._read_cookie(label, scope)
        _check_origin(scope)
        await self._check(preview)
        if preview.port is None:
            await self._show(preview, scope, receive, send)
        elif scope["type"] == "websocket":
            await self._join(preview, preview.port, WebSocket(scope, receive, send))
        elif scope["method"] in forwarding.METHODS:
            await self._hand_on(preview, preview.port, scope, receive, send)
        else:
            raise InvalidRequestError("This method is not handed on.")

    async def _check(self, preview: Preview) -> None:
        """Raise why a preview may not be shown now: who opened it may not see it any more."""
        try:
            await self._gate.as_of_now(replace(preview.maker, sign_in=preview.sign_in))
        except UnauthorizedError as error:
            told = "Who opened this preview has signed out."
            raise UnauthorizedError(told, hint=HINT) from error
        if preview.until <= time.time():
            raise UnauthorizedError("This link has run out.", hint=HINT)
        reads = preview.port is None and not preview.shared
        action = Action.FILES_READ if reads else Action.PREVIEW_USE
        await self._gate.check_again(preview.maker, action, preview.ref)
        if preview.shared:
            await self._shares.check(preview.maker, preview.ref, preview.id)

    def _while_allowed(self, preview: Preview) -> AbstractAsyncContextManager[None]:
        return self._streams.access.until_refused(
            replace(preview, path=""), partial(self._check, preview)
        )

    def _place(self, preview: Preview) -> AbstractAsyncContextManager[None]:
        if not preview.shared:  # opened by the project's own people
            return nullcontext()
        return self._streams.request(preview.ref)

    async def _join(self, preview: Preview, port: int, client: WebSocket) -> None:
        scope = client.scope
        headers = _request_headers(scope, preview, self._authenticator)
        asked = ForwardedRequest("GET", asked_path(scope), headers)
        opening = await self._agents.forward_socket(
            preview.maker, preview.ref, port, asked, scope["subprotocols"]
        )
        try:
            # All private ones that somebody has opened are one to count.
            one = preview.id if preview.shared else ""
            with self._streams.place(preview.by, preview.ref, one):
                async with self._while_allowed(preview):
                    await forwarding.hand_on(client, opening)
        except GreylagError:
            if client.application_state is WebSocketState.CONNECTING:
                raise

    async def _hand_on(
        self, preview: Preview, port: int, scope: Scope, receive: Receive, send: Send
    ) -> None:
        begun = False

        @asynccontextmanager
        async def opening_of(request: ForwardedRequest) -> AsyncIterator[ForwardedAnswer]:
            nonlocal begun
            asking: AbstractAsyncContextManager[ForwardedAnswer]
            asking = await self._agents.forward(preview.maker, preview.ref, port, request)
            async with asking as answer:
                begun = True
                yield replace(answer, headers=_answer_headers(answer, preview))

        headers = _request_headers(scope, preview, self._authenticator)
        try:
            async with self._while_allowed(preview), self._place(preview):
                await forwarding.forward(
                    scope, receive, send, asked_path(scope), headers, opening_of
                )
        except GreylagError:
            if not begun:
                raise

    async def _show(self, preview: Preview, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a file of the workspace; of a folder, its index.html."""
        if scope["type"] != "http" or scope["method"] not in _READS:
            raise InvalidRequestError("Files are read, and nothing else.")
        path = _workspace_path(scope["raw_path"], preview)
        opening = await self._asked(preview, agent_api.READ_FILE, scope, path=path)

        @asynccontextmanager
        async def shown() -> AsyncIterator[AgentAnswer]:
            async with self._place(preview), opening as answer:
                if int(answer.headers.get("content-length", "0")) > _MOST_FILE:
                    raise TooLargeError(f"More than {_MOST_FILE} bytes are not shown: download it.")
                body = answer.body if scope["method"] == "GET" else _nothing()
                yield AgentAnswer(answer.status, _file_headers(answer, path, preview), body)

        try:
            relayed = RelayedAnswer(shown(), self._while_allowed(preview), lasts=True)
            await relayed(scope, receive, send)
        except ConflictError:
            listing = await self._asked(preview, agent_api.LIST_FILES, scope, path=path, limit="1")
            listed = await read_whole(listing, agent_api.LIST_FILES)
            if listed.entry.kind != "folder":
                raise
            # Relative links lead below a folder only from an address that ends in a slash.
            where = f"{file_address(path)}/"
            await RedirectResponse(where, 307, _NO_STORE)(scope, receive, send)

    async def _asked(
        self, preview: Preview, operation: Operation[Any], scope: Scope, **query: str
    ) -> AbstractAsyncContextManager[AgentAnswer]:
        asked = AgentRequest(operation, query=query, headers=dict(Headers(scope=scope)))
        return await self._agents.relay(preview.maker, preview.ref, asked)

    async def _opened(self, label: str, scope: Scope) -> Response:
        """Exchange a ticket for a cookie of this host."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("ticket", [""])
        preview = await self._links.use(given[0], label)
        await self._check(preview)
        who, on = anonymous(client_of(scope)), shown_by(preview.ref, preview.port)
        share = preview.id if preview.shared else None
        opened = self._audit.event(
            who, AuditAction.PREVIEW_OPEN, on, link_of=preview.by, share=share
        )
        await self._audit.repeatedly(opened)
        # In a frame of the dashboard's it is another site's cookie, which browsers keep apart by
        # the page around it; loopback counts as secure there.
        framed = Headers(scope=scope).get("sec-fetch-dest", "") in _FRAMES
        value, seconds = self._links.cookie(preview, framed=framed)
        _log.info(
            "preview_opened",
            user_id=preview.user,
            project_id=preview.project,
            port=preview.port,
            shared=preview.shared,
        )
        headers = {**_NO_STORE, _POLICY.decode(): _framed_by(preview).decode()}
        response = RedirectResponse(preview.path, status_code=303, headers=headers)
        secure = scope["scheme"] == "https"
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

    def _read_cookie(self, label: str, scope: Scope) -> Preview:
        for name, value in cookies(scope):
            preview = self._links.read_cookie(value, label) if name in _NAMES else None
            if preview is not None:
                return preview
        raise UnauthorizedError("This preview is private.", hint=HINT)


_NAMES = frozenset({_COOKIE, _SECURE_COOKIE})


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
    reads = scope.get("method") in _READS
    site = headers.get("sec-fetch-site", "none")
    leads = reads and headers.get("sec-fetch-mode") == "navigate"
    if site not in {"none", "same-origin"} and not leads:
        raise ForbiddenError("Another site's page may do nothing here.", hint="")
    origin = headers.get("origin")
    if origin is not None and not reads and origin.lower() != _own_origin(scope):
        raise ForbiddenError("Another site's page may do nothing here.", hint="")


def _request_headers(scope: Scope, preview: Preview, ours: Authenticator) -> forwarding.Headers:
    """Return what the application is told: its own host as it knows it, and none of ours.

    Nothing says by what other name it was asked: Vite and webpack take ``localhost`` alone, and
    Rails, Django and Next.js refuse an Origin that is not where they believe to be.
    """
    passed = forwarding.end_to_end(scope["headers"], *_OUR_REQUEST, *forwarding.HANDSHAKE)
    headers = Headers(scope=scope)
    # No browser sends here what lets in at the dashboard; a program may, wherever it is led.
    if any(map(ours.is_token, headers.getlist("authorization"))):
        passed = [one for one in passed if one[0] != b"authorization"]
    kept = "; ".join(
        f"{name}={value}"
        for name, value in cookies(scope)
        if name not in _NAMES and not ours.is_sign_in(value)
    )
    own = _own_origin(scope)
    more = {"cookie": kept, SHARED: "1" if preview.shared else ""}
    if scope["client"]:
        more["x-forwarded-for"] = scope["client"][0]
    if (origin := headers.get("origin")) is not None:
        more["origin"] = f"http://localhost:{preview.port}" if origin.lower() == own else origin
    return [*passed, *((n.encode(), v.encode("latin-1")) for n, v in more.items() if v)]


def _answer_headers(answer: ForwardedAnswer, preview: Preview) -> forwarding.Headers:
    """Return what the browser is told: nothing that reaches beyond this host, or our cookie."""
    kept = [one for one in answer.headers if one[0] not in _NEVER_ANSWERED | {b"location"}]
    kept.append((_POLICY, _framed_by(preview)))
    own = f"http://localhost:{preview.port}".encode()
    for name, value in answer.headers:
        if name == b"location":
            inside = value.startswith(own) and value[len(own) :][:1] in {b"", b"/", b"?", b"#"}
            kept.append((name, (value[len(own) :] or b"/") if inside else value))
        elif (
            name == b"set-cookie"
            and value.partition(b"=")[0].strip().decode("latin-1") not in _NAMES
        ):
            kept.append((name, _own_cookie(value, framed=preview.framed)))
    return kept


def _own_cookie(cookie: bytes, *, framed: bool) -> bytes:
    """Return an application's cookie for its host alone; in a frame as browsers keep it there."""
    dropped = {b"domain", b"samesite", b"secure", b"partitioned"} if framed else {b"domain"}
    pair, *rest = cookie.split(b";")
    kept = [pair, *(one for one in rest if one.partition(b"=")[0].strip().lower() not in dropped)]
    return b";".join(kept) + (b"; Secure; SameSite=None; Partitioned" if framed else b"")


def _framed_by(preview: Preview) -> bytes:
    """Return the policy by which the dashboard, and nobody else's page, may show it in a frame."""
    return f"frame-ancestors 'self' {preview.origin}".rstrip().encode("latin-1")


def _workspace_path(raw: bytes, preview: Preview) -> str:
    """Return what an address's path names in the workspace, as the agent's API writes paths.

    Raises:
        MissingError: it is none, or not of what was shared.
    """
    parts = _parts(raw)
    shared = _parts(preview.path.encode())[:-1] if preview.shared else []
    hidden = preview.shared and any(one.startswith(b".") for one in parts[len(shared) :])
    if b".." in parts or any(b"/" in one for one in parts) or hidden:
        raise MissingError("There is no such file.", hint="")
    if parts[: len(shared)] != shared:
        raise MissingError("This file is not shared.", hint="")
    if raw.endswith(b"/"):
        parts.append(b"index.html")
    return shown_path(b"/".join(parts))


def _parts(raw: bytes) -> list[bytes]:
    """Return the names that an address's path is made of."""
    found = (unquote_to_bytes(one) for one in raw.partition(b"?")[0].split(b"/"))
    return [one for one in found if one not in {b"", b"."}]


def _file_headers(answer: AgentAnswer, path: str, preview: Preview) -> dict[str, str]:
    """Return a file's headers: its type is what its name says, and browsers guess no other."""
    return {
        **{name: value for name, value in answer.headers.items() if name != "content-disposition"},
        **_NO_STORE,
        "cache-control": "no-cache",
        "content-type": shown_as(path),
        "x-content-type-options": "nosniff",
        _POLICY.decode(): _framed_by(preview).decode("latin-1"),
    }


async def _nothing() -> AsyncIterator[bytes]:
    """Yield no content: who asks for the head of an answer gets no more."""
    yield b""


def _told(error: GreylagError) -> Response:
    """Return the answer to a person who sees a preview's host."""
    status = errors.status_of(error.info)
    headers = {**_NO_STORE, "content-security-policy": "default-src 'none'"}
    words = f"{error.info.message} {error.info.hint}".strip()
    return PlainTextResponse(f"{words}\n", status, {**headers, "x-content-type-options": "nosniff"})
