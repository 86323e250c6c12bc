"""Who wants to hear of which change, inside this process."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from greylag.domain.errors import StoreUnavailableError
from greylag.domain.project import ProjectRef


class Signal:
    """One subscriber's ear; implements ``greylag.ports.Subscription``."""

    def __init__(self, hub: "ChangeHub") -> None:
        self._hub = hub
        self._event = asyncio.Event()

    def set(self) -> None:
        """Note that something has changed; it is kept until the next ``changed`` takes it."""
        self._event.set()

    async def changed(self, timeout: float) -> bool:  # noqa: ASYNC109 - the port's signature
        """See the port; ``StoreUnavailableError`` when changes can no longer be heard of."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._hub.check()
        self._event.clear()
        return True


class ChangeHub:
    """Hands each change to those who subscribed to its project or to its user's, and to those who
    hear of all.

    All methods belong to the event loop's thread.
    """

    def __init__(self) -> None:
        self._keyed: defaultdict[ProjectRef | str, set[Signal]] = defaultdict(set)
        self._any: set[Signal] = set()
        self._failure: BaseException | None = None
        self.wanted = asyncio.Event()
        """Set while anybody listens."""

    @contextmanager
    def subscribe(self, to: ProjectRef | str | None = None) -> Iterator[Signal]:
        """Listen to a project, to a user's, or to all (``None``), inside the ``with`` block."""
        signal = Signal(self)
        self._audience(to).add(signal)
        self.wanted.set()
        try:
            yield signal
        finally:
            self._audience(to).discard(signal)
            if to is not None and not self._keyed[to]:
                del self._keyed[to]
            if not self._any and not self._keyed:
                self.wanted.clear()

    def signal(self, ref: ProjectRef | None) -> None:
        """Tell of a change to one project, or (``None``) of changes that may be to any."""
        if ref is None:
            self._wake_all()
            return
        for signal in (*self._any, *self._keyed.get(ref, ()), *self._keyed.get(ref.user_id, ())):
            signal.set()

    def fail(self, cause: BaseException) -> None:
        """Let every present and later wait for a change raise: changes can no longer be heard."""
        self._failure = cause
        self._wake_all()

    def check(self) -> None:
        """Raise ``StoreUnavailableError`` when ``fail`` was called."""
        if self._failure is not None:
            raise StoreUnavailableError("Changes can no longer be followed.") from self._failure

    def _audience(self, to: ProjectRef | str | None) -> set[Signal]:
        return self._any if to is None else self._keyed[to]

    def _wake_all(self) -> None:
        for signal in self._any.union(*self._keyed.values()):
            signal.set()
