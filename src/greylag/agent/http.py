"""agentd's refusals as errors of ours."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from greylag.common import logs, sse
from greylag.domain.errors import (
    AgentFailedError,
    AgentUnreachableError,
    ConfirmationNotFoundError,
    ConfirmationSettledError,
    ConflictError,
    GreylagError,
    InvalidRequestError,
    LimitExceededError,
    SessionBusyError,
    SessionNotFoundError,
    StreamCutError,
    TooLargeError,
    TurnNotFoundError,
)
from greylag.ports import AgentAddress, AgentStatus, ChatMessage, Decision, Session, Turn

_BY_CODE: Mapping[str, Callable[[str], GreylagError]] = {
    "session_not_found": SessionNotFoundError,
    "session_busy": SessionBusyError,
    "turn_not_found": TurnNotFoundError,
    "message_id_conflict": ConflictError,
    "confirmation_not_found": ConfirmationNotFoundError,
    "confirmation_settled": ConfirmationSettledError,
    "events_gone": TurnNotFoundError,
    "too_large": TooLargeError,
    "unknown_event": InvalidRequestError,
    "invalid_request": InvalidRequestError,
    "limit_exceeded": LimitExceededError,
}
_BY_STATUS: Mapping[int, Callable[[str], GreylagError]] = {
    400: InvalidRequestError,
    413: TooLargeError,
    429: LimitExceededError,
    503: AgentUnreachableError,
}


def refusal(status: int, body: Mapping[str, Any], missing: GreylagError | None) -> GreylagError:
    """Return the error that agentd's answer means.

    ``status`` is the HTTP status, ``body`` the JSON of agentd's errors (``error``, ``message``,
    ``code``); ``missing`` is what a 404 without a code of ours means for the call that was made.
    """
    said = body.get("message")
    message = said if isinstance(said, str) and said else f"The agent answered {status}."
    known = _BY_CODE.get(str(body.get("code"))) or _BY_STATUS.get(status)
    if known is not None:
        return known(message)
    if status == 404 and missing is not None:  # noqa: PLR2004 - HTTP's not found
        return missing
    return AgentFailedError(message)


# Reading a turn's stream from agentd: whole frames, and an end to those that have died.

SILENCE_SECONDS = 60.0
"""agentd sends a heartbeat every 15 s; a stream that is silent this long is dead."""

_COMPLETE = b'"type":"complete"'
_LAST_FRAME = 4096


class Heard:
    """Whether anything has come since the last look."""

    __slots__ = ("lately",)

    def __init__(self) -> None:
        self.lately = True


@contextmanager
def silence_watched(response: aiohttp.ClientResponse) -> Iterator[Heard]:
    """Break a stream off that is silent for ``SILENCE_SECONDS``, or twice that at most."""
    heard = Heard()

    async def look() -> None:
        while heard.lately:
            heard.lately = False
            await asyncio.sleep(SILENCE_SECONDS)
        response.close()  # whoever reads gets an error

    looking = asyncio.create_task(look(), name="silence")
    try:
        yield heard
    finally:
        looking.cancel()


async def whole_frames(response: aiohttp.ClientResponse, heard: Heard) -> AsyncIterator[bytes]:
    """Yield runs of whole frames; ``StreamCutError`` for an end before the ``complete`` event."""
    splitter = sse.FrameSplitter()
    # A stream resumed after its last event is empty, and ended too.
    ended = True
    try:
        while chunk := await response.content.readany():
            heard.lately = True
            if frames := splitter.feed_whole(chunk):
                ended = frames.rfind(_COMPLETE, -_LAST_FRAME) >= 0
                yield frames
    except (aiohttp.ClientError, TimeoutError, sse.FrameTooLargeError) as error:
        raise StreamCutError("The agent's stream broke off.") from error
    if not ended:
        raise StreamCutError("The agent's stream ended before the turn did.")


# The gateway to an environment's agentd over HTTP (its API: `docs/agentd.md`).

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0


class HttpAgents:
    """Talks to every environment's agent over one connection pool."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._http = session

    @classmethod
    def open(cls) -> Self:
        """Return a gateway of its own pool; call it on the running loop and close it at the end."""
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=30)
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
        return cls(
            aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def status(self, at: AgentAddress) -> AgentStatus:
        """Return what answers there."""
        body = await self._call(at, "GET", "/agent/status")
        with _reading():
            agent, model = body["agent"], body["model"]
            return AgentStatus(
                agent=agent["kind"],
                version=agent["version"] or "",
                model=model["kind"],
                demonstration=model["demonstration"],
            )

    async def create_session(self, at: AgentAddress) -> Session:
        """Start a conversation."""
        created = await self._call(at, "POST", "/sessions")
        return _session(created)

    async def sessions(self, at: AgentAddress) -> Sequence[Session]:
        """Return the conversations, newest first."""
        body = await self._call(at, "GET", "/sessions")
        with _reading():
            return [_session(one) for one in body["sessions"]]

    async def session(self, at: AgentAddress, session_id: str) -> Session:
        """Return one conversation."""
        missing = SessionNotFoundError(f"There is no session {session_id}.")
        return _session(await self._call(at, "GET", f"/sessions/{_part(session_id)}", missing))

    async def delete_session(self, at: AgentAddress, session_id: str) -> None:
        """End a conversation for good."""
        missing = SessionNotFoundError(f"There is no session {session_id}.")
        await self._call(at, "DELETE", f"/sessions/{_part(session_id)}", missing)

    async def messages(self, at: AgentAddress, session_id: str) -> Sequence[ChatMessage]:
        """Return a conversation's history, oldest first."""
        missing = SessionNotFoundError(f"There is no session {session_id}.")
        body = await self._call(at, "GET", f"/sessions/{_part(session_id)}/messages", missing)
        with _reading():
            return [
                ChatMessage(one["role"], one["content"], one["timestamp"], one["message_index"])
                for one in body["messages"]
            ]

    async def turns(self, at: AgentAddress, session_id: str) -> Sequence[Turn]:
        """Return a conversation's turns, newest first."""
        missing = SessionNotFoundError(f"There is no session {session_id}.")
        body = await self._call(at, "GET", f"/sessions/{_part(session_id)}/turns", missing)
        with _reading():
            return [_turn(one) for one in body["turns"]]

    async def start_turn(
        self, at: AgentAddress, session_id: str | None, message: str, message_id: str
    ) -> Turn:
        """Give the agent a message."""
        missing = SessionNotFoundError(f"There is no session {session_id}.")
        asked = {"session_id": session_id, "message": message, "message_id": message_id}
        return _turn(await self._call(at, "POST", "/turns", missing, json=asked))

    async def turn(self, at: AgentAddress, turn_id: str) -> Turn:
        """Return one turn."""
        return _turn(await self._call(at, "GET", f"/turns/{_part(turn_id)}", _no_turn(turn_id)))

    def stream_turn(
        self, at: AgentAddress, turn_id: str, after: str | None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a turn's events from the one after id ``after``."""
        return self._stream(at, turn_id, after)

    @asynccontextmanager
    async def _stream(
        self, at: AgentAddress, turn_id: str, after: str | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        headers = _headers(at)
        if after is not None:
            headers["Last-Event-ID"] = after
        # No sock_read: aiohttp would set a timer anew for each event, which costs more than the
        # event itself; `silence_watched` does it with one timer a minute.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        url = f"{at.url}/api/v1/turns/{_part(turn_id)}/events"
        try:
            response = await self._http.get(url, headers=headers, timeout=timeout)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable() from error
        try:
            if response.status != 200:  # noqa: PLR2004 - HTTP's OK
                raise await _refused(response, _no_turn(turn_id))
            with silence_watched(response) as heard:
                yield whole_frames(response, heard)
        finally:
            # Not released: what is left of the stream must stop now, not be read to its end.
            response.close()

    async def cancel_turn(self, at: AgentAddress, turn_id: str) -> Turn:
        """Ask the turn to end."""
        path = f"/turns/{_part(turn_id)}/cancel"
        await self._call(at, "POST", path, _no_turn(turn_id))
        return await self.turn(at, turn_id)

    async def confirm(
        self, at: AgentAddress, turn_id: str, confirmation_id: str, decision: Decision
    ) -> None:
        """Answer a confirmation."""
        path = f"/turns/{_part(turn_id)}/confirmations/{_part(confirmation_id)}"
        await self._call(at, "POST", path, _no_turn(turn_id), json={"decision": decision})

    async def _call(
        self,
        at: AgentAddress,
        method: str,
        path: str,
        missing: GreylagError | None = None,
        json: object = None,
    ) -> Any:
        """Ask agentd and return its JSON (``None`` for an empty answer); 404 raises ``missing``."""
        url = f"{at.url}/api/v1{path}"
        try:
            async with self._http.request(method, url, json=json, headers=_headers(at)) as response:
                if response.status >= 400:  # noqa: PLR2004 - HTTP's errors begin here
                    raise await _refused(response, missing)
                return await response.json() if response.status != 204 else None  # noqa: PLR2004 - no content
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable() from error
        except ValueError as error:
            raise AgentFailedError("The agent's answer is not JSON.") from error


@contextmanager
def _reading() -> Iterator[None]:
    """Turn an answer that lacks what it must have into an error that says so."""
    try:
        yield
    except (KeyError, TypeError) as error:
        raise AgentFailedError("The agent's answer is not of the form it must have.") from error


async def _refused(response: aiohttp.ClientResponse, missing: GreylagError | None) -> GreylagError:
    try:
        body = await response.json(content_type=None)
    except (ValueError, aiohttp.ClientError):
        body = None
    return refusal(response.status, body if isinstance(body, dict) else {}, missing)


def _unreachable() -> AgentUnreachableError:
    return AgentUnreachableError("The agent does not answer.")


def _no_turn(turn_id: str) -> TurnNotFoundError:
    return TurnNotFoundError(f"There is no turn {turn_id}.")


def _headers(at: AgentAddress) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {at.token}"}
    if request_id := logs.request_id.get():
        headers["x-request-id"] = request_id
    return headers


def _part(value: str) -> str:
    return quote(value, safe="")


def _session(body: dict[str, Any]) -> Session:
    with _reading():
        return Session(
            body["session_id"], body["created_at"], body["updated_at"], body["message_count"]
        )


def _turn(body: dict[str, Any]) -> Turn:
    with _reading():
        return Turn(
            turn_id=body["turn_id"],
            session_id=body["session_id"],
            message_id=body["message_id"],
            status=body["status"],
            message=body["message"],
            started_at=body["started_at"],
            ended_at=body["ended_at"],
        )
