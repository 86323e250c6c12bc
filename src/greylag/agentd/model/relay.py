"""The model relay: the agent's way to the model provider, without the provider's key.

A small HTTP server on a loopback port of its own. The agent calls it as if it were the provider,
with a token that is worth nothing elsewhere; the relay puts the real key in and passes both bodies
on as they come, never holding a whole one. Without a provider the scripted model answers.

The agent's tools can see that token, so the relay passes on only what an agent needs of a model:
whoever has it can talk to the model, but not read or change anything else that the key opens.

It also knows which session a call belongs to, so that a cancelled turn need not wait for a provider
that is slow to answer.
"""

import asyncio
import hmac
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import structlog
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from greylag.agentd.agent.types import AgentKind, ModelFailure, ModelProvider
from greylag.agentd.config import AgentdSettings
from greylag.agentd.model import scripted as scripted_model
from greylag.common.net import end_to_end
from greylag.common.typed import parse_json

SESSION_HEADER = "agent-session-id"
IDLE_SECONDS = 180.0

_MODEL_CALLS = re.compile(
    r"POST /v1/(chat/completions|completions|responses|embeddings)|GET /v1/models(/\w[\w.:-]*)?"
)
_RESPONSE = web.RequestKey("response", web.StreamResponse)
_NOTHING_SAID = (
    b'data: {"id":"stopped","object":"chat.completion.chunk","created":0,"model":"stopped",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
_STOP_SECONDS = 1.0
_LONGEST_RETRY = 30.0
_CONNECT_SECONDS = 15.0
_ERROR_LIMIT = 64 * 1024
_MESSAGE_LIMIT = 2000
_BAD_REQUEST = 400
_OURS = frozenset({"host", "authorization", SESSION_HEADER, "expect"})
_SCRIPTED_MODEL = (
    "This is a demonstration: a scripted model answers. Set GREYLAG_MODEL_URL, GREYLAG_MODEL_KEY "
    "and GREYLAG_MODEL to use a real provider."
)
_SCRIPTED_AGENT = (
    "This is a demonstration: the scripted agent answers, because goose is not installed. "
    "Install Node and set up again, or put goose on the PATH, to use the real agent."
)

CallOutcome = tuple[web.StreamResponse, ModelFailure | None]

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _SessionCalls:
    """How the model calls of one session's last turn went.

    Attributes:
        stopped: whether they are answered with nothing.
        failure: why the last one failed, None when it did not.
        failed: how many failed in a row.
    """

    stopped: bool = False
    failure: ModelFailure | None = None
    failed: int = 0


class ModelRelay:
    """Passes the agent's model calls on to the provider, or to the scripted model.

    Args:
        provider: where the calls go; None for the scripted model.
        idle_seconds: how long the provider may be silent, before its answer and within it.
        retry_seconds: how long the first, second, ... passing failure of a call is held back.

    Attributes:
        token: what the agent has to send.
        url: base URL on our own loopback, as ``http://127.0.0.1:40123``; empty before ``serving``.
        port: its port, 0 before ``serving``.
    """

    def __init__(
        self,
        provider: ModelProvider | None,
        *,
        idle_seconds: float = IDLE_SECONDS,
        retry_seconds: Sequence[float] = (),
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self._provider = provider
        self._idle_seconds = idle_seconds
        self._client: ProviderClient | None = None
        self.port = 0
        self.url = ""
        self._calls: dict[asyncio.Task[web.StreamResponse], str | None] = {}
        self._sessions: dict[str, _SessionCalls] = {}
        self._retry_seconds = retry_seconds

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while the context is open; running calls end with it."""
        app = web.Application(client_max_size=scripted_model.BODY_LIMIT)
        app.router.add_route("*", "/{path:.*}", self._handle)
        app.on_response_prepare.append(_remember)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=_STOP_SECONDS
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.port = runner.addresses[0][1]
            self.url = f"http://127.0.0.1:{self.port}"
            if self._provider is None:
                yield
            else:
                client = ProviderClient(self._provider, self._idle_seconds)
                async with aclosing(client) as self._client:
                    yield
        finally:
            for call in self._calls:
                call.cancel()
            await runner.cleanup()

    def begin_turn(self, session: str) -> None:
        """Let the session's calls through, and forget how its last turn's calls went."""
        self._sessions[session] = _SessionCalls()

    def stop_turn(self, session: str) -> None:
        """Answer the session's calls at once with nothing, those running and those to come."""
        self._sessions.setdefault(session, _SessionCalls()).stopped = True
        for call, owner in self._calls.items():
            # A call that names no session (the list of models) may be what the turn waits for.
            if owner in {session, None}:
                call.cancel()

    def failure(self, session: str) -> ModelFailure | None:
        """Return why the session's last model call failed, None when it did not."""
        calls = self._sessions.get(session)
        return None if calls is None else calls.failure

    def forget(self, session: str) -> None:
        """Drop what is kept for a session that will not be used again."""
        self._sessions.pop(session, None)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        expected = f"Bearer {self.token}".encode()
        if not hmac.compare_digest(given.encode("utf-8", "replace"), expected):
            return _error(401, "the model relay needs its own token")
        # The path as it came, as the provider might decode it otherwise than we do.
        if not _MODEL_CALLS.fullmatch(f"{request.method} {request.raw_path.partition('?')[0]}"):
            return _error(403, "the model relay passes on model calls and nothing else")
        session = request.headers.get(SESSION_HEADER)
        # A session that is not ours counts as none: any tool can make up names.
        calls = self._sessions.get(session or "")
        if calls is not None and calls.stopped:
            return _stopped_answer(request)
        call = asyncio.create_task(self._answer(request, session, calls), name="model-call")
        self._calls[call] = session
        try:
            return await call
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if own is not None and own.cancelling():
                raise  # the agent hung up, or the relay closes
            return _stopped_answer(request)
        finally:
            del self._calls[call]

    async def _answer(
        self, request: web.Request, session: str | None, calls: _SessionCalls | None
    ) -> web.StreamResponse:
        if self._client is None:
            response, failure = await _scripted(request)
        else:
            response, failure = await self._client.forward(request)
        if failure is not None:
            _log.warning("model_call_failed", agent_session_id=session, status=failure.status)
        if calls is None:
            return response
        tries = calls.failed
        calls.failure, calls.failed = failure, 0 if failure is None else tries + 1
        if failure is not None:
            await self._pace(response, failure, tries)
        return response

    async def _pace(self, response: web.StreamResponse, failure: ModelFailure, tries: int) -> None:
        """Hold a passing failure back for a while.

        The agent tries again as soon as it sees one; its own waiting could not be cancelled.
        """
        over = response.prepared or tries >= len(self._retry_seconds)
        if self._client is None or over or not _is_passing(failure):
            return
        asked = response.headers.get("Retry-After", "")
        seconds = int(asked) if asked.isascii() and asked.isdigit() else 0
        await asyncio.sleep(min(max(seconds, self._retry_seconds[tries]), _LONGEST_RETRY))


def _is_passing(failure: ModelFailure) -> bool:
    """Whether the same call may work a little later."""
    status = failure.status
    busy = status == HTTPStatus.TOO_MANY_REQUESTS
    return status is None or busy or status >= HTTPStatus.INTERNAL_SERVER_ERROR


async def _remember(request: web.Request, response: web.StreamResponse) -> None:
    """Note the answer that has begun, so that a stopped call can end it properly."""
    request[_RESPONSE] = response


async def _scripted(request: web.Request) -> CallOutcome:
    response = await scripted_model.answer(request)
    if response.status < HTTPStatus.BAD_REQUEST:
        return response, None
    return response, ModelFailure(response.status, "The scripted model was told to fail.")


def _stopped_answer(request: web.Request) -> web.StreamResponse:
    begun: web.StreamResponse | None = request.get(_RESPONSE)
    if begun is not None:
        return begun
    if request.method == "GET":
        return _error(503, "the turn was cancelled")
    return web.Response(body=_NOTHING_SAID, content_type="text/event-stream")


def _error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "relay_error", "code": str(status)}
    return web.json_response({"error": error}, status=status)


class ProviderClient:
    """The connections to one provider.

    Args:
        provider: base URL and key.
        idle_seconds: the longest silence of the provider that is waited for.
    """

    def __init__(self, provider: ModelProvider, idle_seconds: float) -> None:
        self._provider = provider
        self._idle_seconds = idle_seconds
        self._proxy = _proxy_for(URL(provider.url))
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=idle_seconds
        )
        self._session = aiohttp.ClientSession(
            timeout=timeout,
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        )

    async def aclose(self) -> None:
        """Close them all."""
        await self._session.close()

    async def forward(self, request: web.Request) -> CallOutcome:
        """Pass ``request`` on and stream the answer back.

        Returns:
            The response, begun or whole, and why the call failed (None when it worked). A provider
            that cannot be reached gives 502, one that stays silent 504, in the shape of the OpenAI
            API's own errors; one that breaks off in mid-answer gets the connection broken too.
        """
        try:
            async with self._session.request(
                request.method,
                self._target(request),
                headers=self._headers(request),
                data=request.content if request.can_read_body else None,
                proxy=self._proxy,
                allow_redirects=False,
            ) as answer:
                if answer.status >= _BAD_REQUEST:
                    return await _refused(answer)
                return await _stream(request, answer)
        except TimeoutError:
            silence = f"The model provider said nothing for {self._idle_seconds:g} seconds."
            return _failed(504, silence)
        except (aiohttp.ClientError, OSError) as error:
            url = URL(self._provider.url)
            return _failed(502, f"The model provider at {url.host}:{url.port} failed: {error}")

    def _target(self, request: web.Request) -> URL:
        base = self._provider.url.rstrip("/")
        path = request.raw_path
        if base.endswith("/v1") and path.startswith("/v1/"):
            base = base.removesuffix("/v1")  # people give the address with and without it
        return URL(base + path, encoded=True)

    def _headers(self, request: web.Request) -> CIMultiDict[str]:
        headers = CIMultiDict(end_to_end(request.headers, without=_OURS))
        if self._provider.key is not None:
            headers["Authorization"] = f"Bearer {self._provider.key}"
        return headers


def _proxy_for(url: URL) -> str | None:
    """Return the proxy that the environment names for ``url``.

    Not aiohttp's ``trust_env``: that reads ~/.netrc too, which belongs to the agent.
    """
    if proxy_bypass(url.host or ""):
        return None
    return getproxies().get(url.scheme)


async def _stream(request: web.Request, answer: aiohttp.ClientResponse) -> CallOutcome:
    response = web.StreamResponse(
        status=answer.status, headers=CIMultiDict(end_to_end(answer.headers))
    )
    await response.prepare(request)
    try:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
    except (aiohttp.ClientError, TimeoutError) as error:
        # A clean end would make half an answer look whole.
        if request.transport is not None:
            request.transport.close()
        return response, ModelFailure(None, f"The model provider broke its answer off: {error}")
    return response, None


async def _refused(answer: aiohttp.ClientResponse) -> CallOutcome:
    """Pass on an error answer (short by nature), and read what the provider says in it."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk[: _ERROR_LIMIT - len(body)]
        if len(body) >= _ERROR_LIMIT:
            break
    headers = CIMultiDict(end_to_end(answer.headers))
    headers.popall("Content-Length", None)
    response = web.Response(status=answer.status, headers=headers, body=bytes(body))
    return response, ModelFailure(answer.status, _message(bytes(body), answer))


def _message(body: bytes, answer: aiohttp.ClientResponse) -> str:
    """Find the words in an error body of the OpenAI shape, or take the status line's."""
    plain = f"{answer.status} {answer.reason or ''}".strip()
    if answer.headers.get("Content-Encoding"):
        return plain
    try:
        error = parse_json(body)["error"]
        said = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        return plain
    return str(said)[:_MESSAGE_LIMIT]


def _failed(status: int, message: str) -> CallOutcome:
    error = {"message": message, "type": "provider_unreachable", "code": str(status)}
    return web.json_response({"error": error}, status=status), ModelFailure(None, message)


def provider(settings: AgentdSettings) -> ModelProvider | None:
    """Return the provider that the settings name, None for the scripted model."""
    if settings.model_url is None:
        return None
    key = settings.model_key
    return ModelProvider(settings.model_url, None if key is None else key.value)


def demonstration(settings: AgentdSettings, agent: AgentKind) -> str | None:
    """Return the sentence that says that no real model answers, None when one does."""
    if agent == "scripted":
        return _SCRIPTED_AGENT
    return _SCRIPTED_MODEL if settings.model_url is None else None


def model_object(settings: AgentdSettings, agent: AgentKind) -> dict[str, Any]:
    """Return what clients see of the model; the provider's address and key are not theirs."""
    sentence = demonstration(settings, agent)
    kind = "provider" if sentence is None else "scripted"
    return {"kind": kind, "demonstration": sentence}
