"""From connected to ready: what must have been done before a store answers its first question."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from greylag.domain.errors import GreylagError, StoreUnavailableError
from greylag.store.mongo import indexes
from greylag.store.mongo.adoption import adopt
from greylag.store.mongo.errors import RefusedByServerError, asking
from greylag.store.mongo.parts import Parts

Gate = Callable[[], Awaitable[None]]
"""Raises why the store must not be worked on."""

LONG_SECONDS = 120.0
"""How long may take what touches many documents: making indexes, adoption, waking all."""

_PAUSE_SECONDS = 1.0
_PAUSE_AFTER_FAULT_SECONDS = 5.0
_CANCEL_AGAIN_SECONDS = 0.1

_log = structlog.get_logger(__name__)


class Opening:
    """Makes a store ready, now or as soon as its server is there, and follows its changes then.

    Args:
        parts: what the store is made of.
        seconds: how long one question may take.
        prepare: make and check indexes and adopt older documents, or leave that to others.
        gate: asked first, each time.
    """

    def __init__(self, parts: Parts, seconds: float, *, prepare: bool, gate: Gate | None) -> None:
        self._parts = parts
        self._seconds = seconds
        self._prepare = prepare
        self._gate = gate
        self._wanting: GreylagError | None = None
        self._task: asyncio.Task[None] | None = None

    async def begin(self, *, patient: bool) -> None:
        """Make the store ready, and follow its changes from now on.

        With ``patient``, a server that cannot be reached is waited for by a task, and ``check``
        raises until it is there. Otherwise that raises ``StoreUnavailableError``; what an operator
        has to mend (``ConfigError``, wrong credentials, what ``gate`` raises) is raised always.
        """
        try:
            await self._make_ready()
        except RefusedByServerError:
            raise
        except StoreUnavailableError as error:
            if not patient:
                raise
            self._wanting = error
            _log.warning("store unavailable; it is waited for", reason=str(error))
        self._task = asyncio.create_task(self._run(), name="store-follower")
        self._task.add_done_callback(self._ended)

    def check(self) -> None:
        """Raise ``StoreUnavailableError`` with what is in the way while the store is not ready."""
        if self._wanting is not None:
            info = self._wanting.info
            raise StoreUnavailableError(info.message, hint=info.hint) from self._wanting

    async def close(self) -> None:
        """Stop trying, and following."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            # Again and again: the driver may lose a cancellation (see ``cancellable``).
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCEL_AGAIN_SECONDS)

    async def _make_ready(self) -> None:
        # A quick question comes first, lest a server that is gone is waited for as long as indexes.
        with asking(self._seconds):
            await self._parts.follower.choose()
        if self._gate is not None:
            await self._gate()
        if self._prepare:
            with asking(LONG_SECONDS):
                await indexes.ensure(self._parts.database)
                await adopt(self._parts.projects)
        with asking(self._seconds):
            await self._parts.follower.start()

    async def _run(self) -> None:
        while self._wanting is not None:
            out_of_reach = isinstance(self._wanting, StoreUnavailableError)
            await asyncio.sleep(_PAUSE_SECONDS if out_of_reach else _PAUSE_AFTER_FAULT_SECONDS)
            await self._try_again(self._wanting)
        await self._parts.follower.run()

    async def _try_again(self, before: GreylagError) -> None:
        try:
            await self._make_ready()
        except GreylagError as error:
            if str(error) != str(before):
                _log.warning("store not ready", reason=str(error))
            self._wanting = error
        else:
            self._wanting = None
            _log.info("store ready")
            # Whoever waits looks now.
            self._parts.hub.signal(None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            _log.error("changes are no longer followed", exc_info=error)
            self._parts.hub.fail(error)
