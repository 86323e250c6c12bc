"""Requests to the API server: one pool, limited in time, repeated only where that is safe."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import structlog
from yarl import URL

from greylag.cluster.kubernetes import tls
from greylag.cluster.kubernetes.calls import Call, pause_after
from greylag.cluster.kubernetes.connection import Connection
from greylag.cluster.kubernetes.failures import ApiError
from greylag.cluster.kubernetes.keepalive import kept_alive
from greylag.domain.errors import ClusterUnavailableError

TRY_SECONDS = 10.0
CONNECT_SECONDS = 5.0
CREDENTIALS_SECONDS = 30.0
CALLS_AT_ONCE = 32
LONGEST_ANSWER = 64 * 1024 * 1024
_LONGEST_ERROR = 64 * 1024
_WARNINGS_KEPT = 200

_log = structlog.get_logger(__name__)


class Transport:
    """The connection pool to one API server. Make it on the running loop; ``close`` it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # The number of calls is held down by `_room`; streams (watches, logs) do not count.
        connector = aiohttp.TCPConnector(
            limit=0, ttl_dns_cache=30, socket_factory=kept_alive, ssl=connection.ssl or True
        )
        self._http = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            # Lists come as they are: unpacking them would hold the loop up.
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )
        # It would repeat a DELETE by itself: what may be repeated is for `Call` to say.
        self._http._retry_connection = False  # noqa: SLF001 - there is no public way
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
        tried, renewed = 0, False
        while True:
            who = await self._who(deadline)
            try:
                # Waiting for room is no try.
                async with asyncio.timeout_at(deadline), self._room, asyncio.timeout(TRY_SECONDS):
                    return await self._once(call, who)
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                if not renewed and self._renews(error, who):
                    renewed = True
                    continue
                tried += 1
                pause = pause_after(call, error, tried)
                if pause is None or loop.time() + pause >= deadline:
                    if isinstance(error, ApiError) and not error.is_unavailable:
                        raise
                    raise self.unavailable(error) from error
            await asyncio.sleep(pause)

    async def answers(self, path: str, within: float) -> bool:
        """Tell whether the API server answers ``path`` now, if only to refuse it."""
        call = Call("GET", path)
        try:
            who = await self._who()
            async with asyncio.timeout(within), self._sent(call, who, _CALL) as response:
                return response.status < 500  # noqa: PLR2004 - HTTP's server errors
        except (aiohttp.ClientError, TimeoutError, OSError, ClusterUnavailableError):
            return False

    @asynccontextmanager
    async def stream(
        self, call: Call, *, silence: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open an answer without an end; one that is silent for ``silence`` seconds breaks off.

        Raises as ``ask``, repeated only with renewed credentials. Errors while it is read are the
        reader's to translate.
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
        call: Call,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own
        stack: AsyncExitStack,
    ) -> aiohttp.ClientResponse:
        renewed = False
        while True:
            who = await self._who()
            try:
                async with asyncio.timeout(TRY_SECONDS):
                    sent = self._sent(call, who, timeout)
                    response = await stack.enter_async_context(sent)
                    await self._check(response)
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                if not renewed and self._renews(error, who):
                    renewed = True
                    continue
                if isinstance(error, ApiError) and not error.is_unavailable:
                    raise
                raise self.unavailable(error) from error
            return response

    def unavailable(self, error: BaseException) -> ClusterUnavailableError:
        """Return what to raise from ``error``."""
        server = self._connection.server
        if isinstance(error, ApiError):
            return ClusterUnavailableError(f"The API server {server} answered {error}.")
        if isinstance(error, TimeoutError):
            return ClusterUnavailableError(f"The API server {server} did not answer in time.")
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            why = f"its certificate is not one to trust ({tls.why_refused(error)})"
        elif isinstance(error, OSError) and error.strerror:
            why = error.strerror
        else:
            why = "the connection broke off"
        return ClusterUnavailableError(f"The API server {server} cannot be reached: {why}.")

    async def _who(self, deadline: float | None = None) -> Mapping[str, str]:
        """Return the headers that say who asks. A program that gives them takes its own time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + CREDENTIALS_SECONDS if deadline is None else deadline
        try:
            async with asyncio.timeout_at(until):
                return await self._connection.credentials.headers()
        except TimeoutError as error:
            message = f"The credentials for {self._connection.server} did not come in time."
            raise ClusterUnavailableError(message) from error

    def _renews(self, error: Exception, who: Mapping[str, str]) -> bool:
        """Tell whether it was refused for credentials that may be renewed; it did nothing then."""
        unknown = isinstance(error, ApiError) and error.status == _UNAUTHORIZED
        return unknown and self._connection.credentials.refused(who)

    async def _once(self, call: Call, who: Mapping[str, str]) -> Any:
        async with self._sent(call, who, _CALL) as response:
            await self._check(response)
            body = await _read(response, LONGEST_ANSWER)
        if len(body) > LONGEST_ANSWER:
            server = self._connection.server
            raise ClusterUnavailableError(
                f"The API server {server} gave an answer that is too long."
            )
        try:
            return json.loads(body)
        except ValueError as error:
            what = ApiError(502, "NotJson", "the answer is not JSON")
            raise what from error

    @asynccontextmanager
    async def _sent(
        self,
        call: Call,
        who: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        to = self._connection
        headers = dict(who)
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
            body = await _read(response, _LONGEST_ERROR)
            asked = response.headers.get("Retry-After")
            if response.status == _UNAUTHORIZED:
                # The connection may be one that showed a certificate of old.
                response.close()
            raise ApiError.of_answer(response.status, response.reason or "", body, asked)


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the body, or more than ``most`` bytes of it when it is longer."""
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > most:
            break
    return b"".join(pieces)


_CALL = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
_UNAUTHORIZED = 401
