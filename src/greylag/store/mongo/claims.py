"""The reconciler's half of the MongoDB store: claims, what they may write, what wakes projects."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from greylag.domain.project import MOST_AHEAD, Project, ProjectRef, Status, new_instance_id
from greylag.domain.users import of_project
from greylag.ports import Claim, Duty, Outcome, RecordUnreadableError
from greylag.store import records
from greylag.store.mongo import indexes
from greylag.store.mongo.changes import GONE, ref_of
from greylag.store.mongo.connection import WriteAttempts, repeated
from greylag.store.mongo.documents import (
    WITHOUT_TAIL,
    Document,
    from_document,
    id_of,
    new_tail,
)
from greylag.store.mongo.writes import StoreParts, of_environment, of_owner
from greylag.store.people import NAMES, OF_PROJECTS
from greylag.store.records import (
    FIRST_MILLIS,
    LAST_MILLIS,
    DutyRecord,
    from_millis,
    lease_end,
)

LONG_SECONDS = 120.0
"""How long may take what touches many documents: making indexes, adoption, waking all."""

_ANY_MOMENT = {"$gte": from_millis(FIRST_MILLIS), "$lte": from_millis(LAST_MILLIS)}
"""What else may stand there is never due."""

_QUEUE = [("claimable_at", 1), ("_id", 1)]


def _next(field: str) -> Document:
    """Return what counts a field up inside the server. What is no number stays, as it would fail
    the whole command.
    """
    kinds = ["missing", "null", "int", "long", "double", "decimal"]
    counted = {"$add": [{"$ifNull": [field, 0]}, 1]}
    return {"$cond": [{"$in": [{"$type": field}, kinds]}, counted, field]}


_NEXT_REVISION = _next("$revision")
_NEXT_CLAIM = _next("$claims")

_log = structlog.get_logger(__name__)


class ReconcilerMethods(StoreParts):
    """The methods of ``greylag.ports.ProjectStore`` that serve the reconciler."""

    async def claim_due(self, worker: str, now: datetime, lease_seconds: float) -> Claim | None:
        """Claim the project that is next; see the port."""
        update = _claimed(worker, lease_end(now, lease_seconds))
        with self._asking():
            while (raw := await self._claim_next(now, update)) is not None:
                try:
                    return Claim(from_document(raw).project)
                except RecordUnreadableError as error:
                    # Its lease keeps it from being claimed again at once.
                    _log.warning("record_passed_over", error=str(error))
            return None

    async def next_due(self) -> datetime | None:
        """Return when the next claim can succeed; see the port."""
        with self._asking():
            first = await self._projects.find_one(
                {"claimable_at": _ANY_MOMENT}, {"claimable_at": True}, sort=_QUEUE
            )
        return None if first is None else first["claimable_at"]

    async def count_by_status(self) -> Mapping[Status, int]:
        """Return how many projects there are in each status; see the port."""
        with self._asking():
            cursor = await self._projects.aggregate(
                [{"$group": {"_id": "$status", "count": {"$sum": 1}}}]
            )
            found = await cursor.to_list()
        counted = {one["_id"]: one["count"] for one in found if isinstance(one["_id"], str)}
        return {status: counted.get(status, 0) for status in Status}

    async def renew(
        self, claim: Claim, now: datetime, lease_seconds: float, *, above: int = 0
    ) -> Claim:
        """Extend a lease; see the port."""
        with self._asking():
            project = await self._change(
                {"_id": id_of(claim.project.id)},
                lambda record: records.renewed(record, claim, now, lease_seconds, above),
                fence=_fence(claim),
                quiet=True,
            )
        return Claim(project)

    async def record(
        self, claim: Claim, outcome: Outcome, now: datetime, *, release: bool
    ) -> Project:
        """Write what is, and the events with it; see the port."""
        with self._asking():
            attempts = WriteAttempts(self._seconds)
            while True:
                raw = await self._projects.find_one({"_id": id_of(claim.project.id)})
                if raw is None:
                    raise records.lease_lost(claim)
                before = from_document(raw)
                after, new = records.recorded(before, claim, outcome, now, release=release)
                if new:
                    await self._log.move(raw)
                more = {"tail": new_tail(new)} if new else None
                if await self._put(raw, before, after, fence=_fence(claim), more=more):
                    return after.project
                await attempts.pause()

    async def forget(self, claim: Claim) -> None:
        """Remove a record, its keys and its log; see the port."""
        place, ref = {"_id": id_of(claim.project.id)}, claim.project.ref

        async def work() -> bool:
            # The keys go first: a key must not outlive its project, lest it is made again.
            await repeated(lambda: self._keys.delete_many({"record_id": place["_id"]}))
            for kind in OF_PROJECTS:
                shared = self._database[indexes.PEOPLE[NAMES[kind]]]
                theirs = {
                    "labels": of_project(ref.user_id, ref.project_id),
                    "record_id": claim.project.id,
                }
                await repeated(partial(shared.delete_many, theirs))
            # Nor may what was said outlive it; once more below, as somebody may write it meanwhile.
            await self._remove_transcript(place["_id"])
            gone = await self._projects.delete_one(place | _fence(claim))
            if gone.deleted_count:
                await self._tell(GONE, claim.project.id, ref)
                await self._log.remove(place["_id"])
                await self._remove_transcript(place["_id"])
            return gone.deleted_count > 0

        with self._asking():
            await self._check_held(claim)
            if not await self._shielded(work()):
                raise records.lease_lost(claim)

    async def transcript(self, owner: str, project_id: str, part: str) -> bytes | None:
        """Return a part of what was said; see the port."""
        ref = ProjectRef(owner, project_id)
        with self._asking():
            project = await self._projects.find_one(of_owner(ref), {"_id": True})
            if project is None:
                raise records.not_found(ref)
            found = await self._transcripts.find_one({"record_id": project["_id"], "part": part})
        return None if found is None else bytes(found["body"])

    async def keep_transcript(
        self, claim: Claim, parts: Mapping[str, bytes], *, only: Collection[str] | None = None
    ) -> None:
        """Keep parts of what was said; see the port. Each is fenced by the number of the claim that
        wrote it, as no one step can look at the record and write elsewhere.
        """
        of_record = {"record_id": id_of(claim.project.id)}
        older = {"number": {"$lte": claim.number}}

        async def work() -> None:
            for part, body in parts.items():
                one = {**of_record, "part": part, **older}
                kept = {"$set": {"number": claim.number, "body": body}}
                try:
                    await self._transcripts.update_one(one, kept, upsert=True)
                except DuplicateKeyError:
                    # A newer claim wrote it, or one of a time that records put back know not of.
                    await self._check_held(claim)
                    await self._transcripts.update_one({**of_record, "part": part}, kept)
            if only is not None:
                others = {**of_record, "part": {"$nin": list(only)}, **older}
                await repeated(lambda: self._transcripts.delete_many(others))
            if await self._projects.find_one({"_id": of_record["record_id"]}, {"_id": 1}) is None:
                await self._remove_transcript(of_record["record_id"])

        with self._asking():
            await self._check_held(claim)
            await self._shielded(work())

    async def _check_held(self, claim: Claim) -> None:
        raw = await self._projects.find_one({"_id": id_of(claim.project.id)}, WITHOUT_TAIL)
        records.held(None if raw is None else from_document(raw), claim)

    async def _remove_transcript(self, record_id: Any) -> None:
        await repeated(lambda: self._transcripts.delete_many({"record_id": record_id}))

    async def poke(self, ref: ProjectRef, now: datetime) -> None:
        """Make one project due; see the port."""
        news = self._own.name()

        async def work() -> None:
            # What cannot be read must not be claimed.
            readable = of_environment(ref) | {"status": {"$in": list(Status)}}
            found = await self._projects.find_one_and_update(
                readable,
                _poked(now, news),
                projection={"user_id": True, "project_id": True},
            )
            if found is not None:
                await self._tell(news, str(found["_id"]), ref_of(found) or ref)

        with self._asking():
            await self._shielded(work())

    async def poke_unsettled(self, now: datetime) -> int:
        """Make due all that may need work; see the port."""
        news = self._own.name()

        async def work() -> int:
            await indexes.adopt(self._projects)
            update = _poked(now, news)
            done = await repeated(lambda: self._projects.update_many({"unsettled": True}, update))
            if done.matched_count:
                await self._tell(news, "", None)
            return done.matched_count

        # What may take long begins with what may not, lest a server that is gone is waited for.
        await self.ping()
        with self._asking(LONG_SECONDS):
            return await self._shielded(work())

    async def instance(self) -> str:
        """Return this Greylag's id; see the port. The first to ask makes it."""
        those, key = self._database[indexes.INSTANCE], {"_id": "instance"}
        attempts = WriteAttempts(self._seconds)
        with self._asking():
            while (found := await those.find_one(key)) is None:
                # Of several first ones one makes it.
                with suppress(DuplicateKeyError):
                    await those.insert_one(key | {"id": new_instance_id()})
                    continue
                await attempts.pause()
        return str(found["id"])

    async def take_duty(
        self, name: str, worker: str, *, since: datetime, now: datetime, seconds: float
    ) -> Duty:
        """Take a duty on; see the port. Each is a small document, replaced only as it was read."""
        with self._asking():
            while True:
                before = await self._duty(name)
                verdict, after = records.taken(before or DutyRecord(), worker, since, now, seconds)
                if verdict is not Duty.MINE or await self._replace_duty(name, before, after):
                    return verdict

    async def finish_duty(self, name: str, worker: str, now: datetime) -> None:
        """Say that a duty is done; see the port."""
        with self._asking():
            while (before := await self._duty(name)) is not None:
                after = records.finished(before, worker, now)
                if after == before or await self._replace_duty(name, before, after):
                    return

    async def ping(self) -> None:
        """Return when a majority of the servers takes writes; see the port."""
        with self._asking():
            await self._database[indexes.PINGS].update_one(
                {"_id": "ping"}, {"$inc": {"count": 1}}, upsert=True
            )

    async def _claim_next(self, now: datetime, update: list[Document]) -> Document | None:
        """Claim what is next and return its document, ``None`` when nothing is due.

        The claim itself is one atomic step. Who holds how many leases is read before it, so that of
        simultaneous claims one may pass a user over, which the next sets right.
        """
        due: Document = {"claimable_at": {"$lte": now}}
        if await self._projects.find_one(due, {"_id": True}) is None:
            return None
        at_work = await self._leases(now)
        idle = {"user_id": {"$nin": list(at_work)}} if at_work else {}
        found = await self._claim_first(due | idle, update)
        for number in sorted(set(at_work.values())):
            if found is not None:
                break
            users = [user for user, count in at_work.items() if count == number]
            found = await self._claim_first(due | {"user_id": {"$in": users}}, update)
        return found

    async def _claim_first(self, query: Document, update: list[Document]) -> Document | None:
        return await self._projects.find_one_and_update(
            query,
            update,
            sort=_QUEUE,
            projection=WITHOUT_TAIL,
            return_document=ReturnDocument.AFTER,
        )

    async def _leases(self, now: datetime) -> Mapping[str, int]:
        """Return how many projects of each user are worked on now; users with none are left out."""
        cursor = await self._projects.aggregate(
            [
                {"$match": {"lease.until": {"$gt": now}}},
                {"$group": {"_id": "$user_id", "count": {"$sum": 1}}},
            ]
        )
        found = await cursor.to_list()
        return {one["_id"]: one["count"] for one in found if isinstance(one["_id"], str)}

    async def _duty(self, name: str) -> DutyRecord | None:
        found = await self._database[indexes.DUTIES].find_one({"_id": name}, {"_id": False})
        return None if found is None else DutyRecord(**found)

    async def _replace_duty(self, name: str, before: DutyRecord | None, after: DutyRecord) -> bool:
        duties = self._database[indexes.DUTIES]
        if before is not None:
            same = {"_id": name, **asdict(before)}
            return (await duties.replace_one(same, asdict(after))).matched_count > 0
        try:
            await duties.insert_one({"_id": name, **asdict(after)})
        except DuplicateKeyError:
            return False
        return True


def _fence(claim: Claim) -> Document:
    return {"lease.number": claim.number}


def _claimed(worker: str, until: datetime) -> list[Document]:
    """Return the update that does ``records.claimed`` inside the server."""
    return [
        {
            "$set": {
                "lease": {"worker": {"$literal": worker}, "number": _NEXT_CLAIM, "until": until},
                "claimable_at": until,
                "claims": _NEXT_CLAIM,
                "woken": False,
                "revision": _NEXT_REVISION,
            }
        }
    ]


def _poked(now: datetime, news: str) -> list[Document]:
    """Return the update that does ``records.poked`` inside the server."""
    due_at = {"$min": ["$due_at", now]}
    is_ahead = {"$gt": ["$lease.until", now + MOST_AHEAD]}
    run_out = {"$mergeObjects": ["$lease", {"until": now}]}
    return [
        {"$set": {"lease": {"$cond": [is_ahead, run_out, "$lease"]}}},
        {
            "$set": {
                "due_at": due_at,
                "claimable_at": {"$ifNull": ["$lease.until", due_at]},
                "woken": True,
                "revision": _NEXT_REVISION,
                "news": {"$literal": news},
            }
        },
    ]
