"""What can be wrong with a MongoDB store besides its documents: indexes, doubles, what is left."""

from collections.abc import Mapping
from typing import Any

from pymongo import IndexModel

from greylag.ports import Flaw
from greylag.store import sheets
from greylag.store.mongo import indexes
from greylag.store.mongo.client import Documents
from greylag.store.mongo.documents import Document

_DOUBLES: list[Document] = [
    {
        "$group": {
            "_id": {"user_id": "$user_id", "project_id": "$project_id"},
            "documents": {"$push": "$_id"},
            "count": {"$sum": 1},
        }
    },
    {"$match": {"count": {"$gt": 1}}},
    {"$sort": {"_id": 1}},
    {"$limit": sheets.NAMED},
]
_ORPHANS: list[Document] = [
    {"$group": {"_id": "$record_id", "count": {"$sum": 1}}},
    {
        "$lookup": {
            "from": indexes.PROJECTS,
            "localField": "_id",
            "foreignField": "_id",
            "as": "projects",
        }
    },
    {"$match": {"projects": {"$size": 0}}},
    {"$sort": {"_id": 1}},
    {"$limit": sheets.NAMED},
]


async def flaws(database: Documents) -> list[Flaw]:
    """Return what is wrong; nothing is changed."""
    found = await _indexes(database)
    if found:
        # With its index in place, no project has two records.
        twins = await database[indexes.PROJECTS].aggregate(_DOUBLES)
        found += [
            sheets.doubles(
                twin["_id"].get("user_id"), twin["_id"].get("project_id"), twin["documents"]
            )
            for twin in await twins.to_list()
        ]
    orphans = await database[indexes.EVENTS].aggregate(_ORPHANS)
    found += [
        sheets.event_without_project(one["_id"], one["count"]) for one in await orphans.to_list()
    ]
    return found


async def _indexes(database: Documents) -> list[Flaw]:
    found: list[Flaw] = []
    for collection, missing in (await indexes.missing(database)).items():
        there = await database[collection].index_information()
        found += [_flaw(collection, model, there) for model in missing]
    return found


def _flaw(collection: str, model: IndexModel, there: Mapping[str, Any]) -> Flaw:
    wanted = list(model.document["key"].items())
    words = ", ".join(f"{field}: {way}" for field, way in wanted)
    name = f"{collection}.{model.document['name']}"
    for other, index in there.items():
        if [(field, int(way)) for field, way in index["key"]] == wanted:
            return Flaw(
                "wrong_index",
                name,
                f"The index {other} of {collection} on {{{words}}} has not the options it needs.",
                "Drop it; the next start of `greylag serve` or `worker` makes the right one.",
            )
    return Flaw(
        "missing_index",
        name,
        f"The collection {collection} has no index on {{{words}}}.",
        "Start `greylag serve` or `worker` once: it makes the index, or says what stands in its "
        "way.",
    )
