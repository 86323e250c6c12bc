"""The store in MongoDB: records that any number of processes on any machines share."""

import asyncio
from contextlib import AbstractContextManager

import structlog

from greylag.domain.errors import GreylagError, StoreUnavailableError
from greylag.domain.project import ProjectRef
from greylag.ports import ProjectStore, StoreIncompleteError, Subscription
from greylag.store.mongo import connection, indexes
from greylag.store.mongo.changes import PollingFollower, StreamFollower
from greylag.store.mongo.claims import LONG_SECONDS, ReconcilerMethods
from greylag.store.mongo.connection import MongoLimits, RefusedByServerError, asking
from greylag.store.mongo.requests import RequestMethods

_PAUSE_SECONDS = 1.0
_PAUSE_AFTER_FAULT_SECONDS = 5.0
_CANCEL_AGAIN_SECONDS = 0.1
_NO_LIMITS_GIVEN = MongoLimits()

_log = structlog.get_logger(__name__)


class MongoStore(RequestMethods, ReconcilerMethods, ProjectStore):
    """Implements ``greylag.ports.ProjectStore``; ``await MongoStore.open(...)`` makes one.

    Any number of processes may open the same database. A write reads the record, decides, and
    writes only if the record's ``revision`` is still the same, else begins anew; a claim is one
    atomic step. Nothing needs transactions. Writes wait for a majority and its journals; reads see
    only what a majority has.
    """

    _following: asyncio.Task[None] | None = None

    @classmethod
    async def open(  # noqa: PLR0913 - each is a choice of its own, given by name
        cls,
        uri: str,
        database: str = "goose",
        *,
        limits: MongoLimits = _NO_LIMITS_GIVEN,
        poll_seconds: float = 0.25,
        prepare: bool = True,
        patient: bool = False,
    ) -> "MongoStore":
        """Open a database, make it ready, and follow its changes.

        Args:
            uri: of the server; it may hold a password.
            database: the name.
            limits: how long to wait.
            poll_seconds: between two looks at a server without change streams.
            prepare: make indexes and the mark of the form and adopt older documents, or leave that
                to others.
            patient: wait for a server that cannot be reached: each call raises until it is there.

        Raises:
            StoreUnavailableError: the server cannot be reached (not when ``patient``).
            StoreIncompleteError: an import into it has not ended.
            ConfigError: a URI or name that cannot be used, an index that cannot be had, or a
                newer Greylag has written the database.
        """
        client = connection.connect(uri, limits)
        try:
            store = cls(client, connection.database(client, database), limits)
        except BaseException:
            await client.close()
            raise
        try:
            await store._begin(poll_seconds, prepare=prepare, patient=patient)
        except BaseException:
            await store.close()
            raise
        return store

    def subscribe(self, to: ProjectRef | str | None = None) -> AbstractContextManager[Subscription]:
        """Hear of changes; see the port."""
        return self._hub.subscribe(to)

    async def close(self) -> None:
        """Finish what was begun and disconnect; see the port."""
        self._closed = True
        task, self._following = self._following, None
        while task is not None and not task.done():
            # Again and again: the driver may lose a cancellation (see ``cancellable``).
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCEL_AGAIN_SECONDS)
        if self._begun:
            await asyncio.wait(self._begun)
        await self._audit.finish()
        await self._client.close()

    async def _begin(self, poll_seconds: float, *, prepare: bool, patient: bool) -> None:
        try:
            await self._make_ready(poll_seconds, prepare=prepare)
        except RefusedByServerError:
            raise
        except StoreUnavailableError as error:
            if not patient:
                raise
            self._wanting = error
            _log.warning("store_unavailable", error=str(error))
        following = self._follow(poll_seconds, prepare=prepare)
        self._following = asyncio.create_task(following, name="store-follower")
        self._following.add_done_callback(self._followed)

    async def _make_ready(self, poll_seconds: float, *, prepare: bool) -> None:
        # A quick question comes first, lest a server that is gone is waited for as long as indexes.
        with asking(self._seconds):
            if await connection.has_change_streams(self._client):
                self._follower = StreamFollower(self._database, self._hub, self._own)
            else:
                self._follower = PollingFollower(
                    self._database, self._hub, self._own, poll=poll_seconds, timeout=self._seconds
                )
            if await indexes.is_incomplete(self._database):
                raise StoreIncompleteError(
                    f"The database {self._database.name} holds only a part of what is being "
                    "imported into it."
                )
            await indexes.mark_form(self._database, make=prepare)
        if prepare:
            with asking(LONG_SECONDS):
                await indexes.ensure(self._database)
                await indexes.adopt(self._projects)
        with asking(self._seconds):
            await self._follower.start()

    async def _follow(self, poll_seconds: float, *, prepare: bool) -> None:
        """Make the store ready if it is not, trying again and again; then follow its changes."""
        while self._wanting is not None:
            out_of_reach = isinstance(self._wanting, StoreUnavailableError)
            await asyncio.sleep(_PAUSE_SECONDS if out_of_reach else _PAUSE_AFTER_FAULT_SECONDS)
            try:
                await self._make_ready(poll_seconds, prepare=prepare)
            except GreylagError as error:
                if str(error) != str(self._wanting):
                    _log.warning("store_not_ready", error=str(error))
                self._wanting = error
            else:
                self._wanting = None
                _log.info("store_ready")
                # Whoever waits looks now.
                self._hub.signal(None)
        await self._follower.run()

    def _followed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            _log.error("changes_not_followed", exc_info=error)
            self._hub.fail(error)
