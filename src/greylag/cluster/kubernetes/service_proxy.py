"""Reaching agents through the API server, for a platform that no network leads into the cluster.

The API server's service proxy takes its own credentials in the header in which an agent wants its
token. So a small relay on loopback stands between: it gives the API server the one and the agent
the other, and streams both ways. Whoever calls it must know the agent's token, as everywhere.
https://kubernetes.io/docs/tasks/access-application-cluster/access-cluster-services/
"""

import asyncio
from collections.abc import Mapping
from urllib.parse import quote

import aiohttp
from aiohttp import web
from yarl import URL

from greylag.cluster.kubernetes.connection import Connection
from greylag.domain.errors import ClusterUnavailableError
from greylag.domain.project import Project

TOKEN_HEADER = "X-Greylag-Agent-Token"  # noqa: S105 - the header's name
CONNECT_SECONDS = 5.0

_HTTP = web.AppKey("http", aiohttp.ClientSession)
_NOT_PASSED = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class ServiceProxy:
    """A relay on a free port of loopback, begun with its first use. ``close`` it."""

    def __init__(self, connection: Connection, agent_port: int) -> None:
        self._connection = connection
        self._agent_port = agent_port
        self._lock = asyncio.Lock()
        self._runner: web.AppRunner | None = None
        self._http: aiohttp.ClientSession | None = None
        self._address = ""

    async def url(self, project: Project) -> str:
        """Return where the project's agent is found."""
        async with self._lock:
            if self._runner is None:
                await self._begin()
        return f"{self._address}/{project.names.namespace}/{project.names.service}"

    async def close(self) -> None:
        """End the relay."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._http is not None:
            await self._http.close()

    async def _begin(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._connection.ssl or True)
        self._http = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        app = web.Application(client_max_size=0)
        app[_HTTP] = self._http
        app.router.add_route("*", "/{namespace}/{service}/{path:.*}", self._relay)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        self._address, self._runner = f"http://127.0.0.1:{port}", runner

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        http: aiohttp.ClientSession = request.app[_HTTP]
        try:
            async with http.request(
                request.method,
                self._target(request),
                headers=await self._headers(request),
                data=request.content if request.can_read_body else None,
                allow_redirects=False,
                proxy=self._connection.proxy,
                server_hostname=self._connection.server_name,
            ) as answer:
                return await _passed_on(request, answer)
        except (aiohttp.ClientConnectionError, ClusterUnavailableError, OSError) as error:
            raise web.HTTPBadGateway(text="The API server cannot be reached.") from error

    def _target(self, request: web.Request) -> URL:
        names = request.match_info
        namespace, service = quote(names["namespace"], safe=""), quote(names["service"], safe="")
        # The path as it was sent: what is quoted in it stays so.
        _, _, _, rest = request.raw_path.split("/", 3)
        return URL(
            f"{self._connection.server}/api/v1/namespaces/{namespace}/services/"
            f"http:{service}:{self._agent_port}/proxy/{rest}",
            encoded=True,
        )

    async def _headers(self, request: web.Request) -> Mapping[str, str]:
        headers = _kept(request.headers)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            headers[TOKEN_HEADER] = token.strip()
        return {**headers, **await self._connection.credentials.headers()}


async def _passed_on(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=_kept(answer.headers))
    await response.prepare(request)
    try:
        async for chunk in answer.content.iter_any():
            # It waits for a slow reader, so that nothing piles up here.
            await response.write(chunk)
    except aiohttp.ClientError:
        # Cut off, not ended: the reader must see that, and goes on from its last event.
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _NOT_PASSED}
