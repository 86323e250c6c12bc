"""Where an environment's agent is found, and whether it answers there.

``AgentLocator`` finds the address at which the platform reaches an agent, and the token it demands;
``endpoint_of`` is where users are told that it is. ``AddressProbe`` asks an address before anyone
is told that it answers: a pod that is ready is not yet reached, as load balancers, proxies on nodes
and ingress controllers learn of it a moment later, each in its own time. ``ServiceProxy`` is the
way for a platform that no network leads into the cluster.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from urllib.parse import quote

import aiohttp
from aiohttp import web
from yarl import URL

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.connection import Connection
from greylag.cluster.kubernetes.diagnosis import EnvironmentObjects, is_ready, is_removed
from greylag.cluster.kubernetes.failures import ApiError, translated
from greylag.cluster.kubernetes.identity import (
    START_ANNOTATION,
    Object,
    annotation_of,
    project_selector,
    secret_name,
)
from greylag.cluster.kubernetes.manifests import HEALTH_PATH, PORT_NAME, ingress_url
from greylag.cluster.kubernetes.options import Options
from greylag.cluster.kubernetes.tokens import AgentKeys, token_of
from greylag.common import sockets
from greylag.common.backoff import backoff
from greylag.common.concurrent import until_one_ends
from greylag.common.forwarding import DEFAULTS, HANDSHAKE
from greylag.common.net import end_to_end, on_loopback, streamed
from greylag.domain.errors import AgentTokenLostError, ClusterUnavailableError, NotActiveError
from greylag.domain.project import Environment
from greylag.ports import AgentAddress

KEPT_SECONDS = 10.0
KEPT_MOST = 10_000
REFUSED_SECONDS = 1.0
"""An agent that refuses whatever token it is given is looked up no more often than so."""

FIRST_CONNECT_SECONDS = 0.03
CONNECT_SECONDS = 2.0
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.25
ANSWER_SECONDS = 2.0
TOKEN_HEADER = "X-Greylag-Agent-Token"  # noqa: S105 - the header's name
PROXY_CONNECT_SECONDS = 5.0
HEARTBEAT_SECONDS = 30.0
MOST_MESSAGE = 16 * 1024 * 1024
"""How many bytes a WebSocket's message may have on its way by the API server: it is held whole."""

_OK = 200
_HTTP = web.AppKey("http", aiohttp.ClientSession)
_OURS = frozenset({"authorization", "content-length", "host"})
_HANDSHAKE = frozenset(name.decode() for name in HANDSHAKE)


@dataclass(frozen=True, slots=True)
class _Kept:
    address: AgentAddress
    until: float
    place: "_Place"


_Place = tuple[str, str]
"""What an address was found by: the pod's uid and the Service's version."""


class AgentLocator:
    """Finds agents, remembering each for some seconds, as every message asks.

    Where a watch tells of their pod and Service, it is remembered as long as these are the same.
    """

    def __init__(self, api: Api, options: Options, keys: AgentKeys, proxy: "ServiceProxy") -> None:
        self._api = api
        self._keys = keys
        self._options = options
        self._proxy = proxy
        self._kept: dict[str, _Kept] = {}

    async def reach(
        self, environment: Environment, watched: EnvironmentObjects | None = None
    ) -> AgentAddress:
        """Return a ready environment's address and token; ``watched``: its objects as of now."""
        now = asyncio.get_running_loop().time()
        kept = self._kept.get(environment.id)
        if kept is not None and (now < kept.until or kept.place == _place_of(watched)):
            return kept.address
        with translated():
            address, place = await self._found(environment)
        if len(self._kept) >= KEPT_MOST:
            self._kept.clear()
        self._kept[environment.id] = _Kept(address, now + KEPT_SECONDS, place)
        return address

    async def url(self, environment: Environment, service: Object | None) -> str | None:
        """Return where the platform itself finds the agent, ``None`` if that is not known yet."""
        reach, options = self._options.reach, self._options
        if service is None:
            return None
        if options.reached_by_proxy:
            return await self._proxy.url(environment)
        if reach == "service" or (reach == "auto" and options.platform_namespace):
            return _inside_url(environment, service)
        behind_ingress = reach != "loadbalancer" and options.ingress_base_domain
        if not behind_ingress and service["spec"].get("type") != "LoadBalancer":
            # It was started before the setting said so, and no network leads there from here.
            return await self._proxy.url(environment)
        return (
            endpoint_of(environment, options, service) if behind_ingress else _balancer_url(service)
        )

    def forget(self, environment: Environment) -> None:
        """Look anew next time."""
        self._kept.pop(environment.id, None)

    async def _found(self, environment: Environment) -> tuple[AgentAddress, _Place]:
        names, api = environment.names, self._api
        ours = project_selector(environment)
        pods, service = await asyncio.gather(
            api.list("Pod", names.namespace, selector=ours),
            api.read("Service", names.namespace, names.service),
        )
        url = await self.url(environment, service)
        ready = [pod for pod in pods.items if is_ready(pod) and not is_removed(pod)]
        if url is None or not ready:
            raise NotActiveError("The environment does not run.")
        newest = max(ready, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))
        address = AgentAddress(url, await self._token(environment, newest))
        anew = partial(self._anew, environment, address)
        return replace(address, anew=anew), _place(newest, service)

    async def _anew(self, environment: Environment, refused: AgentAddress) -> AgentAddress:
        """Return the address as it is found now, unless that was done since ``refused`` was."""
        kept = self._kept.get(environment.id)
        now = asyncio.get_running_loop().time()
        if kept and kept.address == refused and now >= kept.until - KEPT_SECONDS + REFUSED_SECONDS:
            self.forget(environment)
        return await self.reach(environment)

    async def _token(self, environment: Environment, pod: Object) -> str:
        """Return what the pod's agent demands; the Secret is read only where no key tells it."""
        derived = self._keys.token(environment.id, annotation_of(pod, START_ANNOTATION))
        if derived is not None:
            return derived
        name = secret_name(environment)
        try:
            return token_of(await self._api.read("Secret", environment.names.namespace, name))
        except ApiError as error:
            # Who is not known at all is told nothing of keys.
            if not (error.status == HTTPStatus.FORBIDDEN and self._keys):
                raise
            raise AgentTokenLostError(
                "The environment was started with another GREYLAG_AGENT_KEY, or without one.",
                hint="Give web and worker the same keys, or deactivate and activate the project.",
            ) from error


def _place(pod: Object, service: Object) -> _Place:
    return pod["metadata"]["uid"], service["metadata"]["resourceVersion"]


def _place_of(watched: EnvironmentObjects | None) -> _Place | None:
    if watched is None or watched.service is None:
        return None
    pod = watched.pod
    return _place(pod, watched.service) if pod is not None and is_ready(pod) else None


def endpoint_of(environment: Environment, options: Options, service: Object | None) -> str | None:
    """Return where users and operators are told that the environment is, ``None`` if unknown yet.

    The Ingress' host where there is one, else the load balancer's address, else the Service.
    """
    if service is None:
        return None
    if (url := ingress_url(environment, options)) is not None:
        return url
    if service["spec"].get("type") == "LoadBalancer":
        return _balancer_url(service)
    return _inside_url(environment, service)


def _inside_url(environment: Environment, service: Object) -> str:
    names = environment.names
    return f"http://{names.service}.{names.namespace}.svc:{_port(service)}"


def _balancer_url(service: Object) -> str | None:
    """Return the load balancer's URL: by its name, else by IPv4, which more callers reach."""
    given = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    hosts = [host for one in given if (host := one.get("hostname") or one.get("ip"))]
    if not hosts:
        return None
    host = min(hosts, key=lambda host: ":" in host)
    return f"http://{f'[{host}]' if ':' in host else host}:{_port(service)}"


def _port(service: Object) -> int:
    """Return the port as the Service has it now; the setting may be of after its start."""
    port: int = service["spec"]["ports"][0]["port"]
    return port


@dataclass(slots=True)
class Probed:
    """How an environment's address has answered.

    Attributes:
        answered: the pod and the address that have.
        failed: how often in a row none has since.
    """

    answered: tuple[str, str] | None = None
    failed: int = 0

    @property
    def pause(self) -> float:
        """In how many seconds to ask again one that has not answered."""
        return backoff(self.failed, FIRST_PAUSE, LONGEST_PAUSE)


class AddressProbe:
    """Asks each pod once, until it has answered. Make it on the running loop; ``close`` it."""

    def __init__(self) -> None:
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        jar = aiohttp.DummyCookieJar()
        self._http = aiohttp.ClientSession(connector=connector, cookie_jar=jar)

    async def answers(self, probed: Probed, pod: str, url: str) -> bool:
        """Tell whether the pod with the uid ``pod`` answers, or has answered before, at ``url``."""
        if probed.answered == (pod, url):
            return True
        answered = await self._ask(url, probed.failed)
        if answered:
            probed.answered = (pod, url)
        probed.failed = 0 if answered else probed.failed + 1
        return answered

    async def _ask(self, url: str, failed: int) -> bool:
        # What is not reached yet often drops the first packet, and TCP sends the next one only
        # after a second; so at first it is better to ask anew soon.
        connect = backoff(failed, FIRST_CONNECT_SECONDS, CONNECT_SECONDS, max)
        timeout = aiohttp.ClientTimeout(total=connect + ANSWER_SECONDS, sock_connect=connect)
        ask = self._http.get(url + HEALTH_PATH, allow_redirects=False, timeout=timeout)
        try:
            async with ask as response:
                return response.status == _OK
        except (aiohttp.ClientError, OSError):
            return False

    async def close(self) -> None:
        """Close what is open."""
        await self._http.close()


class ServiceProxy:
    """A relay on a free port of loopback, begun with its first use. ``close`` it.

    The API server's service proxy takes its own credentials in the header in which an agent wants
    its token. So this relay stands between: it gives the API server the one and the agent the
    other, and streams both ways. Whoever calls it must know the agent's token, as everywhere.
    https://kubernetes.io/docs/tasks/access-application-cluster/access-cluster-services/
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()
        self._opened = AsyncExitStack()
        self._address = ""

    async def url(self, environment: Environment) -> str:
        """Return where the project's agent is found."""
        async with self._lock:
            if not self._address:
                await self._begin()
        return f"{self._address}/{environment.names.namespace}/{environment.names.service}"

    async def close(self) -> None:
        """End the relay."""
        await self._opened.aclose()

    async def _begin(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        http = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=PROXY_CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trace_configs=[sockets.never_redirected()],
        )
        app = web.Application(client_max_size=0)
        async with AsyncExitStack() as opened:
            app[_HTTP] = await opened.enter_async_context(http)
            app.router.add_route("*", "/{namespace}/{service}/{path:.*}", self._relay)
            port = await opened.enter_async_context(on_loopback(app))
            self._opened = opened.pop_all()
        self._address = f"http://127.0.0.1:{port}"

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        for_socket = request.headers.get("Upgrade", "").lower() == "websocket"
        relay = self._relay_socket if for_socket else self._relay_request
        try:
            return await relay(request, request.app[_HTTP])
        except aiohttp.WSServerHandshakeError as error:
            return web.Response(status=error.status)
        except (aiohttp.ClientConnectionError, ClusterUnavailableError, OSError) as error:
            raise web.HTTPBadGateway(text="The API server cannot be reached.") from error

    async def _relay_request(
        self, request: web.Request, http: aiohttp.ClientSession
    ) -> web.StreamResponse:
        async with http.request(
            request.method,
            self._target(request),
            headers=await self._headers(request),
            skip_auto_headers=DEFAULTS,
            data=request.content if request.can_read_body else None,
            allow_redirects=False,
            ssl=self._connection.tls,
            proxy=self._connection.proxy,
            server_hostname=self._connection.server_name,
        ) as answer:
            return await streamed(request, answer, end_to_end(answer.headers))

    async def _relay_socket(
        self, request: web.Request, http: aiohttp.ClientSession
    ) -> web.StreamResponse:
        offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")
        async with http.ws_connect(
            self._target(request),
            protocols=[one.strip() for one in offered if one.strip()],
            headers=await self._headers(request),
            max_msg_size=MOST_MESSAGE,
            heartbeat=HEARTBEAT_SECONDS,
            ssl=self._connection.tls,
            proxy=self._connection.proxy,
            server_hostname=self._connection.server_name,
        ) as agent:
            return await _joined(request, agent)

    def _target(self, request: web.Request) -> URL:
        names = request.match_info
        namespace, service = quote(names["namespace"], safe=""), quote(names["service"], safe="")
        # The path as it was sent: what is quoted in it stays so.
        _, _, _, rest = request.raw_path.split("/", 3)
        return URL(
            f"{self._connection.server}/api/v1/namespaces/{namespace}/services/"
            f"http:{service}:{PORT_NAME}/proxy/{rest}",
            encoded=True,
        )

    async def _headers(self, request: web.Request) -> Mapping[str, str]:
        headers = dict(end_to_end(request.headers, without=_OURS | _HANDSHAKE))
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            headers[TOKEN_HEADER] = token.strip()
        return {**headers, **await self._connection.credentials.headers()}


async def _joined(
    request: web.Request, agent: aiohttp.ClientWebSocketResponse
) -> web.WebSocketResponse:
    """Accept the platform's WebSocket and carry messages both ways until one side ends."""
    chosen = () if agent.protocol is None else (agent.protocol,)
    ours = web.WebSocketResponse(protocols=chosen, max_msg_size=MOST_MESSAGE, compress=False)
    await ours.prepare(request)
    await until_one_ends(output=_carried(agent, ours), input=_carried(ours, agent))
    await ours.close(code=sockets.code_after(agent.close_code))
    return ours


_Socket = aiohttp.ClientWebSocketResponse | web.WebSocketResponse


async def _carried(source: _Socket, target: _Socket) -> None:
    """Carry what one end says, each message once the one before was taken, until it says no more.

    What comes for an end that has gone is for nobody: its last words still pass the other way.
    """
    async for message in source:
        with suppress(aiohttp.ClientError, ConnectionError):
            if message.type is aiohttp.WSMsgType.TEXT:
                await target.send_str(message.data)
            elif message.type is aiohttp.WSMsgType.BINARY:
                await target.send_bytes(message.data)
