"""How processes hear of each other's writes: by a change stream, else by looking often.

A write of ours is told when the server has acknowledged it; the server then tells of it too, and is
not listened to again. One whose acknowledgement never came (its caller was cancelled, the
connection broke) is told when the server does.
"""

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import structlog
from pymongo.errors import OperationFailure, PyMongoError

from greylag.common.backoff import Pauses
from greylag.domain.errors import StoreUnavailableError
from greylag.domain.project import ProjectRef
from greylag.store.changes import ChangeHub
from greylag.store.mongo.connection import Database, asking, cancellable, reason
from greylag.store.mongo.indexes import CHANGES, PROJECTS

if TYPE_CHECKING:
    from pymongo.asynchronous.change_stream import AsyncCollectionChangeStream

_REMEMBERED = 10_000


class OwnChanges:
    """Tells ``hub`` of each change once, by whichever way it is heard of first."""

    def __init__(self, hub: ChangeHub) -> None:
        self._hub = hub
        self._source = secrets.token_hex(8)
        self._numbers = count(1)
        self._notified: OrderedDict[tuple[str, str], None] = OrderedDict()

    def name(self) -> str:
        """Return a name for one write, which no other write of any process has."""
        return f"{self._source}:{next(self._numbers)}"

    def tell(self, news: str, record_id: str, ref: ProjectRef | None) -> None:
        """Tell of the write ``news`` to one project, unless that was told before; a project whose
        owner is not known (``None``) may be any.
        """
        if (news, "") not in self._notified and self._note(news, record_id):
            self._hub.signal(ref)

    def pass_over(self, news: str, record_id: str) -> None:
        """Never tell of a write: it was before anybody listened."""
        self._note(news, record_id)

    def _note(self, news: str, record_id: str) -> bool:
        place = (news, record_id)
        if place in self._notified:
            return False
        self._notified[place] = None
        while len(self._notified) > _REMEMBERED:
            self._notified.popitem(last=False)
        return True


GONE = "gone"
"""The news of a project that was removed; there is one for each record id."""

_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
_AWAIT_MILLIS = 2_000
_OVERLAP = timedelta(seconds=2)
_HISTORY_LOST = {280, 286}
"""ChangeStreamFatalError and ChangeStreamHistoryLost: the token leads nowhere any more."""

_log = structlog.get_logger(__name__)

# Leases are nobody's news: their writes have a revision and no news. A write that has neither is
# another program's.
_NEWS = {
    "$match": {
        "$or": [
            {"operationType": {"$in": ["insert", "replace", "delete"]}},
            {
                "operationType": "update",
                "$or": [
                    {"updateDescription.updatedFields.news": {"$exists": True}},
                    {"updateDescription.updatedFields.revision": {"$exists": False}},
                ],
            },
        ]
    }
}
_FIELDS = {
    "$project": {
        "operationType": 1,
        "documentKey": 1,
        "fullDocument.user_id": 1,
        "fullDocument.project_id": 1,
        "fullDocument.news": 1,
        "updateDescription.updatedFields.news": 1,
        "updateDescription.updatedFields.user_id": 1,
    }
}


class ChangeFollower(ABC):
    """Tells listeners of what other processes write."""

    def __init__(self, database: Database, hub: ChangeHub, own: OwnChanges) -> None:
        self._database = database
        self._hub = hub
        self._own = own

    @abstractmethod
    async def start(self) -> None:
        """Take note of where the changes end now: what comes after will be told."""

    @abstractmethod
    async def note(self, news: str, record_id: str, ref: ProjectRef | None) -> None:
        """Leave word of a write, where the server does not tell of it by itself."""

    async def run(self) -> None:
        """Follow until cancelled. While that fails, listeners are woken once to look for
        themselves, and meet the error where it can be answered.
        """
        pauses = Pauses(_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        while True:
            try:
                with cancellable():
                    await self._follow()
                pauses.worked()
            except (PyMongoError, StoreUnavailableError) as error:
                if not pauses.failed:
                    why = reason(error) if isinstance(error, PyMongoError) else str(error)
                    _log.warning("changes_not_followed", reason=why)
                    self._hub.signal(None)
                await pauses.pause()

    @abstractmethod
    async def _follow(self) -> None:
        """Tell what is new now; return when that has succeeded."""


class StreamFollower(ChangeFollower):
    """Listens to the change stream of the projects; after a break it goes on where it was."""

    def __init__(self, database: Database, hub: ChangeHub, own: OwnChanges) -> None:
        super().__init__(database, hub, own)
        self._stream: AsyncCollectionChangeStream[dict[str, Any]] | None = None
        self._token: Mapping[str, Any] | None = None
        self._lost = False

    async def start(self) -> None:
        """Open the stream."""
        self._stream = await self._database[PROJECTS].watch(
            [_NEWS, _FIELDS],
            full_document="updateLookup",
            resume_after=self._token,
            max_await_time_ms=_AWAIT_MILLIS,
        )
        if self._lost:
            self._lost = False
            self._hub.signal(None)

    async def note(self, news: str, record_id: str, ref: ProjectRef | None) -> None:
        """Do nothing: the stream tells."""

    async def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def _follow(self) -> None:
        if self._stream is None:
            await self._reopen()
            return
        try:
            change = await self._stream.try_next()
        except PyMongoError:
            self._token = self._stream.resume_token
            await self._drop()
            raise
        if change is not None:
            self._tell(change)
        elif not self._stream.alive:
            # The collection was dropped or renamed: its stream has ended for good.
            await self._drop()
            self._forget_place()

    async def _reopen(self) -> None:
        try:
            await self.start()
        except OperationFailure as error:
            if error.code not in _HISTORY_LOST or self._token is None:
                raise
            self._forget_place()
            await self.start()

    def _forget_place(self) -> None:
        # What happens before the stream is open again is lost to us: everybody looks then.
        self._token = None
        self._lost = True

    def _tell(self, change: Mapping[str, Any]) -> None:
        record_id = str(change["documentKey"]["_id"])
        document = change.get("fullDocument") or {}
        news, ref = None, ref_of(document)
        match change["operationType"]:
            case "delete":
                news = GONE
            case "insert":
                news = document.get("news")
            case "update":
                updated = change["updateDescription"].get("updatedFields", {})
                news = updated.get("news")
                # It was handed over: whose it was before is not told.
                ref = None if "user_id" in updated else ref
            case _:
                news = None
        if news is None:
            # Another program's write has no name.
            self._hub.signal(ref)
        else:
            self._own.tell(news, record_id, ref)


class PollingFollower(ChangeFollower):
    """Looks for the notes that each writer leaves, while anybody listens. For a single server."""

    def __init__(
        self, database: Database, hub: ChangeHub, own: OwnChanges, *, poll: float, timeout: float
    ) -> None:
        super().__init__(database, hub, own)
        self._poll = poll
        self._timeout = timeout
        self._last: datetime | None = None

    async def start(self) -> None:
        """Take note of the newest notes."""
        newest = await self._database[CHANGES].find_one({}, sort=[("at", -1)])
        self._last = newest["at"] if newest else None
        for note in await self._newer():
            self._own.pass_over(note["news"], note["_id"])

    async def note(self, news: str, record_id: str, ref: ProjectRef | None) -> None:
        """Leave a note under the project; the server dates it, so that clocks need not agree."""
        owner = {"user_id": ref.user_id, "project_id": ref.project_id} if ref else {}
        with asking(self._timeout):
            await self._database[CHANGES].update_one(
                {"_id": record_id},
                {"$set": {"news": news, **owner}, "$currentDate": {"at": True}},
                upsert=True,
            )

    async def _follow(self) -> None:
        await self._hub.wanted.wait()
        for note in await self._newer():
            self._last = note["at"]
            self._own.tell(note["news"], note["_id"], ref_of(note))
        await asyncio.sleep(self._poll)

    async def _newer(self) -> list[dict[str, Any]]:
        # A note may come to light a little after others that are dated later.
        newer = {"at": {"$gte": self._last - _OVERLAP}} if self._last else {}
        with asking(self._timeout):
            return await self._database[CHANGES].find(newer, sort=[("at", 1)]).to_list()


def ref_of(fields: Mapping[str, Any]) -> ProjectRef | None:
    """Return the project that a document names, if it names one."""
    user_id, project_id = fields.get("user_id"), fields.get("project_id")
    return ProjectRef(user_id, project_id) if user_id and project_id else None
