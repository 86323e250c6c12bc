"""The reconciler's half of the store: what a claim may write, and what wakes projects."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import DuplicateKeyError

from greylag.domain.project import Event, Project, ProjectRef, Status
from greylag.ports import Claim, Duty, Outcome
from greylag.store import records
from greylag.store.mongo import claims
from greylag.store.mongo.changes import GONE, Echoes
from greylag.store.mongo.claims import Projects
from greylag.store.mongo.client import Attempts, repeated
from greylag.store.mongo.documents import WITHOUT_TAIL, Document, from_document
from greylag.store.mongo.documents import key as id_of
from greylag.store.mongo.indexes import adopt
from greylag.store.mongo.projects import Keys
from greylag.store.mongo.writes import Log, Writes, new_tail
from greylag.store.records import DutyRecord


class Work:
    """Each method does what the port says of its name."""

    def __init__(  # noqa: PLR0913 - the collections and what tells of their writes
        self,
        projects: Projects,
        writes: Writes,
        echoes: Echoes,
        *,
        keys: Keys,
        log: Log,
        seconds: float,
    ) -> None:
        self._projects = projects
        self._keys = keys
        self._log = log
        self._writes = writes
        self._echoes = echoes
        self._seconds = seconds

    async def renew(self, claim: Claim, now: datetime, lease_seconds: float) -> Claim:
        """Extend a lease."""
        project = await self._writes.change(
            {"_id": id_of(claim.project.id)},
            lambda record: records.renewed(record, claim, now, lease_seconds),
            fence=_fence(claim),
            quiet=True,
        )
        return Claim(project)

    async def record(
        self, claim: Claim, outcome: Outcome, now: datetime, *, release: bool
    ) -> Project:
        """Write what is, and the events with it."""
        attempts = Attempts(self._seconds)
        while True:
            raw = await self._projects.find_one({"_id": id_of(claim.project.id)})
            if raw is None:
                raise records.lease_lost(claim)
            before = from_document(raw)
            after, new = records.recorded(before, claim, outcome, now, release=release)
            more = await self._next_tail(raw, new)
            if await self._writes.put(raw, before, after, fence=_fence(claim), more=more):
                return after.project
            await attempts.pause()

    async def forget(self, claim: Claim) -> None:
        """Remove a record, its keys and its log."""
        place = {"_id": id_of(claim.project.id)}
        raw = await self._projects.find_one(place, WITHOUT_TAIL)
        records.held(None if raw is None else from_document(raw), claim)

        async def work() -> bool:
            # The keys go first: a key must not outlive its project, lest it is made again.
            await self._keys.remove(place["_id"])
            gone = await self._projects.delete_one(place | _fence(claim))
            if gone.deleted_count:
                await self._writes.tell(GONE, claim.project.id, claim.project.ref)
                await self._log.remove(place["_id"])
            return gone.deleted_count > 0

        if not await self._writes.to_its_end(work()):
            raise records.lease_lost(claim)

    async def poke(self, ref: ProjectRef, now: datetime) -> None:
        """Make one project due."""
        news = self._echoes.name()

        async def work() -> None:
            found = await self._projects.find_one_and_update(
                {
                    "user_id": ref.user_id,
                    "project_id": ref.project_id,
                    # What cannot be read must not be claimed.
                    "status": {"$in": list(Status)},
                },
                claims.poked(now, news),
                projection={"_id": True},
            )
            if found is not None:
                await self._writes.tell(news, str(found["_id"]), ref)

        await self._writes.to_its_end(work())

    async def poke_unsettled(self, now: datetime) -> int:
        """Make due all that may need work."""
        news = self._echoes.name()

        async def work() -> int:
            await adopt(self._projects)
            update = claims.poked(now, news)
            done = await repeated(lambda: self._projects.update_many({"unsettled": True}, update))
            if done.matched_count:
                await self._writes.tell_all(news)
            return done.matched_count

        return await self._writes.to_its_end(work())

    async def _next_tail(self, raw: Document, new: Sequence[Event]) -> Document | None:
        if not new:
            return None
        await self._log.move(raw)
        return {"tail": new_tail(new)}


def _fence(claim: Claim) -> Document:
    return {"lease.number": claim.number}


# Duties in MongoDB: one small document each, replaced only as it was read.


class Duties:
    """The duties, in a collection of their own."""

    def __init__(self, collection: AsyncCollection[dict[str, Any]]) -> None:
        self._collection = collection

    async def take(
        self, name: str, worker: str, since: datetime, now: datetime, seconds: float
    ) -> Duty:
        """Take a duty on; see the port."""
        while True:
            before = await self._read(name)
            verdict, after = records.taken(before or DutyRecord(), worker, since, now, seconds)
            if verdict is not Duty.MINE or await self._replaced(name, before, after):
                return verdict

    async def finish(self, name: str, worker: str, now: datetime) -> None:
        """Say that a duty is done; see the port."""
        while (before := await self._read(name)) is not None:
            after = records.finished(before, worker, now)
            if after == before or await self._replaced(name, before, after):
                return

    async def _read(self, name: str) -> DutyRecord | None:
        found = await self._collection.find_one({"_id": name}, {"_id": False})
        return None if found is None else DutyRecord(**found)

    async def _replaced(self, name: str, before: DutyRecord | None, after: DutyRecord) -> bool:
        if before is not None:
            same = {"_id": name, **_document(before)}
            return (await self._collection.replace_one(same, _document(after))).matched_count > 0
        try:
            await self._collection.insert_one({"_id": name, **_document(after)})
        except DuplicateKeyError:
            return False
        return True


def _document(record: DutyRecord) -> dict[str, Any]:
    return {"holder": record.holder, "until": record.until, "done_at": record.done_at}
