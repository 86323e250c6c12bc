"""Duties in MongoDB: one small document each, replaced only as it was read."""

from datetime import datetime
from typing import Any

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import DuplicateKeyError

from greylag.ports.store import Duty
from greylag.store import duties
from greylag.store.duties import DutyRecord


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
            verdict, after = duties.taken(before or DutyRecord(), worker, since, now, seconds)
            if verdict is not Duty.MINE or await self._replaced(name, before, after):
                return verdict

    async def finish(self, name: str, worker: str, now: datetime) -> None:
        """Say that a duty is done; see the port."""
        while (before := await self._read(name)) is not None:
            after = duties.finished(before, worker, now)
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
