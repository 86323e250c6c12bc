"""The gateway to an environment's agentd over HTTP (its API: ``docs/agentd.md``).

No redirect is followed and no cookie kept; what comes back is not trusted (``answers.py``).
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from greylag.agent.answers import (
    BY_CODE,
    LONGEST_WORDS,
    UNAUTHORIZED,
    answer_headers,
    check_answer,
    incoming,
    read_json,
    refusal,
    refused,
    silence_watched,
    whole_frames,
)
from greylag.common import agent_api, forwarding, logs, sockets
from greylag.common.agent_api import (
    AUTHOR_HEADER,
    MOST_AUTHOR,
    Decision,
    ForwardedAnswer,
    ForwardedRequest,
    ForwardedSocket,
    OpenSocket,
    Socket,
    Turn,
)
from greylag.common.git import CAUSES, SETUP, CloneState, GitSetup
from greylag.common.typed import shaped
from greylag.domain.errors import (
    AgentFailedError,
    AgentUnreachableError,
    GreylagError,
    LimitExceededError,
    MissingError,
    RefusalError,
    SessionNotFoundError,
    TooLargeError,
    TurnOverError,
)
from greylag.domain.names import path_segment
from greylag.ports import AgentAddress, AgentAnswer, AgentRequest, AgentStatus, answer_of_its_form

# One request's body on its way to the agent.

PASSED_TO_AGENT = (
    "accept",
    "content-type",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-event-id",
    "range",
)
_REFUSED_FROM = 300
_TOO_MANY = 429
_TYPED_LIMIT = 8 * agent_api.MEBIBYTE


@dataclass(slots=True)
class _Outgoing:
    """A request's body, which ends at ``limit`` bytes; ``failure`` is what ended it too early.

    The client library tells only that sending failed, not why.
    """

    body: AsyncIterator[bytes]
    limit: int
    failure: GreylagError | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes."""
        sent = 0
        try:
            async for chunk in self.body:
                sent += len(chunk)
                check_size(sent, self.limit)
                yield chunk
        except GreylagError as error:
            self.failure = error
            raise


def check_size(size: int, limit: int) -> None:
    """Raise ``TooLargeError`` for a body of more than ``limit`` bytes."""
    if size > limit:
        raise TooLargeError(f"The body is larger than the {limit} bytes that are taken here.")


# The gateway.

_HEARTBEAT_SECONDS = 30.0
_PARTING_SECONDS = 2.0
_MOST_MESSAGE = 2 * 64 * 1024
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Ask:
    """One HTTP request to an agent; ``missing`` is what a 404 without a code means."""

    method: str
    path: str
    missing: GreylagError | None = None
    headers: Mapping[str, str] | None = None
    json: object = None
    outgoing: _Outgoing | None = None


_ANSWER_TIMEOUT = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
# No sock_read: aiohttp would set a timer anew for each event, which costs more than the event
# itself; `silence_watched` does it with one timer a minute.
_STREAM_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)


class HttpAgents:
    """Talks to every environment's agent over one connection pool; it is made on the running loop,
    and is to be closed.
    """

    def __init__(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=30)
        # One agent's cookie must not go to another's.
        self._http = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )
        self._sockets = aiohttp.ClientSession(
            connector=connector,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_ANSWER_TIMEOUT,
            trace_configs=[sockets.never_redirected()],
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._sockets.close()
        await self._http.close()

    async def status(self, at: AgentAddress) -> AgentStatus:
        """Return what answers there."""
        body = await self._call(at, _Ask("GET", "/agent/status"))
        with answer_of_its_form():
            agent, model = body["agent"], body["model"]
            return AgentStatus(
                agent=agent["kind"],
                version=agent["version"] or "",
                model=model["kind"],
                demonstration=model["demonstration"],
                # An older agentd has no terminals, and clones nothing.
                busy=bool(
                    body["active_sessions"] or body.get("watched_terminals") or body.get("cloning")
                ),
                idle_seconds=_seconds(body.get("idle_seconds")),
            )

    async def set_up_git(self, at: AgentAddress, setup: GitSetup) -> CloneState:
        """Tell the environment what its git is to have."""
        body = await self._call(at, _Ask("PUT", SETUP, json=asdict(setup)))
        with answer_of_its_form():
            state = shaped(CloneState, body)
        code = state.code if state.code in CAUSES else ""
        detail = state.detail[:LONGEST_WORDS]
        return replace(state, detail=detail, code=code, hint=CAUSES.get(code, ""))

    @asynccontextmanager
    async def relay(self, at: AgentAddress, request: AgentRequest) -> AsyncIterator[AgentAnswer]:
        """Ask for an operation of the agent's API."""
        operation = request.operation
        asked = _Ask(
            operation.method,
            _path(request),
            _missing(request),
            {name: request.headers[name] for name in PASSED_TO_AGENT if name in request.headers},
            outgoing=_outgoing(request),
        )
        patience = aiohttp.ClientTimeout(
            total=operation.seconds, sock_connect=CONNECT_SECONDS, sock_read=operation.silence
        )
        async with self._open(at, asked, patience) as response:
            check_answer(response, operation)
            body = incoming(response, operation.answer_limit)
            yield AgentAnswer(response.status, answer_headers(response, operation), body)

    @asynccontextmanager
    async def socket(
        self, at: AgentAddress, socket: Socket, parts: Mapping[str, str]
    ) -> AsyncIterator[OpenSocket]:
        """Open a WebSocket of the agent's."""
        path = socket.path.format_map({name: path_segment(parts[name], name) for name in parts})
        try:
            opened = await self._connected(at, path)
        except aiohttp.WSServerHandshakeError as error:
            named = " ".join(parts.values())
            missing = MissingError(f"There is no {socket.name} {named}.")
            raise refusal(error.status, {}, missing) from error
        except sockets.RedirectedError as error:
            raise AgentFailedError(str(error)) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise AgentUnreachableError("The agent does not answer.") from error
        try:
            broken = partial(AgentUnreachableError, "The connection to the agent broke.")
            yield sockets.Peer(opened, broken)
        finally:
            with suppress(TimeoutError):  # one that takes nothing cannot even be told
                async with asyncio.timeout(_PARTING_SECONDS):
                    await opened.close()

    @asynccontextmanager
    async def forward(
        self, at: AgentAddress, port: int, request: ForwardedRequest
    ) -> AsyncIterator[ForwardedAnswer]:
        """Hand a request on to a port of the environment."""
        async with AsyncExitStack() as stack:
            answer = await stack.enter_async_context(self._forwarded(at, port, request))
            status = answer.status if _is_of_agent(answer) else 0
            if (other := await _anew(at, status, request.body)) is not None:
                await stack.aclose()
                answer = await stack.enter_async_context(self._forwarded(other, port, request))
            if _is_of_agent(answer):
                raise _not_forwarded(answer.status, port)
            yield replace(answer, headers=forwarding.put_back(answer.headers))

    @asynccontextmanager
    async def _forwarded(
        self, at: AgentAddress, port: int, request: ForwardedRequest
    ) -> AsyncIterator[ForwardedAnswer]:
        headers = [*_forwarded_headers(at, request), (agent_api.APART.encode(), b"1")]
        asked = replace(request, headers=headers)
        with _port_answers(port):
            async with forwarding.asked(self._http, _port_url(at, port), asked) as answer:
                yield answer

    @asynccontextmanager
    async def forward_socket(
        self, at: AgentAddress, port: int, request: ForwardedRequest, protocols: Sequence[str]
    ) -> AsyncIterator[ForwardedSocket]:
        """Open a WebSocket to a port of the environment."""

        def socket(to: AgentAddress) -> AbstractAsyncContextManager[ForwardedSocket]:
            url, where = _port_url(to, port) + request.target, URL(to.url)
            secure = where.scheme == "https" or None
            connecting = asyncio.open_connection(where.host, where.port, ssl=secure)
            return forwarding.socket_opened(
                connecting, url, _forwarded_headers(to, request), protocols
            )

        async with AsyncExitStack() as stack:
            with _port_answers(port):
                try:
                    opened = await stack.enter_async_context(socket(at))
                except forwarding.RefusedSocketError as error:
                    other = await _anew(at, UNAUTHORIZED if _refuses_token(error) else 0)
                    if other is None:
                        raise
                    opened = await stack.enter_async_context(socket(other))
            yield opened

    async def start_turn(
        self,
        at: AgentAddress,
        session_id: str | None,
        message: str,
        message_id: str,
        author: str | None = None,
    ) -> Turn:
        """Give the agent a message."""
        missing = SessionNotFoundError(f"There is no session {session_id}.")
        asked = {"session_id": session_id, "message": message, "message_id": message_id}
        headers = {} if author is None else {AUTHOR_HEADER: quote(author[:MOST_AUTHOR])}
        return _turn(await self._call(at, _Ask("POST", "/turns", missing, headers, json=asked)))

    @asynccontextmanager
    async def stream_turn(
        self, at: AgentAddress, turn_id: str, after: str | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a turn's events from the one after id ``after``."""
        path = f"/turns/{path_segment(turn_id, 'turn')}/events"
        headers = {} if after is None else {"Last-Event-ID": after}
        asked = _Ask("GET", path, _no_turn(turn_id), headers)
        async with self._open(at, asked, _STREAM_TIMEOUT) as response:
            if response.status == 204:  # noqa: PLR2004 - HTTP's No Content
                raise TurnOverError("Nothing follows that event: the turn is over.")
            if response.status != 200:  # noqa: PLR2004 - HTTP's OK
                raise AgentFailedError("The agent's stream is not one of events.")
            async with silence_watched(response) as heard:
                yield whole_frames(response, heard)

    async def cancel_turn(self, at: AgentAddress, turn_id: str) -> Turn:
        """Ask the turn to end."""
        path = f"/turns/{path_segment(turn_id, 'turn')}/cancel"
        return _turn(await self._call(at, _Ask("POST", path, _no_turn(turn_id))))

    async def confirm(
        self, at: AgentAddress, turn_id: str, confirmation_id: str, decision: Decision
    ) -> None:
        """Answer a confirmation."""
        turn = path_segment(turn_id, "turn")
        path = f"/turns/{turn}/confirmations/{path_segment(confirmation_id, 'confirmation')}"
        await self._call(at, _Ask("POST", path, _no_turn(turn_id), json={"decision": decision}))

    async def _connected(self, at: AgentAddress, path: str) -> aiohttp.ClientWebSocketResponse:
        try:
            return await self._handshake(at, path)
        except aiohttp.WSServerHandshakeError as error:
            other = await _anew(at, error.status)
            if other is None:
                raise
        return await self._handshake(other, path)

    async def _handshake(self, at: AgentAddress, path: str) -> aiohttp.ClientWebSocketResponse:
        return await self._sockets.ws_connect(
            URL(f"{at.url}{agent_api.ROOT}{path}", encoded=True),
            headers=_own_headers(at),
            heartbeat=_HEARTBEAT_SECONDS,
            max_msg_size=_MOST_MESSAGE,
        )

    async def _call(self, at: AgentAddress, asked: _Ask) -> Any:
        """Ask agentd and return its JSON."""
        async with self._open(at, asked, _ANSWER_TIMEOUT) as response:
            try:
                return await read_json(response, _TYPED_LIMIT)
            except ValueError as error:
                raise AgentFailedError("The agent's answer is not JSON.") from error

    @asynccontextmanager
    async def _open(
        self, at: AgentAddress, asked: _Ask, limits: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and give its answer; raise what a refusal or a redirect means."""
        response = await self._sent(at, asked, limits)
        try:
            if (other := await _anew(at, response.status, asked.outgoing)) is not None:
                response.close()
                response = await self._sent(other, asked, limits)
            if response.status >= _REFUSED_FROM and response.status != 304:  # noqa: PLR2004 - HTTP's not modified
                raise await refused(response, asked.missing)
            yield response
        finally:
            # Not released: what is left of an answer must stop now, not be read to its end.
            response.close()

    async def _sent(
        self, at: AgentAddress, asked: _Ask, limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        outgoing = asked.outgoing
        try:
            return await self._http.request(
                asked.method,
                # Encoded already: the library's own tidying would resolve dots.
                URL(f"{at.url}{agent_api.ROOT}{asked.path}", encoded=True),
                headers={**(asked.headers or {}), **_own_headers(at)},
                json=asked.json,
                data=outgoing.chunks() if outgoing else None,
                timeout=limits,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError, GreylagError) as error:
            if outgoing is not None and outgoing.failure is not None:
                raise outgoing.failure from error
            raise AgentUnreachableError("The agent does not answer.") from error


async def _anew(at: AgentAddress, status: int, body: object = None) -> AgentAddress | None:
    """Return where to ask once more after an answer of this status, ``None``: nowhere.

    An agent that refused the token did nothing: it may have been started anew with another. Of a
    body that comes as a stream there is none for a second request, so that is an error.
    """
    if status != UNAUTHORIZED or at.anew is None:
        return None
    try:
        other = await at.anew()
    except GreylagError:
        return None  # what the agent has said is told
    if other != at and body is not None:
        raise AgentUnreachableError("The agent was started anew: it took no body.")
    return None if other == at else other


def _port_url(at: AgentAddress, port: int) -> str:
    return f"{at.url}{agent_api.ROOT}{agent_api.PREVIEW}/{port}"


def _forwarded_headers(at: AgentAddress, request: ForwardedRequest) -> list[tuple[bytes, bytes]]:
    """Return a preview's headers: its own Authorization under another name, beside ours."""
    theirs = agent_api.FORWARDED_AUTHORIZATION.encode()
    renamed = [
        (theirs if name == b"authorization" else name, value) for name, value in request.headers
    ]
    return [*renamed, (b"authorization", f"Bearer {at.token}".encode())]


def _is_of_agent(answer: ForwardedAnswer | forwarding.RefusedSocketError) -> bool:
    """Tell whether agentd itself has answered, and nobody at the port."""
    return agent_api.NOT_FORWARDED.encode() in (name for name, _ in answer.headers)


def _refuses_token(answer: forwarding.RefusedSocketError) -> bool:
    return answer.status == UNAUTHORIZED and _is_of_agent(answer)


def _not_forwarded(status: int, port: int) -> GreylagError:
    if status == _TOO_MANY:
        full = "Shared previews of this project have as much open as may be."
        return LimitExceededError(full, hint="Close some of them, or try again later.")
    silent = RefusalError(f"Nothing answers on port {port}.", "port_silent")
    return refusal(status, {}, None) if status == UNAUTHORIZED else silent


@contextmanager
def _port_answers(port: int) -> Iterator[None]:
    silent = RefusalError("What is to be shown does not answer.", "port_silent")
    try:
        yield
    except forwarding.RefusedSocketError as error:
        raise (_not_forwarded(error.status, port) if _is_of_agent(error) else silent) from error
    except forwarding.UnansweredError as error:
        raise silent from error


def _no_turn(turn_id: str) -> RefusalError:
    return RefusalError(f"There is no turn {turn_id}.", "turn_not_found")


def _missing(request: AgentRequest) -> GreylagError | None:
    for name in (one.name for one in request.operation.parameters):
        if (known := BY_CODE.get(f"{name}_not_found")) is not None:
            return known(f"There is no {name} {request.parts[name]}.")
    return None


def _own_headers(at: AgentAddress) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {at.token}", "Accept-Encoding": "identity"}
    if request_id := logs.request_id.get():
        headers["x-request-id"] = request_id
    return headers


def _path(request: AgentRequest) -> str:
    operation = request.operation
    names = [one.name for one in operation.parameters]
    segments = {name: path_segment(request.parts[name], name) for name in names}
    wanted = (one.name for one in operation.query)
    query = urlencode({name: request.query[name] for name in wanted if name in request.query})
    return operation.path.format_map(segments) + (f"?{query}" if query else "")


def _outgoing(request: AgentRequest) -> _Outgoing | None:
    if request.operation.body is None or request.body is None:
        return None
    limit = request.operation.body_limit
    length = request.headers.get("content-length", "")
    check_size(int(length) if length.isdecimal() else 0, limit)
    return _Outgoing(request.body, limit)


def _turn(body: dict[str, Any]) -> Turn:
    with answer_of_its_form():
        turn = shaped(Turn, body)
        path_segment(turn.turn_id, "turn_id")
        path_segment(turn.session_id, "session_id")
    return turn


def _seconds(told: Any) -> float | None:
    """Return what an agent says of seconds; an older agentd says nothing of some."""
    is_number = isinstance(told, int | float) and told >= 0
    return float(told) if is_number else None
