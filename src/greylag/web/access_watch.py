"""Ends what goes on once whoever asked for it may not have it any more.

A stream, a download, an upload, a terminal or a preview lasts, and the right to it may end
meanwhile: a sign-in ends, a token is revoked, a user disabled, a project no longer shared. Three
times a second it is looked at again, once for all that hang on the same sign-in and the same right,
however many they are.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial

from starlette.types import Scope

from greylag.domain.errors import ForbiddenError, GreylagError, UnauthorizedError, UserNotFoundError
from greylag.domain.project import ProjectRef
from greylag.domain.users import Action, Principal
from greylag.services.access import Gate
from greylag.web import errors
from greylag.web.auth import Authenticator, with_reason
from greylag.web.request_log import exchange_of

Check = Callable[[], Awaitable[None]]
"""Raises what a request would now be refused by."""
RECHECK_SECONDS = 0.3
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
        project (``None``: see it; without a project's id: what is the user's, without that: what
        is about no user).

        Raises:
            GreylagError: in the block: they may not any more.
        """
        principal = exchange_of(scope).principal
        sign_in = None if principal is None else self._authenticator.ending(scope, principal)
        if principal is None or sign_in is None:
            return nullcontext()
        reason = with_reason(principal, scope).reason
        key: Hashable = (sign_in, ref, action, reason)
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
