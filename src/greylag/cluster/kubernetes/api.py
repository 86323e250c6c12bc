"""The verbs of the Kubernetes API that Greylag uses, over plain JSON.

``Api`` is what the rest of the adapter calls; ``server_version`` asks at start whether the settings
lead to an API server that takes us.
"""

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

from greylag.cluster.kubernetes import credentials
from greylag.cluster.kubernetes.connection import Connection
from greylag.cluster.kubernetes.failures import ApiError
from greylag.cluster.kubernetes.identity import FIELD_MANAGER, KINDS, Object
from greylag.cluster.kubernetes.transport import ApiCall, Transport, WatchStream
from greylag.domain.errors import ClusterUnavailableError, ConfigError

WITHIN_SECONDS = 30.0
ADMISSION_TIMEOUT = "5s"
"""A write that takes longer, as by a slow admission webhook, is told as that."""

PAGE = 250
_NOT_FOUND = 404
_UNAUTHORIZED = 401
# Where one thing is in several settings: which holds the authority, and which the credentials.
_PARTS = {"KUBE_HOST": ("KUBE_CA", "KUBE_TOKEN")}


@dataclass(frozen=True, slots=True)
class ListPage:
    """Objects of a list, and the version of the whole to watch from."""

    items: Sequence[dict[str, Any]]
    resource_version: str


class Api:
    """One API server. Each call with all its tries takes 30 seconds at most: see ``within``.

    Calls raise ``ApiError`` for what is refused and ``ClusterUnavailableError`` when there is no
    answer. Objects are JSON; ``kind`` is one of ``KINDS``.
    """

    def __init__(self, transport: Transport, within: float = WITHIN_SECONDS) -> None:
        self._transport = transport
        self._within = within

    @classmethod
    def open(cls, connection: Connection) -> Self:
        """Return an API with a pool of its own; call it on the running loop, ``close`` it."""
        return cls(Transport(connection))

    @property
    def connection(self) -> Connection:
        """The way to the API server."""
        return self._transport.connection

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    def within(self, seconds: float) -> "Api":
        """Return the same API (and pool) whose calls take ``seconds`` at most."""
        return Api(self._transport, seconds)

    async def answers(self, within: float) -> bool:
        """Tell whether the API server is up, in ``within`` seconds and one try."""
        return await self._transport.answers("/readyz", within)

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
        container: str = "",
        follow: bool = False,
        tail: int | None = None,
        previous: bool = False,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a container's log (``previous``: of its run before) as chunks of bytes."""
        params = {"follow": str(follow).lower(), "previous": str(previous).lower()}
        if container:
            params["container"] = container
        if tail is not None:
            params["tailLines"] = str(tail)
        request = ApiCall("GET", f"{KINDS['Pod'].path(namespace, pod)}/log", params)
        # A quiet log is no dead one; TCP keepalive tells the two apart.
        async with self._transport.stream(request, silence=None) as response:
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
        async with self._transport.stream(request, silence=silence) as response:
            yield WatchStream(response, self._transport)

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._transport.unavailable(error) from error

    async def _ask(self, request: ApiCall) -> Any:
        return await self._transport.ask(request, self._within)


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
            f"{setting} does not fit the API server {to.server}: it answers {error}."
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
            f"its certificate is refused ({credentials.why_refused(cause)})."
        )
    if isinstance(cause, aiohttp.ClientConnectorSSLError):
        return ConfigError(
            f"{to.source}: there is no TLS with what answers at {to.server} "
            f"({credentials.why_refused(cause)})."
        )
    dns = cause if isinstance(cause, aiohttp.ClientConnectorDNSError) else None
    if dns is not None and dns.os_error.errno == socket.EAI_NONAME:
        return ConfigError(f"{to.source}: no host of the name in {to.server} is known.")
    return None
