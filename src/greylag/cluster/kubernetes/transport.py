"""Requests to the API server: one pool, limited in time, repeated only where that is safe."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import structlog
from yarl import URL

from greylag.cluster.kubernetes.connection import Connection
from greylag.cluster.kubernetes.credentials import why_refused
from greylag.cluster.kubernetes.failures import ApiError
from greylag.common.backoff import backoff
from greylag.common.net import beginning
from greylag.common.typed import parse_json
from greylag.domain.errors import ClusterUnavailableError

TRIES = 5
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
TRY_SECONDS = 10.0
CONNECT_SECONDS = 5.0
CREDENTIALS_SECONDS = 30.0
CALLS_AT_ONCE = 32
LONGEST_ANSWER = 64 * 1024 * 1024

_UNAUTHORIZED = 401
_TOO_MANY = 429
_LONGEST_ERROR = 64 * 1024
_LONGEST_LINE = 16 * 1024 * 1024
_WARNINGS_KEPT = 200
_CALL_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
# Linux's names; what a system lacks is left at its own. The last one is in milliseconds.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ApiCall:
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
            limit=0, ttl_dns_cache=30, socket_factory=_kept_alive, ssl=connection.ssl or True
        )
        self._http = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            # Lists come as they are: unpacking them would hold the loop up.
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )
        # It would repeat a DELETE by itself: what may be repeated is for `ApiCall` to say.
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

    async def ask(self, call: ApiCall, within: float) -> Any:
        """Do ``call`` and return its JSON, with all its tries in ``within`` seconds.

        Raises:
            ApiError: the API server refuses it.
            ClusterUnavailableError: it does not answer or cannot work.
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
                pause = _pause_after(call, error, tried)
                if pause is None or loop.time() + pause >= deadline:
                    if isinstance(error, ApiError) and not error.is_unavailable:
                        raise
                    raise self.unavailable(error) from error
            await asyncio.sleep(pause)

    async def answers(self, path: str, within: float) -> bool:
        """Tell whether the API server answers ``path`` now, if only to refuse it."""
        call = ApiCall("GET", path)
        try:
            who = await self._who()
            async with asyncio.timeout(within), self._sent(call, who, _CALL_TIMEOUT) as response:
                return response.status < 500  # noqa: PLR2004 - HTTP's server errors
        except (aiohttp.ClientError, TimeoutError, OSError, ClusterUnavailableError):
            return False

    @asynccontextmanager
    async def stream(
        self, call: ApiCall, *, silence: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open an answer without an end; one that is silent for ``silence`` seconds breaks off.

        It is repeated only with renewed credentials, and raises as ``ask``. Errors while it is read
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
            why = f"its certificate is not one to trust ({why_refused(error)})"
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

    async def _once(self, call: ApiCall, who: Mapping[str, str]) -> Any:
        async with self._sent(call, who, _CALL_TIMEOUT) as response:
            await self._check(response)
            body = await beginning(response.content, LONGEST_ANSWER + 1)
        if len(body) > LONGEST_ANSWER:
            server = self._connection.server
            raise ClusterUnavailableError(
                f"The API server {server} gave an answer that is too long."
            )
        try:
            return parse_json(body)
        except ValueError as error:
            what = ApiError(502, "NotJson", "the answer is not JSON")
            raise what from error

    @asynccontextmanager
    async def _sent(
        self,
        call: ApiCall,
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
            body = await beginning(response.content, _LONGEST_ERROR)
            asked = response.headers.get("Retry-After")
            if response.status == _UNAUTHORIZED:
                # The connection may be one that showed a certificate of old.
                response.close()
            words, date = response.reason or "", response.headers.get("Date")
            raise ApiError.of_answer(response.status, words, body, asked, date)


class WatchStream:
    """What a watch tells: pairs of ``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK`` and object.

    It ends by itself when its time is over.

    Raises:
        ApiError: the API server ends it; ``is_gone``: list anew.
        ClusterUnavailableError: it breaks off.
    """

    def __init__(self, response: aiohttp.ClientResponse, transport: Transport) -> None:
        self._response = response
        self._transport = transport

    def cut(self) -> None:
        """Break it off; whoever reads gets an error."""
        self._response.close()

    async def __aiter__(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        try:
            async for line in _lines(self._response):
                event = parse_json(line)
                if event["type"] == "ERROR":
                    raise ApiError.of_status(event["object"], code=0)
                yield event["type"], _versioned(event["object"])
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._transport.unavailable(error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ClusterUnavailableError("The watch gave what is not an event.") from error


def _versioned(thing: dict[str, Any]) -> dict[str, Any]:
    """Return ``thing``; ``KeyError`` or ``TypeError`` when one cannot go on from it."""
    if not isinstance(thing["metadata"]["resourceVersion"], str):
        raise TypeError("a version that is not a text")
    return thing


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield whole lines; ``ClusterUnavailableError`` for an end within one."""
    pieces: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            yield b"".join((*pieces, piece))
            pieces, size = [], 0
        if rest:
            pieces.append(rest)
            size += len(rest)
        if size > _LONGEST_LINE:
            raise ClusterUnavailableError("The watch gave an event that is too long.")
    if pieces:
        raise ClusterUnavailableError("The watch broke off within an event.")


def _pause_after(call: ApiCall, error: Exception, tried: int) -> float | None:
    """Return how many seconds to wait before the next try, ``None`` when there must be none.

    ``tried`` is how often it was tried.
    """
    pause = backoff(tried, FIRST_PAUSE, LONGEST_PAUSE)
    if isinstance(error, ApiError):
        if not error.is_unavailable:
            return None
    elif isinstance(error, aiohttp.ClientSSLError):
        return None
    never_begun = isinstance(error, aiohttp.ClientConnectorError) or (
        isinstance(error, ApiError) and error.status == _TOO_MANY
    )
    if tried >= TRIES or not (call.repeatable or never_begun):
        return None
    asked = (isinstance(error, ApiError) and error.retry_after) or 0.0
    # Who asks for more patience is told of to whoever waits, who may come again later.
    return max(asked, pause) if asked <= LONGEST_PAUSE else None


def _kept_alive(address: Any) -> socket.socket:
    """Return a socket for an address as ``getaddrinfo`` gives it.

    Its other end is missed within seconds, though nothing is sent.
    """
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made
