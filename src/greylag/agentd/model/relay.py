"""The model relay: the agent's way to the model provider, without the provider's key.

A small HTTP server on a loopback port of its own. The agent calls it as if it were the provider,
with a token that is worth nothing elsewhere; the relay puts the real key in and passes the
answer on as it comes, never holding a whole one. Without a provider the scripted model answers.

The agent's tools can see that token, so the relay passes on only what an agent needs of a model:
whoever has it can talk to the model, but not read or change anything else that the key opens.

It also knows which session a call belongs to, so that a cancelled turn need not wait for a provider
that is slow to answer, and a turn that waits is told what for. A failure that another try would not
mend, or only make worse, is answered to all further tries of its turn without asking the provider.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web

from greylag.agentd.agent.types import MODEL_TIMEOUT, AgentKind, ModelFailure, ModelProvider
from greylag.agentd.config import AgentdSettings
from greylag.agentd.model import scripted as scripted_model
from greylag.agentd.model.bodies import Bodies, Body
from greylag.agentd.model.provider import (
    SESSION_HEADER,
    CallOutcome,
    ProviderClient,
    ProviderFaultError,
    problem_of,
)
from greylag.common.concurrent import beside
from greylag.common.net import bears, on_loopback, retry_after

_MODEL_CALLS = re.compile(
    r"POST /v1/(chat/completions|completions|responses|embeddings)|GET /v1/models(/\w[\w.:-]*)?"
)
_RESPONSE = web.RequestKey("response", web.StreamResponse)
_NOTHING_SAID = (
    b'data: {"id":"stopped","object":"chat.completion.chunk","created":0,"model":"stopped",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
MOST_HELD = scripted_model.BODY_LIMIT
"""How many bytes of calls there may be in memory, beside those of one that goes on all the same."""
_BODY_SECONDS = 60.0
"""How long a body may take to come, not counting the waits for room."""
_NOT_COME = "The model call's body did not come in time."
_TOO_LARGE = f"The model call has more than {scripted_model.BODY_LIMIT // 1024**2} MiB."
_NO_ROOM = "There was no room in memory for the model call: others have not been answered in time."
_LONGEST_RETRY = 30.0
NOTICE_AFTER = (10.0, 30.0)
"""Seconds of silence after which a session is told of it; then once a minute."""
_NOTICE_EVERY = 60.0
_SCRIPTED_MODEL = (
    "This is a demonstration: a scripted model answers. Set GREYLAG_MODEL_URL, GREYLAG_MODEL_KEY "
    "and GREYLAG_MODEL to use a real provider."
)
_SCRIPTED_AGENT = (
    "This is a demonstration: the scripted agent answers, because goose is not installed. "
    "Install Node and set up again, or put goose on the PATH, to use the real agent."
)

TellSession = Callable[[str, str], Awaitable[None]]
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
        tell: tells a session in a sentence what is waited for.

    Attributes:
        token: what the agent has to send.
        url: base URL on our own loopback, as ``http://127.0.0.1:40123``; empty before ``serving``.
        port: its port, 0 before ``serving``.
    """

    def __init__(
        self,
        provider: ModelProvider | None,
        *,
        idle_seconds: float = MODEL_TIMEOUT,
        retry_seconds: Sequence[float] = (),
        tell: TellSession | None = None,
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self._provider = provider
        self._idle_seconds = idle_seconds
        self._client: ProviderClient | None = None
        self.port = 0
        self.url = ""
        self._bodies = Bodies(MOST_HELD)
        self._calls: dict[asyncio.Task[web.StreamResponse], str | None] = {}
        self._sessions: dict[str, _SessionCalls] = {}
        self._retry_seconds = retry_seconds
        self._tell = tell

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while the context is open; running calls end with it."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        app.on_response_prepare.append(_remember)
        async with on_loopback(app) as self.port:
            self.url = f"http://127.0.0.1:{self.port}"
            try:
                if self._provider is None:
                    yield
                else:
                    client = ProviderClient(self._provider, self._idle_seconds)
                    async with aclosing(client) as self._client:
                        yield
            finally:
                for call in self._calls:
                    call.cancel()

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
        if not bears(request.headers.get("Authorization", ""), self.token):
            return _error(401, "the model relay needs its own token")
        # The path as it came, as the provider might decode it otherwise than we do.
        if not _MODEL_CALLS.fullmatch(f"{request.method} {request.raw_path.partition('?')[0]}"):
            return _error(403, "the model relay passes on model calls and nothing else")
        session = request.headers.get(SESSION_HEADER)
        # A session that is not ours counts as none: any tool can make up names.
        calls = self._sessions.get(session or "")
        if calls is not None and calls.stopped:
            return _stopped_answer(request)
        call = asyncio.create_task(self._read(request, session, calls), name="model-call")
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

    async def _read(
        self, request: web.Request, session: str | None, calls: _SessionCalls | None
    ) -> web.StreamResponse:
        """Answer a call whose body is held until then, as it may have to be sent again."""
        with self._bodies.begun() as body:
            told = session if calls is not None else None
            try:
                await self._receive(request, body, told)
                if calls is not None and calls.failure is not None and calls.failure.final:
                    return _error(HTTPStatus.BAD_GATEWAY, calls.failure.message)
                response, failure = await self._outcome(request, body, told)
            except ProviderFaultError as fault:
                response, failure = fault.outcome()
        return await self._answer(request, response, failure, session, calls)

    async def _receive(self, request: web.Request, body: Body, session: str | None) -> None:
        """Read a call's body, as far as there is room.

        Raises:
            ProviderFaultError: it does not come in time, is too large, or found no room.
        """
        loop, left, patience = asyncio.get_running_loop(), _BODY_SECONDS, self._idle_seconds
        while not request.content.at_eof():
            since = loop.time()
            try:
                async with asyncio.timeout(left):
                    chunk = await request.content.readany()
            except TimeoutError as error:
                raise ProviderFaultError(_NOT_COME, HTTPStatus.REQUEST_TIMEOUT) from error
            left -= loop.time() - since
            if len(body.data) + len(chunk) > scripted_model.BODY_LIMIT:
                status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                raise ProviderFaultError(_TOO_LARGE, status, final=True)
            if not self._bodies.may_hold(body, len(chunk)):
                since = loop.time()
                await self._wait_for_room(body, len(chunk), session, patience)
                patience -= loop.time() - since
            body.add(chunk)
        body.finish()

    async def _wait_for_room(
        self, body: Body, size: int, session: str | None, patience: float
    ) -> None:
        what = "other model calls leave room in memory for this one"
        try:
            async with (
                self._silence_noticed(session, what),
                asyncio.timeout(patience),
            ):
                await self._bodies.room(body, size)
        except TimeoutError as error:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            raise ProviderFaultError(_NO_ROOM, status, final=True) from error

    async def _outcome(self, request: web.Request, body: Body, session: str | None) -> CallOutcome:
        if self._client is None:
            return await _scripted(request, body)
        async with self._silence_noticed(session, "the model provider answers") as heard:
            return await self._client.forward(request, body, heard)

    async def _answer(
        self,
        request: web.Request,
        response: web.StreamResponse,
        failure: ModelFailure | None,
        session: str | None,
        calls: _SessionCalls | None,
    ) -> web.StreamResponse:
        """Note how a call went, and return its answer when the agent is to have it."""
        if failure is not None:
            about = {"status": failure.status, "reason": failure.message}
            _log.warning("model_call_failed", agent_session_id=session, **about)
        tries = 0
        if calls is not None:
            tries = calls.failed
            calls.failure, calls.failed = failure, 0 if failure is None else tries + 1
        if failure is not None and response.prepared and request.transport is not None:
            request.transport.close()
        elif failure is not None and calls is not None:
            await self._pace(response, failure, session, tries)
        return response

    @asynccontextmanager
    async def _silence_noticed(
        self, session: str | None, what: str
    ) -> AsyncIterator[Callable[[], None]]:
        """Tell the session of the wait until the block ends; yield what ends one.

        Args:
            session: whose wait it is.
            what: is waited for at first; later for the rest of the provider's answer.
        """
        loop = asyncio.get_running_loop()
        since, notices = loop.time(), 0

        def heard() -> None:
            nonlocal since, notices, what
            since, notices = loop.time(), 0
            what = "the model provider goes on with its answer"

        async def watch() -> None:
            nonlocal notices
            while True:
                due = self._notice_at(notices)
                await asyncio.sleep(since + due - loop.time())
                if loop.time() >= since + due:
                    notices += 1
                    await self._say(
                        session,
                        f"Waiting for {due:g} s until {what}; it is given up "
                        f"after {self._idle_seconds:g} s (GREYLAG_MODEL_TIMEOUT).",
                    )

        async with beside(watch(), "model-silence"):
            yield heard

    def _notice_at(self, notices: int) -> float:
        """Return after how much silence the session is told for the next time."""
        if notices < len(NOTICE_AFTER):
            return NOTICE_AFTER[notices]
        return NOTICE_AFTER[-1] + _NOTICE_EVERY * (notices - len(NOTICE_AFTER) + 1)

    async def _say(self, session: str | None, words: str) -> None:
        if session is not None and self._tell is not None:
            await self._tell(session, words)

    async def _pace(
        self,
        response: web.StreamResponse,
        failure: ModelFailure,
        session: str | None,
        tries: int,
    ) -> None:
        """Hold a passing failure back for a while.

        The agent tries again as soon as it sees one; its own waiting could not be cancelled.
        """
        over = tries >= len(self._retry_seconds)
        if self._client is None or over or not _is_passing(failure):
            return
        asked = retry_after(response.headers.get("Retry-After", "")) or 0.0
        seconds = min(max(asked, self._retry_seconds[tries]), _LONGEST_RETRY)
        if seconds >= NOTICE_AFTER[0]:
            words = f"Trying again in {seconds:.0f} s: {failure.message}"
            await self._say(session, words)
        await asyncio.sleep(seconds)


def _is_passing(failure: ModelFailure) -> bool:
    """Whether the same call may work a little later."""
    status = failure.status
    if failure.final:
        return False
    busy = status == HTTPStatus.TOO_MANY_REQUESTS
    return status is None or busy or status >= HTTPStatus.INTERNAL_SERVER_ERROR


async def _remember(request: web.Request, response: web.StreamResponse) -> None:
    """Note the answer that has begun, so that a stopped call can end it properly."""
    request[_RESPONSE] = response


async def _scripted(request: web.Request, body: Body) -> CallOutcome:
    response = await scripted_model.answer(request, body.data)
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


def provider(settings: AgentdSettings) -> ModelProvider | None:
    """Return the provider that the settings name, None for the scripted model."""
    if settings.model_url is None:
        return None
    key = settings.model_key
    return ModelProvider(
        settings.model_url, None if key is None else key.value, proxies=settings.proxies
    )


async def tell_problem(settings: AgentdSettings) -> None:
    """Log what is wrong with the provider's address or key, if it can be told."""
    named = provider(settings)
    problem = None if named is None else await problem_of(named)
    if problem is not None:
        _log.warning("model_provider_problem", reason=problem)


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
