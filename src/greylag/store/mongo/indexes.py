"""The collections, the indexes that they need, the fields that older documents lack, and the mark
by which older programs know what they cannot read.

All of it is made where it is missing.
"""

from collections.abc import Mapping
from typing import Any

import structlog
from pymongo import IndexModel, UpdateOne
from pymongo.errors import DuplicateKeyError, OperationFailure

from greylag.domain.errors import ConfigError
from greylag.ports import Finding, RecordUnreadableError
from greylag.store.mongo.connection import UNAUTHORIZED, Collection, Database
from greylag.store.mongo.documents import (
    WITHOUT_TAIL,
    Document,
    difference,
    from_document,
)
from greylag.store.people import NAMES

PROJECTS = "projects"
EVENTS = "greylag_events"
KEYS = "greylag_keys"
CHANGES = "greylag_changes"
PINGS = "greylag_pings"
DUTIES = "greylag_duties"
REVOCATIONS = "greylag_revocations"
INSTANCE = "greylag_instance"
TRANSCRIPTS = "greylag_transcripts"
AUDIT = "greylag_audit"
AUDIT_BOUNDS = "greylag_audit_bounds"
PEOPLE = {name: name if name == "users" else f"greylag_{name}" for name in NAMES.values()}
"""The collection of each kind of ``greylag.store.people``."""

INCOMPLETE = "greylag_copying"
"""Holds a document while the store is incomplete; an earlier Greylag's copies left one, too."""

FORM = 1
"""What a program must know to use the database. It is raised with a change that older programs
would take for something else and do harm by, as with an environment that seems to have no record;
not with one that they pass over.
"""

FORM_MARK = {"_id": "form"}
"""The document of ``INSTANCE`` that holds the highest form in use, as ``lowest``."""

CHANGES_KEPT_SECONDS = 3600
_DUPLICATES = {11000, 11001}
_NAMED = 5

Key = list[tuple[str, int]]


def _present(name: str) -> dict[str, Any]:
    return {"partialFilterExpression": {name: {"$exists": True}}}


_OWNER: Key = [("user_id", 1), ("project_id", 1)]
_ENVIRONMENT: Key = [("environment_user", 1), ("project_id", 1)]
_AUDIT_FOUND_BY = ("at", "actor.user", "action", "object", "result")
_WANTED: dict[str, list[tuple[Key, dict[str, Any]]]] = {
    PROJECTS: [
        (_OWNER, {"unique": True}),
        (_ENVIRONMENT, {"unique": True, **_present("environment_user")}),
        ([("status", 1)], {}),
        ([("user_id", 1), ("created_at", -1), ("_id", -1)], {}),
        ([("user_id", 1), ("status", 1), ("created_at", -1), ("_id", -1)], {}),
        # The queue, in its order; then each user's part of it, and who works for whom.
        ([("claimable_at", 1), ("_id", 1), ("user_id", 1)], _present("claimable_at")),
        ([("user_id", 1), ("claimable_at", 1), ("_id", 1)], _present("claimable_at")),
        ([("lease.until", 1), ("user_id", 1)], _present("lease.until")),
        ([("unsettled", 1)], _present("unsettled")),
    ],
    EVENTS: [
        ([("record_id", 1), ("seq", 1)], {"unique": True}),
        ([("purge_at", 1)], {"expireAfterSeconds": 0}),
    ],
    KEYS: [
        ([("record_id", 1)], {}),
        ([("purge_at", 1)], {"expireAfterSeconds": 0}),
    ],
    TRANSCRIPTS: [([("record_id", 1), ("part", 1)], {"unique": True})],
    REVOCATIONS: [([("until", 1)], {"expireAfterSeconds": 0})],
    AUDIT: [([(name, 1), ("_id", 1)], {}) for name in _AUDIT_FOUND_BY],
    CHANGES: [([("at", 1)], {"expireAfterSeconds": CHANGES_KEPT_SECONDS})],
    **{name: [([("labels", 1)], {})] for name in PEOPLE.values()},
}


for _name in ("sessions", "tokens", "device_logins", "shares"):
    _WANTED[PEOPLE[_name]].append(([("purge_at", 1)], {"expireAfterSeconds": 0}))


async def is_incomplete(database: Database) -> bool:
    """Tell whether an import into the database was begun and has not ended."""
    return await database[INCOMPLETE].find_one({}) is not None


async def check_form(database: Database) -> int:
    """Return the form that the database is marked with; 0: with none, as before there were marks.

    Raises:
        ConfigError: a newer Greylag writes what this one does not know.
    """
    found = await database[INSTANCE].find_one(FORM_MARK)
    lowest = 0 if found is None else found["lowest"]
    if lowest > FORM:
        raise ConfigError(
            f"The database {database.name} was written by a newer Greylag than this one.",
            hint="Start the newer Greylag, or give this one another database by MONGODB_DB.",
        )
    return int(lowest)


async def mark_form(database: Database, *, make: bool = True) -> None:
    """Mark the database with our form before anything of it is written; never with a lower one.

    Args:
        database: which.
        make: whether a mark is made where there is none.

    Raises:
        ConfigError: as by ``check_form``.
    """
    if await check_form(database) == FORM:
        return
    those, raised = database[INSTANCE], {"$max": {"lowest": FORM}}
    try:
        await those.update_one(FORM_MARK, raised, upsert=make)
    except DuplicateKeyError:  # another process has made it meanwhile
        await those.update_one(FORM_MARK, raised)
    except OperationFailure as error:
        # Who may only read writes nothing of our form either.
        if error.code != UNAUTHORIZED:
            raise


async def ensure(database: Database) -> None:
    """Make the indexes that are missing. One that is there under another name will do.

    Raises:
        ConfigError: an index cannot be had; for the unique one of projects the sentence names the
            duplicates.
    """
    for name, models in (await _missing(database)).items():
        await _create(database[name], models)


async def findings(database: Database) -> list[Finding]:
    """Return which indexes are not there as they are needed; nothing is changed."""
    return [
        Finding(
            f"{name}.{model.document['name']}",
            f"The collection {name} has no index {model.document['name']} as it is needed.",
            "Start `greylag serve` or `worker` once: it makes the index, or says what stands in "
            "its way.",
        )
        for name, models in (await _missing(database)).items()
        for model in models
    ]


async def _missing(database: Database) -> dict[str, list[IndexModel]]:
    """Return, by collection, the indexes that are needed and not there as they are needed."""
    lacking: dict[str, list[IndexModel]] = {}
    for name, wanted in _WANTED.items():
        found = (await database[name].index_information()).values()
        models = [
            IndexModel(keys, **options)
            for keys, options in wanted
            if not any(_serves(index, keys, options) for index in found)
        ]
        if models:
            lacking[name] = models
    return lacking


def _serves(index: Mapping[str, Any], keys: Key, options: Mapping[str, Any]) -> bool:
    # A TTL of our own may be set otherwise by the operator; all else must be as we need it.
    same_keys = [(name, int(way)) for name, way in index["key"]] == keys
    return (
        same_keys
        and bool(index.get("unique")) == bool(options.get("unique"))
        and ("expireAfterSeconds" in index) == ("expireAfterSeconds" in options)
        and _filter(index) == _filter(options)
        and not index.get("sparse")
    )


def _filter(options: Mapping[str, Any]) -> dict[str, Any] | None:
    found = options.get("partialFilterExpression")
    return None if found is None else {name: dict(test) for name, test in found.items()}


async def _create(collection: Collection, missing: list[IndexModel]) -> None:
    try:
        await collection.create_indexes(missing)
    except OperationFailure as error:
        if isinstance(error, DuplicateKeyError) or error.code in _DUPLICATES:
            raise ConfigError(
                f"In the MongoDB collection {collection.name}, {await _twins(collection)}.",
                hint="Remove or rename all but one of each, then start again.",
            ) from error
        if error.code in {85, 86, 67}:  # IndexOptionsConflict, IndexKeySpecsConflict, CannotCreate
            raise ConfigError(
                f"An index of the MongoDB collection {collection.name} stands in the way of one "
                f"that Greylag needs: {error.details and error.details.get('errmsg')}.",
                hint="Drop the index that the sentence names, then start again.",
            ) from error
        raise


async def _twins(collection: Collection) -> str:
    """Return in words which users have several projects with one id."""
    cursor = await collection.aggregate(
        [
            {
                "$group": {
                    "_id": {"user_id": "$user_id", "project_id": "$project_id"},
                    "documents": {"$push": "$_id"},
                    "count": {"$sum": 1},
                }
            },
            {"$match": {"count": {"$gt": 1}}},
            {"$sort": {"_id": 1}},
            {"$limit": _NAMED + 1},
        ]
    )
    found = await cursor.to_list()
    named = [
        f"user {twin['_id'].get('user_id')!r} has {twin['count']} projects "
        f"{twin['_id'].get('project_id')!r} ({', '.join(str(one) for one in twin['documents'])})"
        for twin in found[:_NAMED]
    ]
    return "; ".join(named) + ("; and more" if len(found) > _NAMED else "")


# Documents that an older system wrote become records of ours, where they stand.

_AT_ONCE = 500

_log = structlog.get_logger(__name__)


async def adopt(projects: Collection) -> None:
    """Write our fields beside the old ones, where no write of ours has been. May be repeated.

    A document that cannot be read is left as it is, and the log tells of it.
    """
    updates: list[UpdateOne] = []
    async for raw in projects.find({"revision": {"$exists": False}}, WITHOUT_TAIL):
        update = _update(raw)
        if update is not None:
            updates.append(update)
        if len(updates) == _AT_ONCE:
            await projects.bulk_write(updates, ordered=False)
            updates.clear()
    if updates:
        await projects.bulk_write(updates, ordered=False)


def _update(raw: Document) -> UpdateOne | None:
    try:
        record = from_document(raw)
    except RecordUnreadableError as error:
        _log.warning("record_passed_over", error=str(error))
        return None
    update = difference(raw, record, record)
    changed = update.get("$set", {}) | {"revision": 1}
    # Whoever has written meanwhile has adopted it.
    untouched = {"_id": raw["_id"], "revision": {"$exists": False}}
    return UpdateOne(untouched, update | {"$set": changed})
