"""The git relay: git's way to the hosts that the user has secrets for, without the secrets.

A small HTTP server on a loopback port of its own. git in the environment is configured to ask it in
place of those hosts (``url.*.insteadOf``), with a token that is worth nothing elsewhere; the relay
puts the user's own in and passes the answer on as it comes, never holding a whole one.

The environment's tools can see that token, so the relay passes on git's own protocol, with that of
Git LFS, and nothing else: whoever has it can fetch and push as the user, but not use what else a
secret opens. It follows no redirect, and reaches no address that is not public unless the operator
has named the host.
"""

import asyncio
import base64
import hmac
import json
import re
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
import structlog
from aiohttp import web
from yarl import URL

from greylag.common.git import GitCredential
from greylag.common.net import bears, beginning, end_to_end, on_loopback, proxy_for, streamed
from greylag.common.public_hosts import NamedHosts, NotPublicError, PublicResolver

SILENCE_SECONDS = 60.0
"""So long a host may say nothing."""
_CONNECT_SECONDS = 15.0
_MOST_CALLS = 16
_HOST = r"[a-z0-9][a-z0-9.-]*(?::[0-9]{1,5})?"
_SERVICE = r"git-(?:upload|receive)-pack"
_GUESSED = 7
"""So long a secret may stand in an answer by chance."""
_BATCH = "info/lfs/objects/batch"
_LARGE_FILES = rf"(?:{_BATCH}|info/lfs/locks/verify)"
_CALL = re.compile(
    rf"(?:GET /(?P<h1>{_HOST})(?P<p1>/[!-~]+/info/refs\?service={_SERVICE})"
    rf"|POST /(?P<h2>{_HOST})(?P<p2>/[!-~]+/(?:{_SERVICE}|{_LARGE_FILES}))"
    rf"|(?:GET|POST|PUT) /-/(?P<seal>[0-9a-f]{{64}})/(?P<h3>{_HOST})(?P<p3>/[!-~]*))"
)
_ASTRAY = re.compile(r"//|/\.{1,2}/|%2e|%2f|[\\#]|\?.*[/?]", re.IGNORECASE)
_TO_HOST = (
    *("accept", "accept-encoding", "accept-language", "git-protocol", "user-agent"),
    *("content-encoding", "content-length", "content-type"),
)
_TO_GIT = (
    *("cache-control", "content-encoding", "content-length", "content-range", "content-type"),
    "retry-after",
)

_log = structlog.get_logger(__name__)


# Git LFS past the relay: what a host answers about large files, without the secret in it.
#
# A host tells where each object is to be had, and often to come there with the very Authorization
# that it was asked with, which is the secret. So the addresses that are the host's own are led by
# the relay, sealed, so that it knows them again and passes nothing else on; others are left to
# the environment, and neither is told the secret.

MOST_ANSWER = 4 * 1024 * 1024
_MOST_OWN = 4096
_AUTHORIZATION = re.compile(r"[ -~]{1,8192}")
_METHODS = {"download": "GET", "upload": "PUT", "verify": "POST"}


@dataclass(frozen=True, slots=True)
class Way:
    """From the environment to a host.

    Attributes:
        relay: the relay's address, as the environment has it.
        host: the host's name, by which the relay knows it.
        origin: the host's address.
    """

    relay: str
    host: str
    origin: URL


class TransferLinks:
    """Makes the addresses by which objects are transferred, and knows them again."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._own: OrderedDict[str, str] = OrderedDict()

    def seal(self, method: str, host: str, path: str) -> str:
        """Return what a request by the relay has to name, which nobody else can make."""
        return hmac.digest(self._key, f"{method} {host}{path}".encode(), "sha256").hex()

    def is_sealed(self, seal: str, method: str, host: str, path: str) -> bool:
        """Tell whether a request is one that a host has led to."""
        return hmac.compare_digest(seal, self.seal(method, host, path))

    def own(self, seal: str) -> str | None:
        """Return the Authorization that a host gave out for a transfer, ``None`` for none."""
        return self._own.get(seal)

    def link(self, way: Way, method: str, target: URL, own: str | None) -> str | None:
        """Return the address of a target by the relay, ``None`` for one of another host.

        The Authorization that the host gave out for it stays here: the environment would take it
        along wherever a redirect leads.
        """
        if not target.absolute or target.origin() != way.origin:
            return None
        path = target.raw_path_qs
        seal = self.seal(method, way.host, path)
        self._own.pop(seal, None)
        if own is not None:
            self._own[seal] = own
            if len(self._own) > _MOST_OWN:
                self._own.popitem(last=False)
        return f"{way.relay}-/{seal}/{way.host}{path}"

    def led(self, way: Way, answer: bytes, hidden: Collection[str]) -> bytes:
        """Return a host's answer to a batch with the host's own addresses led by the relay.

        Args:
            way: that host's.
            answer: what it answered.
            hidden: what may not be in it.

        Raises:
            ValueError: it is no such answer, or holds elsewhere what may not be in it.
        """
        try:
            told = json.loads(answer)
            for one in told["objects"]:
                if "actions" in one:
                    given = (one["actions"] or {}).items()
                    one["actions"] = {key: action for key, action in given if action is not None}
                for name, action in one.get("actions", {}).items():
                    self._lead(way, _METHODS[name], action, hidden)
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise ValueError("it is no answer of Git LFS") from error
        text = json.dumps(told)
        if any(json.dumps(secret)[1:-1] in text for secret in hidden):  # escaped as the text is
            raise ValueError("it holds the secret")
        return text.encode()

    def _lead(self, way: Way, method: str, action: dict[str, Any], hidden: Collection[str]) -> None:
        given = {key: str(value) for key, value in (action.get("header") or {}).items()}
        header = {k: v for k, v in given.items() if not any(secret in v for secret in hidden)}
        named = [key for key in header if key.lower() == "authorization"]
        own = header[named[-1]] if named else None
        if own is not None and not _AUTHORIZATION.fullmatch(own):
            raise ValueError("it is no Authorization")
        if link := self.link(way, method, URL(action["href"], encoded=True), own):
            action["href"] = link
            header = {key: value for key, value in header.items() if key not in named}
        action["header"] = header


# The relay.


class GitRelay:
    """Passes git's requests on to the hosts that there are credentials for.

    Args:
        hosts: which may be reached.
        proxies: the variables that name proxies (``proxy_variables``).

    Attributes:
        token: what git has to send.
        port: its port, 0 before ``serving``.
    """

    def __init__(self, hosts: NamedHosts, proxies: Mapping[str, str] | None = None) -> None:
        self.token = secrets.token_urlsafe(24)
        self.port = 0
        self._hosts = hosts
        self._proxies = proxies or {}
        self._resolver = PublicResolver(hosts, self._proxies)
        self._credentials: dict[str, GitCredential] = {}
        self._session: aiohttp.ClientSession | None = None
        self._calls = asyncio.Semaphore(_MOST_CALLS)
        self._links = TransferLinks()

    def use(self, credentials: Sequence[GitCredential]) -> None:
        """Take these from now on, and no others."""
        self._credentials = {one.host: one for one in credentials}

    def config(self, port: int) -> str:
        """Return what git is to be configured with, where the relay is reached at ``port``."""
        here = f"http://127.0.0.1:{port}/"
        lines = [f'[http "{here}"]', f"\textraHeader = Authorization: Bearer {self.token}"]
        lines.append("\tproxy =")
        for host in sorted(self._credentials):
            lines += [f'[url "{here}{host}/"]', f"\tinsteadOf = {self._hosts.origin(host)}/"]
        return "\n".join(lines) + "\n"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while the context is open; running calls end with it."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=SILENCE_SECONDS
        )
        async with aiohttp.ClientSession(
            timeout=timeout,
            connector=aiohttp.TCPConnector(limit=0, resolver=self._resolver),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        ) as self._session:
            try:
                async with on_loopback(app) as self.port:
                    yield
            finally:
                await self._resolver.close()  # aiohttp closes only those that it made

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if not bears(request.headers.get("Authorization", ""), self.token):
            return _refused("The git relay needs its own token.")
        # The path as it came, as the host might decode it otherwise than we do.
        call = _CALL.fullmatch(f"{request.method} {request.raw_path}")
        if call is None or not self._passes(request, call):
            return _refused("The git relay passes on git's own requests and nothing else.")
        host, path = call["h1"] or call["h2"] or call["h3"], call["p1"] or call["p2"] or call["p3"]
        credential = self._credentials.get(host)
        if credential is None:
            return _refused(f"There is no secret for {host}.")
        async with self._calls:
            return await self._asked(request, credential, path)

    def _passes(self, request: web.Request, call: re.Match[str]) -> bool:
        if seal := call["seal"]:
            return self._links.is_sealed(seal, request.method, call["h3"], call["p3"])
        return not _ASTRAY.search(request.raw_path)

    def _own(self, request: web.Request) -> str | None:
        """Return the Authorization that the host wants for this transfer instead of the secret."""
        return self._links.own(request.raw_path.removeprefix("/-/").partition("/")[0])

    async def _asked(
        self, request: web.Request, credential: GitCredential, path: str
    ) -> web.StreamResponse:
        try:
            self._hosts.check_literal(URL(self._hosts.origin(credential.host)))
            return await self._passed_on(request, credential, path)
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            _log.warning("git_host_failed", host=credential.host, error=str(error))
            return _unreached(credential.host, error)

    async def _passed_on(
        self, request: web.Request, credential: GitCredential, path: str
    ) -> web.StreamResponse:
        assert self._session is not None  # noqa: S101 - it is open while requests come
        origin = self._hosts.origin(credential.host)
        proxy = proxy_for(origin, self._proxies)
        auth = {} if proxy is None else proxy.auth_header()
        if proxy is not None:
            await self._resolver.check_name(URL(origin))
        secret = base64.b64encode(f"{credential.username}:{credential.value}".encode()).decode()
        async with self._session.request(
            request.method,
            URL(origin + path, encoded=True),
            headers={
                **_headers(request, self._own(request) or f"Basic {secret}", path),
                **(auth if origin.startswith("http:") else {}),
            },
            data=request.content if request.can_read_body else None,
            proxy=None if proxy is None else proxy.url,
            proxy_headers=auth if origin.startswith("https:") else None,
            allow_redirects=False,
        ) as answer:
            here = f"http://{request.headers.get('Host', '')}/"
            way = Way(here, credential.host, URL(origin).origin())
            if refusal := self._told(request, credential, answer, way):
                return refusal
            if not _is_batch(path) or answer.status >= HTTPStatus.BAD_REQUEST:
                return await streamed(request, answer, _named(answer.headers, _TO_GIT))
            hidden = {secret, credential.value} if len(credential.value) > _GUESSED else {secret}
            return await self._led(answer, way, hidden)

    async def _led(
        self, answer: aiohttp.ClientResponse, way: Way, hidden: Collection[str]
    ) -> web.Response:
        """Return a host's answer about large files as the environment may have it."""
        body = await beginning(answer.content, MOST_ANSWER + 1)
        try:
            led = self._links.led(way, body, hidden)
        except ValueError as error:
            return _failed(f"What {way.host} answers of large files is not passed on: {error}")
        return web.Response(body=led, content_type=answer.content_type)

    def _told(
        self,
        request: web.Request,
        credential: GitCredential,
        answer: aiohttp.ClientResponse,
        way: Way,
    ) -> web.Response | None:
        """Return the answer to what cannot be passed on as it is: git would ask people for a
        password, or go where a redirect leads.
        """
        host = credential.host
        if answer.status == HTTPStatus.UNAUTHORIZED:
            return _refused(
                f"{host} refuses the secret {credential.name}: it is wrong or has run out."
            )
        if not HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST:
            return None
        target = answer.url.join(URL(answer.headers.get("Location", ""), encoded=True))
        if _is_transfer(request):  # nobody needs the secret for an object that is kept elsewhere
            link = self._links.link(way, request.method, target, self._own(request))
            location = link or str(target)
        elif target.origin() != way.origin or not answer.headers.get("Location"):
            return _refused(
                f"{host} redirects to {target.host or 'nowhere'}, which is not given the secret: "
                "name the repository by its address there."
            )
        else:
            location = f"{way.relay}{host}{target.raw_path_qs}"
        return web.Response(status=answer.status, headers={"Location": location})


def _is_transfer(request: web.Request) -> bool:
    return request.raw_path.startswith("/-/")


def _is_batch(path: str) -> bool:
    return path.endswith(f"/{_BATCH}")


def _headers(request: web.Request, authorization: str, path: str) -> dict[str, str]:
    """Return what a host is told; of an object, all that it wanted to be told with that."""
    if _is_transfer(request):
        without = ("authorization", "expect", "host")
        return {**dict(end_to_end(request.headers, without)), "Authorization": authorization}
    headers = dict(_named(request.headers, _TO_HOST))
    if _is_batch(path):
        headers["accept-encoding"] = "identity"  # it is read here
    return {**headers, "Authorization": authorization}


def _named(headers: Mapping[str, str], names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, headers[name]) for name in names if name in headers]


def _unreached(host: str, error: Exception) -> web.Response:
    """Return the answer to a failure on the way, in words that git's own resemble."""
    if NotPublicError in {type(error), type(error.__cause__)}:
        return _refused(f"Failed to connect to {host}: its address is not public")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return _failed(f"Could not resolve host: {host}")
    if isinstance(error, aiohttp.ClientSSLError):
        return _failed(f"SSL certificate problem: that of {host} is not trusted")
    if isinstance(error, TimeoutError):
        return _failed(f"{host} timed out", HTTPStatus.GATEWAY_TIMEOUT)
    return _failed(f"Failed to connect to {host}")


def _refused(words: str) -> web.Response:
    return _failed(words, HTTPStatus.FORBIDDEN)


def _failed(words: str, status: HTTPStatus = HTTPStatus.BAD_GATEWAY) -> web.Response:
    return web.Response(status=status, text=f"{words}\n")
