"""The verbs of the Kubernetes API that Greylag uses, over plain JSON: one pool, limited in time.

``Api`` is what the rest of the adapter calls; ``server_version`` asks at start whether the settings
lead to an API server that takes us.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import structlog
from yarl import URL

from greylag.cluster.kubernetes import credentials
from greylag.cluster.kubernetes.calls import (
    Answer,
    ApiCall,
    WatchStream,
    kept_alive,
    pause_after,
    unavailable,
)
from greylag.cluster.kubernetes.connection import Connection
from greylag.cluster.kubernetes.failures import ApiError
from greylag.cluster.kubernetes.identity import FIELD_MANAGER, KINDS, Object
from greylag.common.net import beginning, why_refused
from greylag.common.typed import parse_json
from greylag.domain.errors import ClusterUnavailableError, ConfigError

WITHIN_SECONDS = 30.0
ADMISSION_TIMEOUT = "5s"
"""A write that takes longer, as by a slow admission webhook, is told as that."""

TRY_SECONDS = 10.0
CONNECT_SECONDS = 5.0
CREDENTIALS_SECONDS = 30.0
CALLS_AT_ONCE = 32
LONGEST_ANSWER = 64 * 1024 * 1024
PAGE = 250

_NOT_FOUND = 404
_UNAUTHORIZED = 401
_LONGEST_ERROR = 64 * 1024
_WARNINGS_KEPT = 200
_CALL_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
# Where one thing is in several settings: which holds the authority, and which the credentials.
_PARTS = {"KUBE_HOST": ("KUBE_CA", "KUBE_TOKEN")}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ListPage:
    """Objects of a list, and the version of the whole to watch from."""

    items: Sequence[dict[str, Any]]
    resource_version: str


class Api:
    """One API server. Each call with all its tries takes 30 seconds at most: see ``within``.

    Calls raise ``ApiError`` for what is refused and ``ClusterUnavailableError`` when there is no
    answer. Objects are JSON; ``kind`` is one of ``KINDS``. Make it on the running loop; ``close``
    it.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._within = WITHIN_SECONDS
        # The number of calls is held down by `_room`; streams (watches, logs) do not count.
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=30, socket_factory=kept_alive)
        self._http = aiohttp.ClientSession(
            connector=connector,
            response_class=Answer,
            cookie_jar=aiohttp.DummyCookieJar(),
            # Lists come as they are: unpacking them would hold the loop up.
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )
        # It would repeat a DELETE by itself: what may be repeated is for `ApiCall` to say.
        self._http._retry_connection = False  # noqa: SLF001 - there is no public way
        self._room = asyncio.Semaphore(CALLS_AT_ONCE)
        self._warned: set[str] = set()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    def within(self, seconds: float) -> Self:
        """Return the same API (and pool) whose calls take ``seconds`` at most."""
        same = copy(self)
        same._within = seconds  # noqa: SLF001 - its own
        return same

    async def answers(self, within: float) -> bool:
        """Tell whether the API server is up, in ``within`` seconds and one try."""
        call = ApiCall("GET", "/readyz")
        try:
            who = await self._who()
            async with asyncio.timeout(within), self._sent(call, who, _CALL_TIMEOUT) as response:
                return response.status < 500  # noqa: PLR2004 - HTTP's server errors
        except (aiohttp.ClientError, OSError, ClusterUnavailableError):
            return False

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        """Return what is at ``path``."""
        return await self._ask(ApiCall("GET", path, params or {}, repeatable=True))

    async def read(self, kind: str, namespace: str | None, name: str) -> dict[str, Any] | None:
        """Return one object, ``None`` when there is none."""
        try:
            found: dict[str, Any] = await self.get(KINDS[kind].path(namespace, name))
        except ApiError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        return found

    async def list(
        self, kind: str, namespace: str | None = None, *, selector: str = "", fields: str = ""
    ) -> ListPage:
        """Return all objects of ``namespace`` (``None``: of all) that both selectors choose."""
        items: list[dict[str, Any]] = []
        version = ""
        async for page in self.pages(kind, namespace, selector=selector, fields=fields):
            items += page.items
            version = page.resource_version
        return ListPage(items, version)

    async def pages(
        self, kind: str, namespace: str | None = None, *, selector: str = "", fields: str = ""
    ) -> AsyncIterator[ListPage]:
        """Yield what ``list`` returns in pages, so that not all is held at once.

        Raises:
            ApiError: ``is_gone`` when reading took too long: begin anew.
        """
        params = _chosen(selector, fields) | {"limit": str(PAGE)}
        while True:
            answer = await self.get(KINDS[kind].path(namespace), params)
            try:
                meta = answer["metadata"]
                page = ListPage(answer["items"] or (), meta["resourceVersion"])
            except (KeyError, TypeError) as error:
                message = f"What answers at {self.connection.server} gave no list."
                raise ClusterUnavailableError(message) from error
            yield page
            if not meta.get("continue"):
                return
            params["continue"] = meta["continue"]

    async def apply(self, thing: Object) -> dict[str, Any]:
        """Make the fields in ``thing`` as they are there, by server-side apply, and return it all.

        Fields that we set before and that are missing now are removed; those that others set are
        taken over where they stand in ``thing``, and else left alone.
        """
        meta = thing["metadata"]
        request = ApiCall(
            "PATCH",
            KINDS[thing["kind"]].path(meta.get("namespace"), meta["name"]),
            {"fieldManager": FIELD_MANAGER, "force": "true", "timeout": ADMISSION_TIMEOUT},
            body=thing,
            content_type="application/apply-patch+yaml",
            repeatable=True,
        )
        applied: dict[str, Any] = await self._ask(request)
        return applied

    async def patch_merge(
        self, kind: str, namespace: str | None, name: str, patch: Object
    ) -> dict[str, Any]:
        """Set the fields in ``patch`` (RFC 7396) and return the object.

        With ``metadata.resourceVersion`` in it, it is 409 if somebody else was there first.
        """
        request = ApiCall(
            "PATCH",
            KINDS[kind].path(namespace, name),
            {"fieldManager": FIELD_MANAGER, "timeout": ADMISSION_TIMEOUT},
            body=patch,
            content_type="application/merge-patch+json",
            # Done twice it is a conflict, never two changes.
            repeatable="resourceVersion" in patch.get("metadata", {}),
        )
        patched: dict[str, Any] = await self._ask(request)
        return patched

    async def delete(  # noqa: PLR0913 - each is a condition of its own, given by name
        self,
        kind: str,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        version: str | None = None,
        again: bool = False,
    ) -> bool:
        """Begin to delete it; ``False`` when it was not there.

        With ``uid`` only that very object is deleted: another of its name is ``ApiError`` 409. So
        is one that is no longer of the resourceVersion ``version``. ``again``: it may be tried
        again without ``uid`` too.
        """
        body: dict[str, Any] = {"propagationPolicy": "Background"}
        given = {"uid": uid, "resourceVersion": version}
        if conditions := {name: value for name, value in given.items() if value is not None}:
            body["preconditions"] = conditions
        path = KINDS[kind].path(namespace, name)
        try:
            await self._ask(ApiCall("DELETE", path, body=body, repeatable=again or uid is not None))
        except ApiError as error:
            if error.status == _NOT_FOUND:
                return False
            raise
        return True

    @asynccontextmanager
    async def stream_log(  # noqa: PLR0913 - as many as the API server takes
        self,
        namespace: str,
        pod: str,
        *,
        container: str,
        follow: bool = False,
        tail: int | None = None,
        previous: bool = False,
        timestamps: bool = False,
        since: str = "",
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a container's log (``previous``: of its run before) as chunks of bytes.

        ``timestamps``: before each line, when it was written. ``since``: such a time; what was
        written in the same second before comes, too.
        """
        params = {
            "container": container,
            "follow": str(follow).lower(),
            "previous": str(previous).lower(),
        }
        if tail is not None:
            params["tailLines"] = str(tail)
        if timestamps:
            params["timestamps"] = "true"
        if since:
            params["sinceTime"] = since
        request = ApiCall("GET", f"{KINDS['Pod'].path(namespace, pod)}/log", params)
        # A quiet log is no dead one; TCP keepalive tells the two apart.
        async with self._stream(request, silence=None) as response:
            yield self._chunks(response)

    @asynccontextmanager
    async def watch(
        self, kind: str, *, selector: str = "", resource_version: str, seconds: int, silence: float
    ) -> AsyncIterator[WatchStream]:
        """Open what changes from ``resource_version`` on, for about ``seconds``.

        A stream that is silent for ``silence`` seconds is broken off (bookmarks come each minute).
        """
        params = _chosen(selector, "") | {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        }
        request = ApiCall("GET", KINDS[kind].path(), params)
        async with self._stream(request, silence=silence) as response:
            yield WatchStream(response, self.connection.server)

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise unavailable(self.connection.server, error) from error

    async def _ask(self, call: ApiCall) -> Any:
        """Do ``call`` and return its JSON, with all its tries in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._within
        tried, renewed = 0, False
        while True:
            who = await self._who(deadline)
            try:
                # Waiting for room is no try.
                async with asyncio.timeout_at(deadline), self._room, asyncio.timeout(TRY_SECONDS):
                    return await self._once(call, who)
            except (ApiError, aiohttp.ClientError, OSError) as error:
                if not renewed and self._renews(error, who):
                    renewed = True
                    continue
                tried += 1
                pause = pause_after(call, error, tried)
                if pause is None or loop.time() + pause >= deadline:
                    if isinstance(error, ApiError) and not error.is_unavailable:
                        raise
                    raise unavailable(self.connection.server, error) from error
            await asyncio.sleep(pause)

    @asynccontextmanager
    async def _stream(
        self, call: ApiCall, *, silence: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open an answer without an end; one that is silent for ``silence`` seconds breaks off.

        It is repeated only with renewed credentials, and raises as a call. Errors while it is read
        are the reader's to translate.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence)
        async with AsyncExitStack() as stack:
            response = await self._opened(call, timeout, stack)
            try:
                yield response
            finally:
                response.close()

    async def _opened(
        self,
        call: ApiCall,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own
        stack: AsyncExitStack,
    ) -> aiohttp.ClientResponse:
        renewed = False
        while True:
            who = await self._who()
            try:
                async with asyncio.timeout(TRY_SECONDS):
                    response = await stack.enter_async_context(self._sent(call, who, timeout))
                    await self._check(response)
            except (ApiError, aiohttp.ClientError, OSError) as error:
                if not renewed and self._renews(error, who):
                    renewed = True
                    continue
                if isinstance(error, ApiError) and not error.is_unavailable:
                    raise
                raise unavailable(self.connection.server, error) from error
            return response

    async def _who(self, deadline: float | None = None) -> Mapping[str, str]:
        """Return the headers that say who asks. A program that gives them takes its own time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + CREDENTIALS_SECONDS if deadline is None else deadline
        try:
            async with asyncio.timeout_at(until):
                return await self.connection.credentials.headers()
        except TimeoutError as error:
            message = f"The credentials for {self.connection.server} did not come in time."
            raise ClusterUnavailableError(message) from error

    def _renews(self, error: Exception, who: Mapping[str, str]) -> bool:
        """Tell whether it was refused for credentials that may be renewed; it did nothing then."""
        unknown = isinstance(error, ApiError) and error.status == _UNAUTHORIZED
        return unknown and self.connection.credentials.refused(who)

    async def _once(self, call: ApiCall, who: Mapping[str, str]) -> Any:
        async with self._sent(call, who, _CALL_TIMEOUT) as response:
            await self._check(response)
            body = await beginning(response.content, LONGEST_ANSWER + 1)
        if len(body) > LONGEST_ANSWER:
            message = f"The API server {self.connection.server} gave an answer that is too long."
            raise ClusterUnavailableError(message)
        try:
            return parse_json(body)
        except ValueError as error:
            raise ApiError(502, "NotJson", "the answer is not JSON") from error

    def _sent(
        self,
        call: ApiCall,
        who: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        to = self.connection
        headers = dict(who)
        data = None
        if call.body is not None:
            headers["Content-Type"] = call.content_type
            data = json.dumps(call.body).encode()
        return self._http.request(
            call.method,
            URL(to.server + call.path, encoded=True).update_query(call.params),
            headers=headers,
            data=data,
            timeout=timeout,
            # A redirect could send the credentials elsewhere.
            allow_redirects=False,
            ssl=to.tls,
            proxy=to.proxy,
            server_hostname=to.server_name,
        )

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """Raise what is no success; tell the operator once of what the API server warns of."""
        for warning in response.headers.getall("Warning", ()):
            if warning not in self._warned and len(self._warned) < _WARNINGS_KEPT:
                self._warned.add(warning)
                _log.warning("kubernetes_warning", text=warning)
        if not 200 <= response.status < 300:  # noqa: PLR2004 - HTTP's successes
            body = await beginning(response.content, _LONGEST_ERROR)
            asked = response.headers.get("Retry-After")
            words, date = response.reason or "", response.headers.get("Date")
            raise ApiError.of_answer(response.status, words, body, asked, date)


def _chosen(selector: str, fields: str) -> dict[str, str]:
    params = {"labelSelector": selector, "fieldSelector": fields}
    return {key: value for key, value in params.items() if value}


async def server_version(api: Api) -> str:
    """Return the API server's version.

    Raises:
        ConfigError: the settings lead to something that will not take us.
        ClusterUnavailableError: nothing answers, which may pass.
    """
    to = api.connection
    try:
        return str((await api.get("/version"))["gitVersion"])
    except ClusterUnavailableError as error:
        if (wrong := _wrong_way(to, error.__cause__)) is not None:
            raise wrong from error
        raise ClusterUnavailableError(f"{to.source}: {error}", hint=error.info.hint) from error
    except ApiError as error:
        unknown = error.status == _UNAUTHORIZED and to.source in _PARTS
        setting = _PARTS[to.source][1] if unknown else to.source
        raise ConfigError(
            f"{setting} does not fit the API server {to.server}: it answers {error}.",
            hint="Renew what has run out, or correct the setting: docs/kubernetes.md lists them.",
        ) from error
    except (KeyError, TypeError) as error:
        message = f"{to.source}: what answers at {to.server} is no Kubernetes API server."
        raise ConfigError(message) from error


def _wrong_way(to: Connection, cause: BaseException | None) -> ConfigError | None:
    """Return what is wrong with the settings for good, ``None`` for what may pass."""
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        authority = _PARTS.get(to.source, (to.source,))[0]
        setting = to.source if credentials.is_other_name(cause) else authority
        return ConfigError(
            f"{setting} does not fit the API server {to.server}: "
            f"its certificate is refused ({why_refused(cause)})."
        )
    if isinstance(cause, aiohttp.ClientConnectorSSLError):
        return ConfigError(
            f"{to.source}: there is no TLS with what answers at {to.server} ({why_refused(cause)})."
        )
    dns = cause if isinstance(cause, aiohttp.ClientConnectorDNSError) else None
    if dns is not None and dns.os_error.errno == socket.EAI_NONAME:
        return ConfigError(f"{to.source}: no host of the name in {to.server} is known.")
    return None
