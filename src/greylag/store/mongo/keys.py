"""Idempotency keys: which project a client's key has created, or is creating."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import DuplicateKeyError

from greylag.domain.errors import IdempotencyConflictError
from greylag.domain.project import Project
from greylag.ports.store import IdempotencyKey
from greylag.store.mongo.attempts import Attempts, repeated
from greylag.store.mongo.documents import key as id_of
from greylag.store.records import KEY_LIFETIME

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
