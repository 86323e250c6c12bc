"""Claims: which project is worked on next, and by whom."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pymongo import ReturnDocument
from pymongo.asynchronous.collection import AsyncCollection

from greylag.store.mongo.documents import WITHOUT_TAIL, Document
from greylag.store.records import lease_end

Projects = AsyncCollection[dict[str, Any]]

_QUEUE = [("claimable_at", 1), ("_id", 1)]
_NEXT_REVISION = {"$add": [{"$ifNull": ["$revision", 0]}, 1]}
_NEXT_CLAIM = {"$add": [{"$ifNull": ["$claims", 0]}, 1]}


async def claim(
    projects: Projects, worker: str, now: datetime, lease_seconds: float
) -> Document | None:
    """Claim what is next and return its document, ``None`` when nothing is due.

    The claim itself is one atomic step. Who holds how many leases is read before it, so that of
    simultaneous claims one may pass a user over, which the next sets right.
    """
    due: Document = {"claimable_at": {"$lte": now}}
    if await projects.find_one(due, {"_id": True}) is None:
        return None
    update = _claimed(worker, lease_end(now, lease_seconds))
    at_work = await _leases(projects, now)
    found = await _first(projects, due | _not_of(at_work), update)
    for number in sorted(set(at_work.values())):
        if found is not None:
            break
        users = [user for user, count in at_work.items() if count == number]
        found = await _first(projects, due | {"user_id": {"$in": users}}, update)
    return found


def poked(now: datetime, news: str) -> list[Document]:
    """Return the update that does ``records.poked`` inside the server."""
    due_at = {"$min": ["$due_at", now]}
    return [
        {
            "$set": {
                "due_at": due_at,
                "claimable_at": {"$ifNull": ["$lease.until", due_at]},
                "woken": True,
                "revision": _NEXT_REVISION,
                "news": {"$literal": news},
            }
        }
    ]


async def _leases(projects: Projects, now: datetime) -> Mapping[str, int]:
    """Return how many projects of each user are worked on now; users with none are left out."""
    cursor = await projects.aggregate(
        [
            {"$match": {"lease.until": {"$gt": now}}},
            {"$group": {"_id": "$user_id", "count": {"$sum": 1}}},
        ]
    )
    return {one["_id"]: one["count"] for one in await cursor.to_list()}


def _not_of(at_work: Mapping[str, int]) -> Document:
    return {"user_id": {"$nin": list(at_work)}} if at_work else {}


def _claimed(worker: str, until: datetime) -> list[Document]:
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


async def _first(projects: Projects, query: Document, update: list[Document]) -> Document | None:
    return await projects.find_one_and_update(
        query,
        update,
        sort=_QUEUE,
        projection=WITHOUT_TAIL,
        return_document=ReturnDocument.AFTER,
    )


async def next_due(projects: Projects) -> datetime | None:
    """Return when the first project can be claimed."""
    first = await projects.find_one(
        {"claimable_at": {"$exists": True}}, {"claimable_at": True}, sort=_QUEUE
    )
    return None if first is None else first["claimable_at"]
