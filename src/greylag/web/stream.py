"""What lasts: streams of bytes, in constant memory, as long as their client may have them.

Nothing is kept here. The next run of bytes is asked for only when the server has taken the last
one, so a slow client slows its own upstream and nobody else.

A stream, a download, an upload, a terminal or a preview lasts, and the right to it may end
meanwhile: a sign-in ends, a token is revoked, a user disabled, a project no longer shared. Three
times a second it is looked at again, once for all that hang on the same sign-in and the same right,
however many they are.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from greylag.common import sse
from greylag.common.concurrent import place_among
from greylag.config import Settings
from greylag.domain.errors import (
    ErrorInfo,
    ForbiddenError,
    GreylagError,
    LimitExceededError,
    StreamCutError,
    TurnOverError,
    UnauthorizedError,
    UserNotFoundError,
)
from greylag.domain.project import ProjectRef
from greylag.domain.users import Action, Principal
from greylag.services.access import Gate
from greylag.web import errors
from greylag.web.auth import Authenticator, with_reason
from greylag.web.request_log import exchange_of

Check = Callable[[], Awaitable[None]]
"""Raises what a request would now be refused by."""
RECHECK_SECONDS = 0.3
PLACE_SECONDS = 30.0
"""How long a request to a shared preview waits until another one ends."""
REFUSALS = (UnauthorizedError, ForbiddenError, UserNotFoundError)


class AccessWatch:
    """Looks again at the rights of all that is open in one web process."""

    def __init__(self, authenticator: Authenticator, gate: Gate) -> None:
        self._authenticator = authenticator
        self._gate = gate
        self._rights: dict[Hashable, _WatchedRight] = {}

    def during(
        self, scope: Scope, ref: ProjectRef, action: Action | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Return a block that whoever asks may be in as long as they may do ``action`` with the
        project (``None``: see it; without a project's id: what is the user's, without that: what is
        about no user).

        Raises:
            GreylagError: in the block: they may not any more.
        """
        principal = exchange_of(scope).principal
        sign_in = None if principal is None else self._authenticator.ending(scope, principal)
        if principal is None or sign_in is None:
            return nullcontext()
        principal = with_reason(principal, scope)
        key: Hashable = (sign_in, ref, action, principal.reason_for(ref.user_id))
        if self._gate.is_lasting(principal, ref.user_id):
            key = sign_in
        return self.until_refused(key, partial(self._check, scope, principal, ref, action))

    @asynccontextmanager
    async def until_refused(self, key: Hashable, check: Check) -> AsyncIterator[None]:
        """Run the block until ``check``, which is one for all of the same ``key``, refuses it.

        Raises:
            GreylagError: in the block: the refusal.
        """
        right = self._rights.get(key)
        if right is None or right.refusal is not None:
            right = self._rights[key] = _WatchedRight(check)
        limit = asyncio.timeout(None)
        try:
            async with limit:
                right.add(limit)
                try:
                    yield
                finally:
                    if right.discard(limit) and self._rights.get(key) is right:
                        del self._rights[key]
        except TimeoutError:
            if right.refusal is None or not limit.expired():
                raise
            # One of its own for each block: an error grows by the stack of each that raises it.
            info = right.refusal.info
            raise type(right.refusal)(info.message, hint=info.hint) from None

    async def _check(
        self, scope: Scope, before: Principal, ref: ProjectRef, action: Action | None
    ) -> None:
        principal = with_reason(await self._authenticator.again(scope, before), scope)
        await self._gate.check_again(principal, action, ref if ref.project_id else ref.user_id)


class _WatchedRight:
    """A right, and all blocks that end with it. Nothing is asked for what is over in a moment."""

    def __init__(self, check: Check) -> None:
        self.refusal: GreylagError | None = None
        self._check = check
        self._limits: set[asyncio.Timeout] = set()
        self._loop = asyncio.get_running_loop()
        self._first = self._loop.call_later(RECHECK_SECONDS, self._start)
        self._watching: asyncio.Task[None] | None = None

    def add(self, limit: asyncio.Timeout) -> None:
        """Have a block end with the right."""
        self._limits.add(limit)

    def discard(self, limit: asyncio.Timeout) -> bool:
        """Forget a block that has ended; tell whether it was the last one."""
        self._limits.discard(limit)
        if self._limits:
            return False
        self._first.cancel()
        if self._watching is not None:
            self._watching.cancel()
        return True

    def _start(self) -> None:
        self._watching = self._loop.create_task(self._watch(), name="access watch")

    async def _watch(self) -> None:
        while self.refusal is None:
            self.refusal = await self._refused()
            if self.refusal is None:
                await asyncio.sleep(RECHECK_SECONDS)
        for limit in self._limits:
            limit.reschedule(self._loop.time())

    async def _refused(self) -> GreylagError | None:
        try:
            await self._check()
        except REFUSALS as error:
            return error
        except GreylagError:
            # That it cannot be told is no refusal, and of a project that is gone the stream itself
            # tells.
            return None
        except Exception as error:  # noqa: BLE001 - logged; what cannot be checked must not go on
            return GreylagError(errors.unexpected(error).message)
        return None


Opening = AbstractAsyncContextManager[AsyncIterator[bytes]]
"""A stream that is not open yet. Entering raises what is an HTTP error; the iterator gives runs of
bytes that may be sent as they are; leaving closes the upstream.
"""
Allowed = Callable[[Scope], AbstractAsyncContextManager[None]]
"""Makes a block that whoever asks may be in as long as they may have the stream."""
_T = TypeVar("_T")


class Streams:
    """Makes the streams of one web process, and counts those that each person has open of a
    project.
    """

    def __init__(self, settings: Settings, access: AccessWatch) -> None:
        self.access = access
        self._limit = settings.streams_per_project
        self._heartbeat_seconds = settings.heartbeat_seconds
        self._longest = settings.stream_seconds
        self._open: Counter[tuple[str | None, ProjectRef, str | None]] = Counter()
        # Each is there as long as somebody waits for it or holds it.
        self._requests: WeakValueDictionary[ProjectRef, asyncio.Semaphore] = WeakValueDictionary()

    def events(
        self, by: Principal, ref: ProjectRef, opening: Opening, action: Action | None = None
    ) -> Response:
        """Return the answer that relays whole SSE frames, with heartbeats when none come, as long
        as ``action`` is allowed; see ``AccessWatch.during``.
        """
        opened = self._counted(by, ref, opening)
        allowed = partial(self.access.during, ref=ref, action=action)
        return EventRelay(opened, allowed, self._heartbeat_seconds, self._longest)

    def text(self, by: Principal, ref: ProjectRef, opening: Opening) -> Response:
        """Return the answer that relays plain text."""
        opened, allowed = self._counted(by, ref, opening), partial(self.access.during, ref=ref)
        return TextRelay(opened, allowed, None, None)

    @asynccontextmanager
    async def _counted(
        self, by: Principal, ref: ProjectRef, opening: Opening
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        with self.place(by.user_id, ref):
            async with opening as runs, closing(runs):
                yield runs

    @contextmanager
    def place(self, by: str | None, ref: ProjectRef, preview: str | None = None) -> Iterator[None]:
        """Count what somebody has open of a project until the block ends.

        Each person is counted by themselves, and so is each ``preview``: who may only look, and
        strangers to whom one is shared, take no place that who works there needs.

        Raises:
            LimitExceededError: there is as much as may be.
        """
        key = (by, ref, preview)
        if self._open[key] >= self._limit:
            if preview:
                raise LimitExceededError(f"This preview has {self._limit} open WebSockets already.")
            kind = "streams" if preview is None else "WebSockets"
            of = f"project {ref.project_id}" if ref.project_id else "this list"
            raise LimitExceededError(f"You already have {self._limit} open {kind} of {of}.")
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    @asynccontextmanager
    async def request(self, ref: ProjectRef) -> AsyncIterator[None]:
        """Hold a place among the requests that a project's shared previews may have at once.

        Strangers whose answers last are not to have all that there is; the environment bounds them
        too, however many processes hand them on. A page asks for much at once, so that who finds no
        place waits.

        Raises:
            LimitExceededError: for ``PLACE_SECONDS`` there was none.
        """
        places = self._requests.setdefault(ref, asyncio.Semaphore(self._limit))
        full = LimitExceededError(
            f"Shared previews of this project already have {self._limit} open requests."
        )
        async with place_among(places, PLACE_SECONDS, full):
            yield


class Relay(Response):
    """A response that hands on what an opening gives.

    An error on entering is a problem document. A later one is told by ``failure`` in the form of
    the stream, except ``StreamCutError``: then it just ends, which tells the client to resume.
    So it does between two runs once ``longest`` seconds have passed (``None``: there is no end).
    """

    def __init__(
        self,
        opening: Opening,
        allowed: Allowed,
        heartbeat_seconds: float | None,
        longest: float | None,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._opening = opening
        self._allowed = allowed
        self._heartbeat_seconds = heartbeat_seconds
        self._longest = longest
        self._begun = False
        self._ending = False
        self._idle = True
        self._held_back = False

    def failure(self, error: ErrorInfo) -> bytes:
        """Return what tells ``error`` at the end of the stream."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay until the stream ends or the client leaves."""
        exchange = exchange_of(scope)
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(
                    self._watch(receive, exchange.send), name=f"watch {exchange.request_id}"
                )
                # A task of its own: each event wakes all coroutines that await one another, and
                # below this one are some twenty of the framework.
                relaying = tasks.create_task(
                    self._relay(scope, receive, send), name=f"relay {exchange.request_id}"
                )
                await relaying
                watching.cancel()
        except* _ClientLeftError:
            exchange.client_left = True

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        last = b""
        try:
            async with self._allowed(scope):
                await self._pump(send, exchange_of(scope).send)
        except Exception as error:  # noqa: BLE001 - the client is told, and a fault is logged
            known = errors.translated(error)
            if isinstance(error, TurnOverError):
                # Any other success, and a standard EventSource would ask again for ever.
                self._ending = True
                await Response(status_code=204)(scope, receive, send)
                return
            if not self._begun:
                self._ending = True
                await errors.problem_response(known)(scope, receive, send)
                return
            if not isinstance(error, StreamCutError):
                last = self.failure(known)
        self._ending = True
        await exchange_of(scope).send(_body(last, more=False))

    async def _pump(self, send: Send, put: Send) -> None:
        async with (
            self._opening as opened,
            closing(opened if self._longest is None else _within(self._longest, opened)) as runs,
        ):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            self._begun = True
            async for run in runs:
                self._idle, self._held_back = False, True
                await put({"type": "http.response.body", "body": run, "more_body": True})
                self._held_back = False

    async def _watch(self, receive: Receive, put: Send) -> None:
        """Notice at once that the client has left, and send a heartbeat when nothing else came."""
        while True:
            message: Message | None = None
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_seconds):
                    message = await receive()
            if self._ending:
                # Nothing may follow the end, and a server tells of a client that has all of its
                # answer what it tells of one that left.
                return
            if message is None:
                # Behind what is held back it could come after the end.
                if self._begun and self._idle and not self._held_back:
                    await put(_body(sse.HEARTBEAT, more=True))
                self._idle = True
            elif message["type"] == "http.disconnect":
                raise _ClientLeftError


class EventRelay(Relay):
    """A relay of server-sent events."""

    media_type = sse.MEDIA_TYPE

    def failure(self, error: ErrorInfo) -> bytes:
        """Return an ``error`` event and the ``complete`` event that ends every stream."""
        shown = {"message": error.message, "error": error.message}
        shown |= {"code": error.code, "hint": error.hint}
        end = {"message": "Response complete", "stop_reason": "error"}
        return sse.encode({"type": "error", "content": shown}) + sse.encode(
            {"type": "complete", "content": end}
        )


class TextRelay(Relay):
    """A relay of plain text."""

    media_type = "text/plain"

    def failure(self, error: ErrorInfo) -> bytes:
        """Return a last line that tells the error."""
        return f"\n[greylag] {error.message} {error.hint}\n".encode(errors="replace")


class _ClientLeftError(Exception):
    """Ends a relay whose client is gone."""


def _body(content: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def _within(seconds: float, runs: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the ``runs`` that come within ``seconds`` from the first time one is asked for.

    Only the wait for the next one is cut: what was begun to be sent is sent to its end.
    """
    end = asyncio.get_running_loop().time() + seconds
    while True:
        limit = asyncio.timeout_at(end)
        try:
            async with limit:
                run = await anext(runs)
        except StopAsyncIteration:
            return
        except TimeoutError:
            if limit.expired():
                return
            raise
        yield run


@asynccontextmanager
async def closing(iterator: AsyncIterator[_T]) -> AsyncIterator[AsyncIterator[_T]]:
    """Close an iterator that is a generator on leaving, rather than when it is collected."""
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


@asynccontextmanager
async def mapped(
    iterator: AsyncIterator[_T], frame: Callable[[_T], bytes]
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Open a stream of ``iterator``'s items, each as ``frame`` makes it."""
    async with closing(iterator) as items:
        yield (frame(item) async for item in items)
