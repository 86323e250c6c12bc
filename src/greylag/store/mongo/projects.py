"""Idempotency keys: which project a client's key has created, or is creating."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import structlog
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import DuplicateKeyError

from greylag.domain.errors import IdempotencyConflictError, ProjectExistsError
from greylag.domain.project import Project
from greylag.ports import Created, IdempotencyKey, Page, PageQuery
from greylag.store import records
from greylag.store.mongo.claims import Projects
from greylag.store.mongo.client import Attempts, DocumentError, repeated
from greylag.store.mongo.documents import WITHOUT_TAIL, Document, from_document, key, to_document
from greylag.store.mongo.documents import key as id_of
from greylag.store.records import KEY_LIFETIME, Record, millis

RecordId = Any
"""A project's ``_id``."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A key in our hands: the id that its project has or is to have, and whether we chose it."""

    record_id: RecordId
    ours: bool


class Keys:
    """The keys, in a collection; the server removes them some time after they have expired.

    A key is written before its project, with the project's id in it. Whoever comes with the same
    key then finds either the project, or that its creation was cut off, or is still on its way; it
    creates the project under that id, so that there can be only one.
    """

    def __init__(self, collection: AsyncCollection[dict[str, Any]]) -> None:
        self._collection = collection

    async def take(self, project: Project, key: IdempotencyKey, attempts: Attempts) -> Taken:
        """Return which record ``key`` stands for: ``project`` if it is new or has expired.

        Raises ``IdempotencyConflictError`` when it came with another fingerprint.
        """
        place = {"user_id": project.user_id, "key": key.key}
        wanted = _document(place, key, project)
        while True:
            try:
                await self._collection.insert_one(wanted)
            except DuplicateKeyError:
                known = await self._collection.find_one({"_id": place})
            else:
                return Taken(wanted["record_id"], ours=True)
            if known is not None and known["expires_at"] > project.created_at:
                return _checked(known, key)
            if known is not None and await self._replaced(known, wanted):
                return Taken(wanted["record_id"], ours=True)
            await attempts.pause()

    async def give_back(self, owner: str, key: IdempotencyKey, record_id: RecordId) -> None:
        """Remove a key whose project was refused."""
        place = {"user_id": owner, "key": key.key}
        await self._collection.delete_one({"_id": place, "record_id": record_id})

    async def remove(self, record_id: RecordId) -> None:
        """Remove the keys of a record."""
        await repeated(lambda: self._collection.delete_many({"record_id": record_id}))

    async def _replaced(self, known: dict[str, Any], wanted: dict[str, Any]) -> bool:
        same = {"_id": known["_id"], "record_id": known["record_id"]}
        return (await self._collection.replace_one(same, wanted)).matched_count > 0


def _checked(known: dict[str, Any], key: IdempotencyKey) -> Taken:
    if known["fingerprint"] != key.fingerprint:
        raise IdempotencyConflictError("This Idempotency-Key came with another request before.")
    return Taken(known["record_id"], ours=False)


def _document(place: dict[str, str], key: IdempotencyKey, project: Project) -> dict[str, Any]:
    return {
        "_id": place,
        "fingerprint": key.fingerprint,
        "record_id": id_of(project.id),
        "expires_at": project.created_at + KEY_LIFETIME,
        # The server goes by the real time. It comes later, so that both clocks may differ.
        "purge_at": datetime.now(UTC) + 2 * KEY_LIFETIME,
    }


# Creation: at most one project for each id, and for each idempotency key.


class Creation:
    """One creation; ``news`` names its write, ``seconds`` bound it."""

    def __init__(self, projects: Projects, keys: Keys, news: str, seconds: float) -> None:
        self._projects = projects
        self._keys = keys
        self._news = news
        self._attempts = Attempts(seconds)

    async def run(self, project: Project, key: IdempotencyKey | None) -> Created:
        """Insert ``project``, as the port says."""
        record = records.new_record(project)
        if key is None:
            return await self._insert(record)
        taken = await self._keys.take(project, key, self._attempts)
        if not taken.ours:
            earlier = await self._find({"_id": taken.record_id})
            if earlier is not None:
                return Created(earlier.project, new=False)
            record = _finishing(record, str(taken.record_id))
        try:
            return await self._insert(record)
        except ProjectExistsError:
            await self._keys.give_back(project.user_id, key, taken.record_id)
            raise

    async def _insert(self, record: Record) -> Created:
        document = to_document(record) | {"revision": 1, "news": self._news}
        owner = {name: document[name] for name in ("user_id", "project_id")}
        while True:
            try:
                await self._projects.insert_one(document)
            except DuplicateKeyError:
                there = await self._find({"_id": document["_id"]}) or await self._find(owner)
            else:
                return Created(record.project, new=True)
            if there is not None and there.project.id == record.project.id:
                # Somebody with the same key was faster.
                return Created(there.project, new=False)
            if there is not None:
                raise ProjectExistsError(
                    f"User {record.project.user_id!r} already has a project "
                    f"{record.project.project_id!r}."
                )
            await self._attempts.pause()

    async def _find(self, query: dict[str, Any]) -> Record | None:
        raw = await self._projects.find_one(query, WITHOUT_TAIL)
        return None if raw is None else from_document(raw)


def _finishing(record: Record, record_id: str) -> Record:
    """Return the record under the id that somebody with the same key chose before.

    A project of that id may have been there and gone, with claims that somebody still believes in,
    so its claims begin where no count of them comes.
    """
    project = replace(record.project, id=record_id)
    return replace(record, project=project, claims=millis(project.created_at))


# Pages of one user's projects.

_AT_ONCE = 1000
_LARGEST = 2**31 - 2
_NEWEST_FIRST = [("created_at", -1), ("_id", -1)]

_log = structlog.get_logger(__name__)


async def page(projects: Projects, owner: str, query: PageQuery) -> Page:
    """Return one page, as the port says. What cannot be read is left out, and the log tells."""
    records.check_limit(query.limit)
    limit = min(query.limit, _LARGEST)
    matching = _matching(owner, query)
    passed_over = 0
    while True:
        found = await projects.find(
            matching,
            WITHOUT_TAIL,
            sort=_NEWEST_FIRST,
            skip=passed_over,
            limit=limit + 1,
            # All at once: the driver cannot try the second half of an answer again.
            batch_size=min(limit + 1, _AT_ONCE),
        ).to_list()
        shown = list(_readable(found[:limit]))
        if shown or len(found) <= limit:
            break
        passed_over += limit
    more = len(found) > limit
    return Page(shown, records.encode(records.position(shown[-1])) if more else None)


def _matching(owner: str, query: PageQuery) -> Document:
    matching: Document = {"user_id": owner}
    if query.status is not None:
        matching["status"] = query.status.value
    if query.cursor is not None:
        place = records.decode(query.cursor)
        created = records.from_millis(place.created)
        # The first condition follows from the others, and lets the index begin in the right place.
        matching["created_at"] = {"$lte": created}
        matching["$or"] = [
            {"created_at": {"$lt": created}},
            {"created_at": created, "_id": {"$lt": key(place.record_id)}},
        ]
    return matching


def _readable(found: list[dict[str, Any]]) -> Iterator[Project]:
    for raw in found:
        try:
            yield from_document(raw).project
        except DocumentError as error:
            _log.warning("document passed over", reason=str(error))
