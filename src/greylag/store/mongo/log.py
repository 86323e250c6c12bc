"""The activation logs.

An outcome and its events must become visible together, and a server without a replica set has no
transactions. So the events of the newest outcome stand in the project's own document (``tail``),
written in the same atomic step; before the next ones take their place they are moved to the
collection of events. Whoever moves them writes the same, so it may be begun, cut off and done again
by anybody.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import ReplaceOne
from pymongo.asynchronous.collection import AsyncCollection

from greylag.domain.events import Event
from greylag.store.mongo.attempts import repeated
from greylag.store.mongo.documents import Document, event_fields, tail_of, to_event
from greylag.store.records import LOG_LENGTH

_KEPT = timedelta(days=30)


def new_tail(events: Sequence[Event]) -> list[Document]:
    """Return the events of one outcome as the project's document holds them."""
    return [event_fields(event) for event in events[-LOG_LENGTH:]]


class Log:
    """The older events of all projects, in a collection; the server removes them after a month."""

    def __init__(self, collection: AsyncCollection[dict[str, Any]]) -> None:
        self._collection = collection

    async def move(self, raw: Mapping[str, Any]) -> None:
        """Move the tail of a project to the collection, and trim what is more than is kept."""
        tail = tail_of(raw)
        if not tail:
            return
        # The age of events is measured by this machine's clock, like the server's work on it.
        purge_at = datetime.now(UTC) + _KEPT
        await self._collection.bulk_write(
            [
                ReplaceOne(
                    {"record_id": raw["_id"], "seq": fields["seq"]},
                    {"record_id": raw["_id"], "purge_at": purge_at, **fields},
                    upsert=True,
                )
                for fields in tail
            ],
            ordered=False,
        )
        oldest = tail[-1]["seq"] - LOG_LENGTH
        if oldest > 0:
            trimmed = {"record_id": raw["_id"], "seq": {"$lte": oldest}}
            await repeated(lambda: self._collection.delete_many(trimmed))

    async def read(self, raw: Mapping[str, Any], after: int, limit: int) -> Sequence[Event]:
        """Return the events with ``seq > after``, oldest first, ``limit`` at most, of the project
        whose document, with its tail, is ``raw``.
        """
        after = max(after, raw.get("last_seq", 0) - LOG_LENGTH)
        tail = [fields for fields in tail_of(raw) if fields["seq"] > after]
        first = tail[0]["seq"] if tail else raw.get("last_seq", 0) + 1
        older: list[Document] = []
        if after + 1 < first and limit > 0:
            older = await self._collection.find(
                {"record_id": raw["_id"], "seq": {"$gt": after, "$lt": first}},
                sort=[("seq", 1)],
                limit=min(limit, LOG_LENGTH),
                batch_size=LOG_LENGTH,
            ).to_list()
        return [to_event(fields) for fields in [*older, *tail][:limit]]

    async def remove(self, record_id: Any) -> None:
        """Remove all events of a record."""
        await repeated(lambda: self._collection.delete_many({"record_id": record_id}))
