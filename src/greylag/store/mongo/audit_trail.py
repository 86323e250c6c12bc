"""The audit trail in MongoDB: a document for each entry, whose ``_id`` is its number.

Where the server has transactions, a change and its entry are one. A server without a replica set
has none: there an entry that says ``begun`` comes before the change, and another after it. Of two
processes that take the same number at once, one begins anew.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from pymongo import DESCENDING, WriteConcern
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.read_concern import ReadConcern

from greylag.common.clock import rfc3339
from greylag.domain.audit import (
    START,
    AuditBounds,
    AuditEntry,
    AuditEvent,
    Link,
    Result,
    chained,
    to_json,
)
from greylag.ports import AuditFilter, NumberedEntry
from greylag.store.mongo import indexes
from greylag.store.mongo.connection import (
    Client,
    Database,
    WriteAttempts,
    has_change_streams,
    repeated,
)

Write = Callable[[AsyncClientSession | None], Awaitable[bool]]
"""A write, in a transaction if there is one; it tells whether anything was written. It may be done
again: what it did before is undone then."""

_SNAPSHOT = ReadConcern("snapshot")
_DURABLE = WriteConcern(w="majority", j=True)


class _OvertakenError(Exception):
    """Another process has taken the number."""


class AuditTrail:
    """The entries of one database. Its methods are bounded by whoever calls them."""

    def __init__(self, client: Client, database: Database, seconds: float) -> None:
        self._client = client
        self._entries = database[indexes.AUDIT]
        self._bounds = database[indexes.AUDIT_BOUNDS]
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._transactions: bool | None = None
        self.told: list[Callable[[AuditEntry], None]] = []

    async def recorded(self, event: AuditEvent | None, write: Write) -> bool:
        """Do ``write``, with the entry of ``event`` if it changes something; return whether so."""
        if event is None:
            return await write(None)
        if self._transactions is None:
            self._transactions = await has_change_streams(self._client)
        if self._transactions:
            return await self._in_one_step(event, write)
        await self.append(replace(event, result=Result.BEGUN))
        wrote = False
        try:
            wrote = await write(None)
        except DuplicateKeyError:
            await self.append(replace(event, result=Result.UNCHANGED))
            raise
        await self.append(event if wrote else replace(event, result=Result.UNCHANGED))
        return wrote

    async def append(self, event: AuditEvent) -> AuditEntry:
        """Append an entry; see the port."""
        async with self._turn:
            attempts = WriteAttempts(self._seconds)
            while True:
                try:
                    entry = await self._insert(event, None)
                except _OvertakenError:
                    await attempts.pause()
                else:
                    return self._tell(entry)

    async def read(
        self, asked: AuditFilter, limit: int, before: int | None, after: int
    ) -> Sequence[NumberedEntry]:
        """Return entries; see the port."""
        numbers = {"$gt": after} | ({} if before is None else {"$lt": before})
        terms: list[dict[str, Any]] = [{"_id": numbers}]
        for name, value in (
            ("actor.user", asked.user),
            ("action", asked.action),
            ("result", asked.result),
            ("at", asked.since and {"$gte": rfc3339(asked.since)}),
            ("at", asked.until and {"$lt": rfc3339(asked.until)}),
        ):
            terms += [{name: value}] if value is not None else []
        if asked.object is not None:
            # What is below it has a slash next, and "0" is what follows "/".
            below = {"$gt": f"{asked.object}/", "$lt": f"{asked.object}0"}
            terms.append({"$or": [{"object": asked.object}, {"object": below}]})
        order = 1 if before is None else DESCENDING
        found = self._entries.find({"$and": terms}, sort=[("_id", order)], limit=limit)
        return [_told(raw) for raw in await found.to_list()]

    async def bounds(self, session: AsyncClientSession | None = None) -> AuditBounds:
        """Return where the chain begins and ends; see the port.

        What is kept of the end comes after the entry itself, where there are no transactions.
        """
        kept = await self._bounds.find({}, session=session).to_list()
        places = {raw["_id"]: Link(raw["number"], raw["hash"]) for raw in kept}
        last = await self._entries.find_one(sort=[("_id", DESCENDING)], session=session)
        start, end = places.get("start", START), places.get("end", START)
        if last is not None and last["_id"] > end.number:
            end = Link(last["_id"], str(last.get("hash")))
        return AuditBounds(start, end)

    async def trim(self, before: datetime, limit: int) -> int:
        """Remove the oldest entries; see the port."""
        oldest = await self._entries.find_one(sort=[("_id", 1)])
        if oldest is None:
            return 0
        end = oldest["_id"] + limit
        kept = {"_id": {"$lt": end}, "at": {"$gte": rfc3339(before)}}
        first = await self._entries.find_one(kept, sort=[("_id", 1)])
        older = {"_id": {"$lt": end if first is None else first["_id"]}}
        last = await self._entries.find_one(older, sort=[("_id", DESCENDING)])
        if last is None:
            return 0
        await self._keep("start", Link(last["_id"], str(last.get("hash"))), None)
        trimmed = {"_id": {"$lte": last["_id"]}}
        return (await repeated(lambda: self._entries.delete_many(trimmed))).deleted_count

    async def clear(self, kept: AuditBounds) -> None:
        """Remove all entries; those that come have these bounds."""
        for collection in (self._entries, self._bounds):
            await repeated(partial(collection.delete_many, {}))
        for place, link in (("start", kept.start), ("end", kept.end)):
            await self._keep(place, link, None)

    async def _in_one_step(self, event: AuditEvent, write: Write) -> bool:
        async with self._turn:
            attempts = WriteAttempts(self._seconds)
            while True:
                try:
                    return await self._try_in_one_step(event, write)
                except _OvertakenError:
                    pass
                except PyMongoError as error:
                    if not error.has_error_label("TransientTransactionError"):
                        raise
                await attempts.pause()

    async def _try_in_one_step(self, event: AuditEvent, write: Write) -> bool:
        async with (
            self._client.start_session() as session,
            await session.start_transaction(_SNAPSHOT, _DURABLE),
        ):
            entry = await self._insert(event, session) if await write(session) else None
        if entry is not None:
            self._tell(entry)
        return entry is not None

    async def _insert(self, event: AuditEvent, session: AsyncClientSession | None) -> AuditEntry:
        entry = chained(event, (await self.bounds(session)).end)
        try:
            await self._entries.insert_one({"_id": entry.number, **to_json(entry)}, session=session)
        except DuplicateKeyError as error:
            raise _OvertakenError from error
        await self._keep("end", entry.link, session)
        return entry

    async def _keep(self, place: str, link: Link, session: AsyncClientSession | None) -> None:
        """Keep a place of the chain, unless a later one is kept."""
        earlier = {"_id": place, "number": {"$lt": link.number}}
        kept = {"number": link.number, "hash": link.hash}
        try:
            await self._bounds.update_one(earlier, {"$set": kept}, upsert=True, session=session)
        except DuplicateKeyError:
            if session is not None:  # it has ended the transaction
                raise _OvertakenError from None

    def _tell(self, entry: AuditEntry) -> AuditEntry:
        for told in self.told:
            told(entry)
        return entry


def _told(raw: dict[str, Any]) -> NumberedEntry:
    return raw.pop("_id"), raw
