"""Requests to the API server: one pool, limited in time, repeated only where that is safe."""

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import structlog
from yarl import URL

from greylag.cluster.kubernetes.connection import Connection
from greylag.cluster.kubernetes.failures import ApiError
from greylag.domain.errors import ClusterUnavailableError

TRY_SECONDS = 10.0
CONNECT_SECONDS = 5.0
TRIES = 5
CALLS_AT_ONCE = 32
FIRST_PAUSE = 0.1
_LONGEST_ERROR = 64 * 1024
_WARNINGS_KEPT = 200

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """One request. ``repeatable``: doing it twice is the same as doing it once."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    content_type: str = "application/json"
    repeatable: bool = False


class Transport:
    """The connection pool to one API server. Make it on the running loop; ``close`` it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # The number of calls is held down by `_room`; streams (watches, logs) do not count.
        connector = aiohttp.TCPConnector(
            limit=0, ttl_dns_cache=30, socket_factory=_socket, ssl=connection.ssl or True
        )
        self._http = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            # Lists come as they are: unpacking them would hold the loop up.
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )
        self._room = asyncio.Semaphore(CALLS_AT_ONCE)
        self._warned: set[str] = set()

    @property
    def connection(self) -> Connection:
        """Where it leads to."""
        return self._connection

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def ask(self, call: Call, within: float) -> Any:
        """Do ``call`` and return its JSON, with all its tries in ``within`` seconds.

        Raises ``ApiError`` for what the API server refuses, ``ClusterUnavailableError`` when it
        does not answer or cannot work.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        tried = 0
        while True:
            try:
                until = min(deadline, loop.time() + TRY_SECONDS)
                async with asyncio.timeout_at(until), self._room:
                    return await self._once(call)
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                tried += 1
                pause = self._pause(call, error, tried)
                if pause is None or loop.time() + pause >= deadline:
                    if isinstance(error, ApiError) and not error.is_unavailable:
                        raise
                    raise self.unavailable(error) from error
            await asyncio.sleep(pause)

    async def answers(self, path: str, within: float) -> bool:
        """Tell whether the API server answers ``path`` now, if only to refuse it."""
        try:
            async with asyncio.timeout(within), self._sent(Call("GET", path), _CALL) as response:
                return response.status < 500  # noqa: PLR2004 - HTTP's server errors
        except (aiohttp.ClientError, TimeoutError, OSError, ClusterUnavailableError):
            return False

    @asynccontextmanager
    async def stream(
        self, call: Call, *, silence: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open an answer without an end; one that is silent for ``silence`` seconds breaks off.

        Raises as ``ask``, without repeating. Errors while it is read are the reader's to translate.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence)
        sent = self._sent(call, timeout)
        try:
            async with asyncio.timeout(TRY_SECONDS):
                response = await sent.__aenter__()
                await self._check(response)
        except ApiError as error:
            if error.status == _UNAUTHORIZED:
                self._connection.credentials.refused()
            if error.is_unavailable:
                raise self.unavailable(error) from error
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self.unavailable(error) from error
        try:
            yield response
        finally:
            response.close()

    def unavailable(self, error: BaseException) -> ClusterUnavailableError:
        """Return what to raise from ``error``."""
        server = self._connection.server
        if isinstance(error, ApiError):
            return ClusterUnavailableError(f"The API server {server} answered {error}.")
        if isinstance(error, TimeoutError):
            return ClusterUnavailableError(f"The API server {server} did not answer in time.")
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            why = "its certificate is not one to trust"
        elif isinstance(error, OSError) and error.strerror:
            why = error.strerror
        else:
            why = "the connection broke off"
        return ClusterUnavailableError(f"The API server {server} cannot be reached: {why}.")

    async def _once(self, call: Call) -> Any:
        async with self._sent(call, _CALL) as response:
            await self._check(response)
            body = await response.read()
        try:
            return json.loads(body)
        except ValueError as error:
            what = ApiError(502, "NotJson", "the answer is not JSON")
            raise what from error

    @asynccontextmanager
    async def _sent(
        self,
        call: Call,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        to = self._connection
        headers = dict(await to.credentials.headers())
        data = None
        if call.body is not None:
            headers["Content-Type"] = call.content_type
            data = json.dumps(call.body).encode()
        async with self._http.request(
            call.method,
            URL(to.server + call.path, encoded=True).update_query(call.params),
            headers=headers,
            data=data,
            timeout=timeout,
            # A redirect could send the credentials elsewhere.
            allow_redirects=False,
            proxy=to.proxy,
            server_hostname=to.server_name,
        ) as response:
            yield response

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """Raise what is no success; tell the operator once of what the API server warns of."""
        for warning in response.headers.getall("Warning", ()):
            if warning not in self._warned and len(self._warned) < _WARNINGS_KEPT:
                self._warned.add(warning)
                _log.warning("kubernetes_warning", text=warning)
        if not 200 <= response.status < 300:  # noqa: PLR2004 - HTTP's successes
            body = await response.content.read(_LONGEST_ERROR)
            asked = response.headers.get("Retry-After")
            raise ApiError.of_answer(response.status, response.reason or "", body, asked)

    def _pause(self, call: Call, error: Exception, tried: int) -> float | None:
        """Return how long to wait before the next try, ``None`` when there must be none."""
        pause = random.uniform(0.5, 1) * FIRST_PAUSE * 2.0**tried  # noqa: S311 - spreads load, no secret
        if isinstance(error, ApiError):
            if error.status == _UNAUTHORIZED and tried == 1:
                return 0 if self._connection.credentials.refused() else None
            if error.status == _TOO_MANY:  # it has not begun, so any call may be repeated
                return max(error.retry_after or 0.0, pause)
            if not error.is_unavailable:
                return None
        elif isinstance(error, aiohttp.ClientSSLError):
            return None
        never_sent = isinstance(error, aiohttp.ClientConnectorError)
        if tried >= TRIES or not (call.repeatable or never_sent):
            return None
        asked = error.retry_after if isinstance(error, ApiError) else None
        return max(asked or 0.0, pause)


def _socket(address: Any) -> socket.socket:
    """Make a socket whose other end is missed within seconds, though nothing is sent."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


_CALL = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
_UNAUTHORIZED = 401
_TOO_MANY = 429
# Linux's names; what a system lacks is left at its own. The last one is in milliseconds.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}
